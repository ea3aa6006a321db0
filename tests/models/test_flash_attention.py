"""flash_attention_2 with a stand-in for the flash_attn package, which needs an accelerator."""

import importlib.machinery
import sys
from types import ModuleType

import pytest
import tiny
import torch
import torch.nn.functional as F
from attention_inputs import EXACT, caps, heads, states, views
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gemlens import InputError
from gemlens.models.attention import Scores, choose, eager
from gemlens.spans import View, span_of


def stand_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """flash_attn_func as its documentation says it: [batch, tokens, heads, size]; -1 is no window; 0 is no cap.

    With fewer queries than keys the causal mask and the window are aligned to the bottom right corner: query i stands
    at i + T - S and sees keys from there - left to there + right.
    """
    queries, keys = q.shape[1], k.shape[1]
    k, v = (part.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for part in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    scores = softcap * torch.tanh(scores / softcap) if softcap > 0 else scores
    back = torch.arange(queries).unsqueeze(1) + keys - queries - torch.arange(keys)
    left, right = window_size
    seen = torch.ones_like(back, dtype=torch.bool)
    seen &= (back >= 0) if causal else True
    seen &= (back <= left) if left >= 0 else True
    seen &= (back >= -right) if right >= 0 else True
    weights = F.dropout(scores.masked_fill(~seen, -torch.inf).softmax(-1), dropout_p)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name, for machines that cannot have the real one."""
    package = ModuleType("flash_attn")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    package.flash_attn_func = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.mark.usefixtures("flash_attn")
class TestFlash:
    """flash_attn's semantics, computed plainly."""

    @given(data=st.data(), batch=st.integers(1, 3), grouping=heads, cap=caps)
    def test_plain_text_has_the_numbers_of_eager(
        self, data: st.DataObject, batch: int, grouping: tuple[int, int], cap: float | None
    ) -> None:
        view = data.draw(views(batch, kinds=("plain",)) | st.none())
        lengths = (4, 4) if view is None else (len(view.query), len(view.key))
        parts = states(batch, *grouping, *lengths)
        expected = eager(*parts, view, Scores(0.7, cap))[0]
        torch.testing.assert_close(
            choose("flash_attention_2", cap)(*parts, view, Scores(0.7, cap))[0], expected, **EXACT
        )

    @pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
    def test_whole_models_give_the_logits_of_eager_with_the_cache_past_the_window(self, family: str) -> None:
        model, cache = tiny.fresh(family, attn_implementation="flash_attention_2"), None
        ids = tiny.words(2, 12)
        logits = []
        for start, end in ((0, 7), (7, 8), (8, 11), (11, 12)):
            output = model(ids[:, start:end], past_key_values=cache)
            logits.append(output.logits)
            cache = output.past_key_values
        torch.testing.assert_close(torch.cat(logits, 1), tiny.model(family)(ids).logits, atol=1e-4, rtol=1e-4)

    def test_dropout_is_passed_on(self) -> None:
        mixed = choose("flash_attention_2")(*states(1, 1, 1, 3, 3), None, Scores(1.0, dropout=1.0))[0]
        assert (mixed == 0).all()

    @pytest.mark.parametrize("family", ["paligemma", "gemma3-pictures"])
    def test_pictures_and_prefixes_are_refused(self, family: str) -> None:
        model = tiny.fresh(family, attn_implementation="flash_attention_2")
        with pytest.raises(InputError, match=r"flash_attention_2 can only .*'sdpa', 'flex_attention' or 'eager'"):
            model(**tiny.prompt(family))

    def test_padding_is_refused(self) -> None:
        model = tiny.fresh("gemma", attn_implementation="flash_attention_2")
        with pytest.raises(InputError, match=r"hold padding"):
            model(tiny.words(2, 3), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))

    def test_a_mask_without_padding_is_not_padding(self) -> None:
        model = tiny.fresh("gemma", attn_implementation="flash_attention_2")
        model(tiny.words(2, 3), attention_mask=torch.ones(2, 3))

    def test_packed_rows_are_refused(self) -> None:
        span = span_of(torch.arange(3), segment=torch.tensor([[0, 0, 1]]))
        with pytest.raises(InputError, match="several texts"):
            choose("flash_attention_2")(*states(1, 1, 1, 3, 3), View(span, span), Scores(1.0))
