"""quantize="stored": a GGUF file's blocks are computed with as they are, and mean what they mean as numbers."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from gguf.constants import GGMLQuantizationType
from test_gguf_models import text_metadata, without_head, write_weights

import gemlens
from gemlens.errors import InputError
from gemlens.kernels import tiles
from gemlens.kernels.formats import Q8_0
from gemlens.kernels.machine import machine
from gemlens.kernels.reference import from_bytes, in_bits, in_bytes, quantize
from gemlens.models.decoder import Layers
from gemlens.quantization import blocks
from gemlens.quantization.blocks import BlockEmbedding, BlockLinear
from gemlens.quantization.fused import FusedLayer, FusedLayers

NUMBERS = (GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
KINDS = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q8_0, *NUMBERS)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def file(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path: Path) -> Path:
    model = tiny.fresh("gemma3", hidden_size=128, intermediate_size=64)
    path, metadata = tmp_path / "model.gguf", text_metadata(model.config, "gemma3")
    write_weights(path, without_head(model.state_dict()), "gemma3", metadata, request.param)
    return path


class RoundedCache(gemlens.DynamicCache):
    """Rounds what it keeps as native layers do, which otherwise moves numbers over the edges between steps."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *others: object):
        is_first = self[layer_idx][0] is None
        kept = (states.bfloat16().to(states.dtype) for states in (key_states, value_states))
        seen = super().update(*kept, layer_idx, *others)
        return (key_states, value_states) if is_first else seen


def load(file: Path, **said: object) -> gemlens.Gemma3ForCausalLM:
    said = {"query_pre_attn_scalar": 8, **said}
    return gemlens.Gemma3ForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **said)


@pytest.mark.parametrize("bits", [8, 16])
def test_its_logits_are_those_of_the_numbers_with_activations_in_so_many_bits(
    tiny: ModuleType, file: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, twin = load(file, quantize="stored", activation_bits=bits), load(file)
    inputs = {"input_ids": tiny.words(4, 8)}  # none of whose numbers lies between two steps, where it may become either
    assert type(model.lm_head) is BlockLinear
    assert type(model.model.embed_tokens) is BlockEmbedding
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        said = model(**inputs, use_cache=False).logits  # what is cached is rounded
        plain, end = F.linear, {id(weight) for weight in twin.model.layers[-1].parameters()}
        if model.lm_head.format is Q8_0:  # is screened
            end.add(id(twin.lm_head.weight))

        def in_blocks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return plain(in_bits(x, 16 if id(weight) in end else bits), weight, bias)

        if model.lm_head.format.is_quantized:
            monkeypatch.setattr(F, "linear", in_blocks)
        wanted = twin(**inputs).logits
    assert torch.allclose(said, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_it_generates(tiny: ModuleType, file: Path) -> None:
    model = load(file, quantize="stored")
    prompt = tiny.prompt("gemma3")
    cached = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(cached, model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False))


@pytest.mark.parametrize(
    "said", [{"do_sample": False}, {"do_sample": True, "top_k": 5, "temperature": 0.7, "top_p": 0.9}]
)
def test_tokens_are_those_of_all_logits(tiny: ModuleType, file: Path, said: dict[str, object]) -> None:
    """Where logits are asked for, all of them are computed; else those that may be among the largest."""
    model, prompt = load(file, quantize="stored"), {"input_ids": tiny.words(1, 6)}
    torch.manual_seed(0)
    screened = model.generate(**prompt, max_new_tokens=12, **said)
    torch.manual_seed(0)
    whole = model.generate(**prompt, max_new_tokens=12, **said, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(screened, whole.sequences)
    assert all(logits.isfinite().all() for logits in whole.logits)


def test_sixteen_bits_are_nearer_to_the_numbers_in_all_layers_at_once(tiny: ModuleType, file: Path) -> None:
    """Where one native call computes them, and after a prompt."""
    twin, ids, away = load(file), tiny.words(2, 30), []
    with torch.no_grad():
        wanted = twin(ids).logits
        for bits in (8, 16):
            model = load(file, quantize="stored", activation_bits=bits)
            cache = model(ids[:, :20]).past_key_values
            parts = [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(20, 30)]
            away.append(float((torch.cat(parts, 1) - wanted[:, 20:]).norm() / wanted[:, 20:].norm()))
    assert away[1] < (0.5 if model.lm_head.format.is_quantized else 1.001) * away[0]


@pytest.mark.parametrize("guesses", [{"prompt_lookup_num_tokens": 4}, {"assistant": True}], ids=["prompt", "assistant"])
def test_guesses_change_no_token(tiny: ModuleType, file: Path, guesses: dict[str, object]) -> None:
    model, prompt = load(file, quantize="stored"), {"input_ids": tiny.words(1, 6)}
    plain = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    if "assistant" in guesses:
        guesses = {"assistant_model": load(file, quantize="stored")}
    assert torch.equal(model.generate(**prompt, max_new_tokens=24, do_sample=False, **guesses), plain)


def test_a_text_model_without_a_head_is_rounded_too(tiny: ModuleType, tmp_path: Path) -> None:
    """Its layers are its own, with no name before them."""
    tiny.fresh("gemma3", hidden_size=128, intermediate_size=64).model.save_pretrained(tmp_path)
    model = gemlens.Gemma3TextModel.from_pretrained(tmp_path, quantize="q8")
    assert not [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert type(model.embed_tokens) is BlockEmbedding


def test_a_screen_that_finds_nothing_is_left_out_for_the_next_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given holds the largest in any case."""
    layer = BlockLinear(torch.nn.Linear(64, 160, bias=False), Q8_0)
    weight = quantize(torch.randn(160, 64, generator=torch.Generator().manual_seed(0)), Q8_0)
    layer.weight = torch.nn.Parameter(layer.keep(weight), requires_grad=False)
    for in_vain in (False, True):
        asked = []

        def found(
            x: torch.Tensor,
            packed: tiles.Tiles,
            k: int,
            screens: bool,
            asked: list[bool] = asked,
            share: float = in_vain,
        ) -> tiles.Largest:
            asked.append(screens)
            return replace(tiles.largest(x, packed, k, screens), computed=share)

        monkeypatch.setattr(blocks, "largest", found)
        for number in range(50):
            x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(number))
            assert torch.equal(layer.largest(x, 3).values.topk(3).values, layer(x).topk(3).values)
        assert [number for number, screens in enumerate(asked) if screens] == ([0, 32] if in_vain else [*range(50)])


def test_where_a_screen_finds_nothing_the_best_of_the_next_tokens_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = BlockLinear(torch.nn.Linear(64, 160, bias=False), Q8_0)
    weight = quantize(torch.randn(160, 64, generator=torch.Generator().manual_seed(0)), Q8_0)
    layer.weight = torch.nn.Parameter(layer.keep(weight), requires_grad=False)
    asked = []

    def found(x: torch.Tensor, packed: tiles.Tiles, screens: bool) -> tiles.Best:
        asked.append(screens)
        return replace(tiles.best(x, packed, screens), computed=1.0)

    monkeypatch.setattr(blocks, "best", found)
    for number in range(50):
        x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(number))
        logits, whole = layer.largest(x, 1), layer(x)
        assert logits.ids is not None
        assert torch.equal(logits.values, whole.amax(-1, keepdim=True))
        assert torch.equal(logits.ids, whole.argmax(-1, keepdim=True))
    assert [number for number, screens in enumerate(asked) if screens] == [0, 32]


@pytest.mark.parametrize("bits", [8, 16])
def test_layers_are_native_where_that_is_possible(tiny: ModuleType, file: Path, bits: int) -> None:
    """And give what the layers that they replaced give, also with a mask and several tokens at once."""
    model = load(file, quantize="stored", activation_bits=bits)
    fused = [layer for layer in model.model.layers if isinstance(layer, FusedLayer)]
    assert len(fused) == (0 if machine().native is None else len(model.model.layers))
    ids = tiny.words(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def read(cache: gemlens.DynamicCache) -> torch.Tensor:
        with torch.no_grad():
            begun = model(ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache).logits
            return torch.cat([begun, model(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits], 1)

    said = read(gemlens.DynamicCache(model.config))
    for place, layer in enumerate(fused):
        model.model.layers[place] = layer.layer
    plain = read(RoundedCache(model.config))
    most = {8: 2e-3, 16: 1e-4}[bits]
    assert torch.allclose(said[mask == 1], plain[mask == 1], atol=most * float(plain.abs().max()))


@pytest.mark.skipif(machine().native is None, reason="layers are native where kernels are compiled")
@pytest.mark.parametrize("kind", [gemlens.DynamicCache, gemlens.QuantizedCache])
@pytest.mark.parametrize("begun", [6, 19])
def test_all_layers_at_once_give_what_each_alone_gives(
    tiny: ModuleType, file: Path, kind: type[gemlens.DynamicCache], begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padding, beyond the window, one token or many at once; in whatever the cache was begun."""
    model = load(file, quantize="stored")
    ids = tiny.words(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def read() -> torch.Tensor:
        with torch.no_grad():
            said = model(ids[:, :begun], attention_mask=mask[:, :begun], past_key_values=kind(model.config))
        cache, parts = said.past_key_values, [said.logits]
        for start, stop in pairwise([begun, begun + 1, begun + 3, begun + 14, *range(begun + 15, 41)]):
            with torch.inference_mode() if start % 2 else torch.no_grad():
                parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache).logits)
        return torch.cat(parts, 1)

    at_once = read()
    calls = []
    monkeypatch.setattr(FusedLayers, "forward", lambda *given: calls.append(given) or Layers.forward(*given))
    assert torch.equal(read(), at_once)
    assert calls


@pytest.mark.skipif(machine().native is None, reason="layers are native where kernels are compiled")
def test_a_prompt_goes_through_all_layers_at_once_unless_windows_would_forget_most_of_it(
    tiny: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory for keys is what windows need, layer by layer; the last layer computes one token."""
    model, together, run = load(file, quantize="stored"), [], FusedLayers._together

    def counted(layers: FusedLayers, hidden: torch.Tensor, *given: object) -> torch.Tensor:
        together.append(hidden.shape[1])
        return run(layers, hidden, *given)

    monkeypatch.setattr(FusedLayers, "_together", counted)
    for length in (40, 200):
        cache = gemlens.DynamicCache(model.config)
        with torch.no_grad():
            model(tiny.words(2, length), past_key_values=cache, logits_to_keep=1)
        held = [layer.held.shape[2] for layer in cache.layers if layer.is_sliding]
        assert len(held) == len([window for window in model.config.windows if window])
        assert max(held) < 40 + 100
    assert together == [40]


def test_a_model_of_one_layer_reads_a_prompt_for_its_last_token(tiny: ModuleType, tmp_path: Path) -> None:
    """Then no layer is left that all tokens pass in full."""
    tiny.fresh("gemma3", hidden_size=64, intermediate_size=96, num_hidden_layers=1).eval().save_pretrained(tmp_path)
    model, prompt = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, quantize="q8"), tiny.prompt("gemma3")
    whole = model(**prompt).logits[:, -1:]
    some = model(**prompt, logits_to_keep=1).logits
    assert torch.allclose(some, whole, atol=2e-2 * float(whole.abs().max()))


def test_a_kind_of_quantized_cache_that_kernels_do_not_know_is_asked_as_any(tiny: ModuleType, file: Path) -> None:
    class Own(gemlens.QuantizedCache):
        pass

    model, ids, logits = load(file, quantize="stored"), tiny.words(2, 30), []
    for cache in (Own(model.config), gemlens.QuantizedCache(model.config)):
        with torch.no_grad():
            logits.append([model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(30)])
    one, other = (torch.cat(each, 1) for each in logits)
    assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("steps", [1, 20])
def test_a_quantized_cache_holds_rounded_what_a_dynamic_one_would(tiny: ModuleType, file: Path, steps: int) -> None:
    """Of the first layer, whose keys do not yet depend on what was rounded before; few tokens and many."""
    model, ids = load(file, quantize="stored"), tiny.words(2, 30)
    held = []
    for cache in (gemlens.QuantizedCache(model.config), gemlens.OffloadedCache(model.config)):  # this has float32
        with torch.no_grad():
            for start, stop in pairwise([0, *range(10, 31, steps)]):
                model(ids[:, start:stop], past_key_values=cache)
        held.append(cache)
    for kept, exact in zip(held[0][0], held[1][0], strict=True):
        assert torch.equal(kept, from_bytes(in_bytes(exact)))


@pytest.mark.skipif(machine().native is None, reason="layers are native where kernels are compiled")
@pytest.mark.parametrize("kind", [gemlens.DynamicCache, gemlens.QuantizedCache])
@pytest.mark.parametrize("length", [1, 9, 40])
def test_tokens_before_which_nothing_was_seen_attend_to_what_no_cache_has_rounded(
    tiny: ModuleType, file: Path, kind: type[gemlens.DynamicCache], length: int
) -> None:
    """All layers at once, and the last one alone."""
    model, ids = load(file, quantize="stored"), tiny.words(2, length)
    with torch.no_grad():
        for kept in (0, 1):
            said = model(ids, past_key_values=kind(model.config), logits_to_keep=kept).logits
            assert torch.equal(said, model(ids, use_cache=False, logits_to_keep=kept).logits)


@pytest.mark.parametrize(("length", "kept"), [(9, 1), (9, 4), (40, 1), (40, 30)])
def test_the_last_layer_may_compute_only_some_tokens(tiny: ModuleType, file: Path, length: int, kept: int) -> None:
    """Also behind what is cached and with padding; many tokens attend in bfloat16, few in float32."""
    model, ids = load(file, quantize="stored"), tiny.words(2, length + 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def read(logits_to_keep: int) -> torch.Tensor:
        with torch.no_grad():
            cache = model(ids[:, :6], attention_mask=mask[:, :6]).past_key_values
            given = {"attention_mask": mask, "past_key_values": cache, "logits_to_keep": logits_to_keep}
            return model(ids[:, 6:], **given).logits

    whole, some = read(0), read(kept)
    assert some.shape[1] == kept
    assert torch.allclose(some, whole[:, -kept:], atol=2e-2 * float(whole.abs().max()))


def test_weights_take_the_memory_that_they_take_in_the_file(file: Path) -> None:
    model = load(file, quantize="stored")
    bytes_in_memory = sum(weight.numel() for weight in model.parameters() if weight.dtype is torch.uint8)
    assert bytes_in_memory <= file.stat().st_size


def test_what_cannot_be_kept_is_a_sentence(tiny: ModuleType, file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantize is 'q3', but it must be 'stored', 'q8' or 'q4'"):
        load(file, quantize="q3")
    for bits in (4, 16.0):
        with pytest.raises(InputError, match=f"activation_bits is {bits}, but it must be 8 or 16"):
            load(file, quantize="stored", activation_bits=bits)
    with pytest.raises(InputError, match="pass quantize, too, or neither"):
        load(file, activation_bits=16)
    with pytest.raises(InputError, match="pass one of them"):
        load(file, quantize="stored", quantization_config=gemlens.TorchAoConfig("int8_weight_only"))
    with pytest.raises(InputError, match="its GGUF file is its checkpoint"):
        load(file, quantize="stored").save_pretrained(tmp_path / "saved")
    folder = tmp_path / "safetensors"
    tiny.fresh("gemma3").save_pretrained(folder)
    with pytest.raises(InputError, match="keeps the blocks of a GGUF file"):
        gemlens.Gemma3ForCausalLM.from_pretrained(folder, quantize="stored")


@pytest.mark.parametrize(("quantize", "most"), [("q8", 0.02), ("q4", 0.3)])
@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3", "paligemma", "gemma3-pictures"])
def test_any_checkpoint_is_rounded_while_it_is_loaded(
    tiny: ModuleType, tmp_path: Path, family: str, quantize: str, most: float
) -> None:
    model = tiny.fresh(family, hidden_size=64, intermediate_size=96).eval()
    model.save_pretrained(tmp_path)
    rounded, prompt = type(model).from_pretrained(tmp_path, quantize=quantize), tiny.prompt(family)
    layers = [module for module in rounded.text_model().layers.modules() if isinstance(module, BlockLinear)]
    assert {layer.format.name for layer in layers} == {"q8": {"Q8_0"}, "q4": {"Q4_0"}}[quantize]
    assert isinstance(rounded.text_model().embed_tokens, BlockEmbedding)
    assert rounded.lm_head.weight is rounded.text_model().embed_tokens.weight
    with torch.no_grad():
        said, wanted = rounded(**prompt).logits, model(**prompt).logits
    assert 0 < (said - wanted).norm() / wanted.norm() < most


@pytest.mark.slow
def test_a_thousand_loads_and_generations_leak_nothing(tiny: ModuleType, file: Path) -> None:
    """Memory after 200 is memory after 1,000, but for what an allocator keeps."""
    prompt, sizes = {"input_ids": tiny.words(1, 6)}, []
    for number in range(1000):
        load(file, quantize="stored").generate(**prompt, max_new_tokens=4, do_sample=False)
        if number in (199, 999):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert sizes[1] - sizes[0] < 4e6
