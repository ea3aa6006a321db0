"""Four ways to attend: equal to the specification, or refused."""

import subprocess
import sys
from typing import Any

import pytest
import tiny
import torch
from attention_inputs import EXACT, caps, heads, states, views
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens import InputError
from gemlens.models.attention import Scores, eager, flex, sdpa
from gemlens.spans import Span, View


class TestEager:
    """The specification, against a formula written out."""

    @given(data=st.data(), batch=st.integers(1, 3), grouping=heads, cap=caps)
    def test_it_is_the_formula(
        self, data: st.DataObject, batch: int, grouping: tuple[int, int], cap: float | None
    ) -> None:
        view = data.draw(views(batch))
        query, key, value = states(batch, *grouping, len(view.query), len(view.key))
        mixed, weights = eager(query, key, value, view, Scores(0.7, cap))
        assert weights is not None
        mask = view.mask.expand(batch, -1, -1, -1)[:, 0]
        for row in range(batch):
            for head in range(grouping[0]):
                served_by = head * grouping[1] // grouping[0]
                scores = query[row, head].double() @ key[row, served_by].double().T * 0.7
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                expected = scores.masked_fill(~mask[row], -torch.inf).softmax(-1)
                torch.testing.assert_close(weights[row, head].double(), expected, **EXACT)
                torch.testing.assert_close(
                    mixed[row, head].double(), expected @ value[row, served_by].double(), **EXACT
                )

    def test_everything_is_seen_without_a_view(self) -> None:
        query, key, value = states(1, 2, 2, 3, 5)
        weights = eager(query, key, value, None, Scores(1.0))[1]
        assert weights is not None
        assert weights.shape == (1, 2, 3, 5)
        assert (weights > 0).all()

    def test_weights_of_bfloat16_are_a_float32_softmax_that_is_rounded_once(self) -> None:
        query, key, value = (part.bfloat16() for part in states(1, 2, 2, 3, 5))
        mixed, weights = eager(query, key, value, None, Scores(1.0))
        assert weights is not None
        assert mixed.dtype is weights.dtype is torch.bfloat16
        full = (query @ key.transpose(-1, -2)).float().softmax(-1).bfloat16()
        assert weights.equal(full)

    def test_dropout_drops_weights_and_scales_the_rest(self) -> None:
        query, key, value = states(2, 2, 2, 50, 50)
        whole = eager(query, key, value, None, Scores(1.0))[1]
        thinned = eager(query, key, value, None, Scores(1.0, dropout=0.5))[1]
        assert whole is not None
        assert thinned is not None
        gone = thinned == 0
        assert 0.4 < gone.float().mean() < 0.6
        torch.testing.assert_close(thinned[~gone], whole[~gone] * 2)


class TestAgreement:
    """The fast ways give the numbers and the gradients of the specification."""

    @given(data=st.data(), batch=st.integers(1, 3), grouping=heads)
    def test_sdpa_gives_the_numbers_and_gradients_of_eager(
        self, data: st.DataObject, batch: int, grouping: tuple[int, int]
    ) -> None:
        view = data.draw(views(batch) | st.none())
        lengths = (4, 4) if view is None else (len(view.query), len(view.key))
        parts = [part.requires_grad_() for part in states(batch, *grouping, *lengths)]
        results = [how(*parts, view, Scores(0.7))[0] for how in (eager, sdpa)]
        torch.testing.assert_close(*results, **EXACT)
        gradients = [torch.autograd.grad(result.square().sum(), parts) for result in results]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, **EXACT)

    @settings(max_examples=30)
    @given(data=st.data(), batch=st.integers(1, 3), grouping=heads, cap=caps)
    def test_flex_attention_gives_the_numbers_of_eager(
        self, data: st.DataObject, batch: int, grouping: tuple[int, int], cap: float | None
    ) -> None:
        view = data.draw(views(batch) | st.none())
        lengths = (4, 4) if view is None else (len(view.query), len(view.key))
        parts = states(batch, *grouping, *lengths)
        expected = eager(*parts, view, Scores(0.7, cap))[0]
        torch.testing.assert_close(flex(*parts, view, Scores(0.7, cap))[0], expected, **EXACT)

    @pytest.mark.parametrize("family", ["gemma", "gemma3", "gemma3-pictures", "paligemma"])
    @pytest.mark.parametrize("name", ["sdpa", "flex_attention"])
    def test_whole_models_give_the_logits_of_eager(self, family: str, name: str) -> None:
        """With padding, a window, pictures and a prefix; then one more token with the cache."""
        expected, model = tiny.fresh(family, attn_implementation="eager"), tiny.fresh(family, attn_implementation=name)
        mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 3 + [1]])
        arguments = {**tiny.prompt(family, length=8), "attention_mask": mask[:, :8]}
        more = {"input_ids": tiny.words(2, 1), "attention_mask": mask}
        both = expected, model
        caches: list[Any] = [None, None]
        with torch.no_grad():
            for call in (arguments, more):
                outputs = [each(**call, past_key_values=cache) for each, cache in zip(both, caches, strict=True)]
                real = call["attention_mask"][:, -call["input_ids"].shape[1] :].bool()
                torch.testing.assert_close(*(output.logits[real] for output in outputs), atol=1e-4, rtol=1e-4)
                caches = [output.past_key_values for output in outputs]

    @pytest.mark.parametrize("family", ["gemma2", "paligemma2"])
    def test_flex_attention_applies_the_soft_cap_of_a_model(self, family: str) -> None:
        arguments = tiny.prompt(family)
        model = tiny.fresh(family, attn_implementation="flex_attention")
        with torch.no_grad():
            logits = model(**arguments).logits
        torch.testing.assert_close(logits, tiny.model(family)(**arguments).logits, atol=1e-4, rtol=1e-4)
        uncapped = tiny.fresh(family, attn_logit_softcapping=None)
        assert (uncapped(**arguments).logits - logits).abs().max() > 0.1, "the cap must bite here"


class TestFlexOnTheProcessor:
    """torch computes it there for inference only, and warns that it is slow."""

    def test_it_does_not_warn(self) -> None:
        program = (
            "import warnings; warnings.simplefilter('error')\n"
            "import torch\n"
            "from gemlens.models.attention import Scores, flex\n"
            "flex(*(torch.zeros(1, 1, 2, 4) for _ in range(3)), None, Scores(1.0))\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)

    def test_gradients_are_refused_with_advice(self) -> None:
        parts = [part.requires_grad_() for part in states(1, 2, 2, 3, 3)]
        with pytest.raises(InputError, match=r"flex_attention .*CPU.*(eager|sdpa)"):
            flex(*parts, None, Scores(1.0))

    def test_dropout_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"no dropout.*attention_dropout=0\.0"):
            flex(*states(1, 2, 2, 3, 3), None, Scores(1.0, dropout=0.1))


def test_spans_of_one_row_serve_a_batch_in_every_way() -> None:
    span = Span(torch.arange(4).unsqueeze(0), torch.arange(4).unsqueeze(0))
    parts = states(3, 2, 1, 4, 4)
    expected = eager(*parts, View(span, span, 2), Scores(0.5))[0]
    mixed = [sdpa(*parts, View(span, span, 2), Scores(0.5))[0], flex(*parts, View(span, span, 2), Scores(0.5))[0]]
    for result in mixed:
        torch.testing.assert_close(result, expected, **EXACT)
