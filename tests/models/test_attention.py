"""Four ways to attend: equal to the specification, or refused."""

import importlib.machinery
import subprocess
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens import Gemma2ForCausalLM, Gemma3ForCausalLM, GemmaForCausalLM, InputError, SiglipVisionModel
from gemlens.models import attention
from gemlens.models.attention import AttentionBlock, Scores, choose, eager, flex, sdpa
from gemlens.spans import Span, View, join, plain_span, span_of

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def states(batch: int, heads: int, kv_heads: int, queries: int, keys: int, size: int = 4) -> tuple[Tensor, ...]:
    numbers = torch.Generator().manual_seed(batch + 10 * heads + 100 * queries + 1000 * keys)
    shapes = ((batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, size))
    return tuple(torch.randn(shape, generator=numbers) for shape in shapes)


@st.composite
def views(draw: st.DrawFn, batch: int, kinds: tuple[str, ...] = ("plain", "padded", "blocks", "packed")) -> View:
    """What S queries see of T keys: the last tokens of T, with a window or without."""
    kind = draw(st.sampled_from(kinds))
    queries, past = draw(st.integers(1, 5)), draw(st.integers(0, 5)) if kind != "packed" else 0
    window = draw(st.none() | st.integers(1, 6))
    if kind == "plain":
        new = plain_span(past, queries, "cpu")
        return View(new, join([plain_span(0, past, "cpu"), new]) if past else new, window)

    def marks(length: int) -> Tensor:
        size = batch * length
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(batch, length)

    slots = torch.arange(past, past + queries)
    if kind == "packed":
        segment = marks(queries).cumsum(1)
        span = span_of(slots, segment=segment)
        return View(span, span, window)
    held = span_of(torch.arange(past), real=marks(past)) if past else None
    before: Any = 0 if held is None else held.real_count()
    if kind == "blocks":
        pictures = marks(queries)
        starts = pictures & ~F.pad(pictures, (1, 0))[:, :-1]
        new = span_of(slots, before=before, real=marks(queries), pictures=pictures, picture_starts=starts)
    else:  # the new tokens are not padded, what is cached was
        new = span_of(slots, before=before)
    return View(new, new if held is None else join([held, new]), window)


heads = st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)])
caps = st.none() | st.floats(0.5, 5)


def quiet_flex(*arguments: Any) -> Tensor:
    """flex_attention as a model calls it in inference; that it should not warn has a test of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex(*arguments)[0]


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

    def test_the_softmax_is_computed_in_float32(self) -> None:
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
        torch.testing.assert_close(quiet_flex(*parts, view, Scores(0.7, cap)), expected, **EXACT)

    @pytest.mark.parametrize("family", ["gemma", "gemma3", "gemma3-pictures", "paligemma"])
    @pytest.mark.parametrize("name", ["sdpa", "flex_attention"])
    def test_whole_models_give_the_logits_of_eager(self, family: str, name: str) -> None:
        """With padding, a window, pictures and a prefix; then one more token with the cache."""
        expected, model = tiny.fresh(family, attn_implementation="eager"), tiny.fresh(family, attn_implementation=name)
        arguments = tiny.prompt(family, length=8)
        arguments["attention_mask"] = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
        more = {
            "input_ids": tiny.words(2, 1),
            "attention_mask": torch.cat([arguments["attention_mask"], torch.ones(2, 1)], 1),
        }
        caches: list[Any] = [None, None]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            for call in (arguments, more):
                outputs = [
                    each(**call, past_key_values=cache) for each, cache in zip((expected, model), caches, strict=True)
                ]
                real = call["attention_mask"][:, -call["input_ids"].shape[1] :].bool()
                torch.testing.assert_close(*(output.logits[real] for output in outputs), atol=1e-4, rtol=1e-4)
                caches = [output.past_key_values for output in outputs]

    @pytest.mark.parametrize("family", ["gemma2", "paligemma2"])
    def test_flex_attention_applies_the_soft_cap_of_a_model(self, family: str) -> None:
        arguments = tiny.prompt(family)
        model = tiny.fresh(family, attn_implementation="flex_attention")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
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


class TestChoice:
    """Which way a name means, and when it is refused."""

    def test_without_a_name_sdpa_is_taken_unless_a_cap_must_be_applied(self) -> None:
        assert choose(None) is sdpa
        assert choose(None, cap=50.0) is eager

    @pytest.mark.parametrize(("name", "function"), [("eager", eager), ("sdpa", sdpa), ("flex_attention", flex)])
    def test_a_name_means_its_function(self, name: str, function: Any) -> None:
        assert choose(name) is function

    def test_sdpa_is_refused_where_it_would_drop_a_cap(self) -> None:
        with pytest.raises(InputError, match=r"sdpa cannot apply .* soft cap of 50\.0.*'eager' or 'flex_attention'"):
            choose("sdpa", cap=50.0)
        with pytest.raises(InputError, match="soft cap of 3"):
            Gemma2ForCausalLM(tiny.config("gemma2"), attn_implementation="sdpa")

    def test_a_gemma_2_without_a_cap_may_use_sdpa(self) -> None:
        assert tiny.fresh("gemma2", attn_implementation="sdpa", attn_logit_softcapping=None) is not None

    @pytest.mark.parametrize("name", ["flash_attention_3", "SDPA", "", "paged"])
    def test_an_unknown_name_is_refused_with_the_known_ones(self, name: str) -> None:
        with pytest.raises(InputError, match=f"is '{name}'; known are eager, sdpa, flex_attention, flash_attention_2"):
            GemmaForCausalLM(tiny.config("gemma"), attn_implementation=name)

    def test_flash_is_refused_where_the_package_is_missing(self) -> None:
        with pytest.raises(InputError, match=r"needs the flash_attn package: pip install flash-attn"):
            Gemma3ForCausalLM(tiny.config("gemma3"), attn_implementation="flash_attention_2")


def stand_in(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
             causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0) -> Tensor:  # fmt: skip
    """flash_attn_func as its documentation says it: [batch, tokens, heads, size]; -1 is no window; 0 is no cap.

    With fewer queries than keys the causal mask and the window are aligned to the bottom right corner: query i stands at
    i + T - S and sees keys from there - left to there + right.
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


def ways(model: torch.nn.Module) -> dict[str, set[str]]:
    """Which functions the parts of a model attend with."""
    names = {function: name for name, function in attention.IMPLEMENTATIONS.items()}
    found: dict[str, set[str]] = {"vision": set(), "text": set()}
    for name, module in model.named_modules():
        if isinstance(module, AttentionBlock):
            found["vision" if "vision_model." in name else "text"].add(names[module.attend])
    return found


class TestModels:
    """How a model is told which way to take."""

    @pytest.mark.parametrize("family", tiny.FAMILIES)
    def test_the_default_is_sdpa_or_where_a_cap_bites_eager(self, family: str) -> None:
        text = {"eager"} if family.endswith("2") else {"sdpa"}
        expected = {"vision": {"sdpa"} if family in tiny.PICTURE_FAMILIES else set(), "text": text}
        assert ways(tiny.model(family)) == expected

    @pytest.mark.parametrize("family", ["gemma", "gemma3-pictures", "paligemma"])
    def test_one_name_is_for_all_parts(self, family: str) -> None:
        model = tiny.fresh(family, attn_implementation="eager")
        assert set().union(*ways(model).values()) == {"eager"}
        assert model.attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert set().union(*ways(model).values()) == {"sdpa"}
        model.set_attn_implementation(None)
        assert model.attn_implementation is None

    def test_a_dict_names_the_parts(self) -> None:
        parts = {"text_config": "eager", "vision_config": "sdpa"}
        model = tiny.fresh("gemma3-pictures", attn_implementation=parts)
        assert ways(model) == {"vision": {"sdpa"}, "text": {"eager"}}
        model.set_attn_implementation({"vision_config": "eager"})
        assert ways(model) == {"vision": {"eager"}, "text": {"sdpa"}}

    def test_the_picture_encoder_of_paligemma_2_may_use_sdpa_while_its_decoder_may_not(self) -> None:
        model = tiny.fresh("paligemma2", attn_implementation={"vision_config": "sdpa"})
        assert ways(model) == {"vision": {"sdpa"}, "text": {"eager"}}
        with pytest.raises(InputError, match="soft cap"):
            model.set_attn_implementation("sdpa")

    def test_a_refused_name_changes_nothing(self) -> None:
        model = tiny.fresh("paligemma2", attn_implementation="eager")
        with pytest.raises(InputError, match="soft cap"):
            model.set_attn_implementation("sdpa")
        assert ways(model) == {"vision": {"eager"}, "text": {"eager"}}

    def test_a_misspelt_part_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"'text'.*text_config"):
            tiny.fresh("gemma3-pictures", attn_implementation={"text": "eager"})

    def test_a_picture_encoder_alone_takes_a_name(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config(), attn_implementation="eager")
        assert ways(model)["vision"] == {"eager"}
        model(tiny.pixels(1))


class TestWeights:
    """output_attentions works whatever the implementation, and changes no number."""

    @pytest.mark.parametrize("family", tiny.FAMILIES)
    def test_weights_come_under_every_default(self, family: str) -> None:
        model, arguments = tiny.model(family), tiny.prompt(family)
        with_weights = model(**arguments, output_attentions=True)
        torch.testing.assert_close(with_weights.logits, model(**arguments).logits, atol=1e-5, rtol=1e-4)
        assert len(with_weights.attentions) == 3
        for weights in with_weights.attentions:
            assert weights.shape == (2, 4, 9, 9)
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))

    def test_weights_are_zero_where_nothing_is_seen(self) -> None:
        weights = tiny.model("gemma3", 4)(tiny.words(1, 9), output_attentions=True).attentions
        span = plain_span(0, 9, "cpu")
        for layer, window in enumerate((4, None, 4)):
            assert ((weights[layer] > 0) == View(span, span, window).mask).all()

    def test_pictures_give_weights_of_the_encoder(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config())
        output = model(tiny.pixels(2), output_attentions=True)
        assert [weights.shape for weights in output.attentions] == [(2, 2, 4, 4)] * 2


def test_spans_of_one_row_serve_a_batch_in_every_way() -> None:
    span = Span(torch.arange(4).unsqueeze(0), torch.arange(4).unsqueeze(0))
    parts = states(3, 2, 1, 4, 4)
    expected = eager(*parts, View(span, span, 2), Scores(0.5))[0]
    for result in (
        sdpa(*parts, View(span, span, 2), Scores(0.5))[0],
        quiet_flex(*parts, View(span, span, 2), Scores(0.5)),
    ):
        torch.testing.assert_close(result, expected, **EXACT)
