"""Models whose linear layers torchao has rounded: which layers, and that they compute what their weights stand for."""

import copy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
import wide
from torch import nn
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
    quantize_,
)
from transformers.quantizers.base import HfQuantizer

import gemlens
from gemlens import TorchAoConfig
from gemlens.checkpoints.device_map import placing_for
from gemlens.errors import InputError
from gemlens.quantization import int4
from gemlens.quantization.torchao import QuantizedLinear, chosen

OBJECTS = (
    PrototypeInt4WeightOnlyConfig(group_size=32),
    Int8WeightOnlyConfig(),
    Int8WeightOnlyConfig(granularity=PerGroup(64)),
    Int8DynamicActivationInt8WeightConfig(),
)
each_family = pytest.mark.parametrize("family", wide.FAMILIES)
each_scheme = pytest.mark.parametrize("scheme", wide.SCHEMES, ids=lambda scheme: f"{scheme[0]}-{scheme[1]}")


def load(
    of: Any, folder: Path, scheme: tuple[str, dict[str, int]], dtype: Any = torch.float32, **arguments: Any
) -> Any:
    """A model, saved and opened again with rounded weights."""
    of.save_pretrained(folder)
    config = TorchAoConfig(scheme[0], **scheme[1])
    return type(of).from_pretrained(folder, dtype=dtype, quantization_config=config, **arguments)


# -- what is computed --------------------------------------------------------------------------------------------------


@each_family
@each_scheme
def test_logits_are_those_of_the_dequantized_weights(
    tiny: ModuleType, family: str, scheme: Any, tmp_path: Path
) -> None:
    model = wide.model(family)
    quantized = load(model, tmp_path, scheme)
    rounded = wide.rounded(quantized)
    for name, weight in rounded.items():
        values = wide.values(weight)
        error = (values - model.get_parameter(name)).abs().max() / model.get_parameter(name).abs().max()
        assert 1e-4 < error < (0.15 if weight.__class__.__name__.startswith("Int4") else 0.02), name
        model.get_parameter(name).data.copy_(values)
    inputs = tiny.prompt(family)
    expected, ours = wide.logits(model, inputs), wide.logits(quantized, inputs)
    # Activations that are rounded too make steps, which is seen in the next test.
    bound = 0.02 if "dynamic" in scheme[0] else 1e-5
    assert (ours - expected).abs().max() < bound * expected.abs().max()


@each_family
@pytest.mark.parametrize(("scheme", "thing"), list(zip(wide.SCHEMES, OBJECTS, strict=True)))
def test_logits_are_those_of_torchaos_own_quantization_bit_for_bit(
    tiny: ModuleType, family: str, scheme: Any, thing: Any, tmp_path: Path
) -> None:
    model = wide.model(family)
    quantized = load(model, tmp_path, scheme)
    linears = wide.rounded(quantized)
    quantize_(model, thing, filter_fn=lambda _, name: f"{name}.weight" in linears)
    assert wide.rounded(model).keys() == linears.keys()
    inputs = tiny.prompt(family)
    assert torch.equal(wide.logits(quantized, inputs), wide.logits(model, inputs))


@each_family
@pytest.mark.parametrize(
    ("thing", "dtype"),
    [
        (PrototypeInt4WeightOnlyConfig(group_size=32), torch.float32),
        (PrototypeInt4WeightOnlyConfig(group_size=32), torch.bfloat16),
        (Int8WeightOnlyConfig(), torch.float32),
        (Int8DynamicActivationInt8WeightConfig(), torch.float32),
    ],
)
def test_the_reference_rounds_the_same_layers_and_gives_the_same_logits(
    tiny: ModuleType, family: str, thing: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = wide.model(family)
    model.save_pretrained(tmp_path)
    how = {"dtype": dtype, "attn_implementation": "eager", "device_map": "cpu"}
    theirs = getattr(transformers, type(model).__name__).from_pretrained(
        tmp_path, quantization_config=transformers.TorchAoConfig(thing), **how
    )
    ours = type(model).from_pretrained(tmp_path, quantization_config=TorchAoConfig(thing), **how)
    assert wide.rounded(ours).keys() == wide.rounded(theirs).keys()
    inputs = tiny.prompt(family)
    types = {"token_type_ids": (inputs["input_ids"] == tiny.PICTURE).long()} if family == "gemma3-pictures" else {}
    expected = wide.logits(theirs, {**inputs, **types})
    # A difference of the last bit may round an activation up or down, in bfloat16 and in int8.
    bound = 1e-5 if dtype == torch.float32 and not isinstance(thing, Int8DynamicActivationInt8WeightConfig) else 0.02
    assert (wide.logits(ours, inputs) - expected).abs().max() <= bound * expected.abs().max()


@each_family
@each_scheme
def test_decoding_with_a_cache_gives_the_logits_of_the_whole(
    tiny: ModuleType, family: str, scheme: Any, tmp_path: Path
) -> None:
    quantized = load(wide.model(family), tmp_path, scheme)
    inputs = tiny.prompt(family, length=8)
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tiny.words(2, 3, seed=1)], dim=1)}
    if family == "paligemma":
        whole["token_type_ids"] = torch.tensor([[0] * 8 + [1] * 3] * 2)
    expected = wide.logits(quantized, whole)[:, 7:]
    with torch.no_grad():
        first = quantized(**inputs, use_cache=True)
        steps = [first.logits[:, -1:]]
        for step in range(8, 11):
            token = {"input_ids": whole["input_ids"][:, step : step + 1]}
            steps.append(quantized(**token, past_key_values=first.past_key_values).logits)
    bound = 0.02 if "dynamic" in scheme[0] else 1e-4
    assert (torch.cat(steps, dim=1) - expected).abs().max() < bound * expected.abs().max()


@each_scheme
def test_it_generates(tiny: ModuleType, scheme: Any, tmp_path: Path) -> None:
    quantized = load(wide.model("paligemma"), tmp_path, scheme, torch.bfloat16, device_map="auto")
    ids = quantized.generate(**tiny.prompt("paligemma"), max_new_tokens=4, do_sample=False)
    assert ids.shape == (2, 13)


# -- which layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Gemma3ForCausalLM", gemlens.Gemma3TextConfig(num_hidden_layers=1)),
        ("Gemma3ForCausalLM", gemlens.Gemma3TextConfig(num_hidden_layers=1, tie_word_embeddings=False)),
        ("GemmaModel", gemlens.GemmaConfig(num_hidden_layers=1)),
        ("SiglipVisionModel", gemlens.SiglipVisionConfig(num_hidden_layers=1)),
        ("SiglipVisionModel", gemlens.SiglipVisionConfig(num_hidden_layers=1, vision_use_head=False)),
        ("PaliGemmaForConditionalGeneration", wide.config("paligemma")),
        ("PaliGemmaForConditionalGeneration", wide.config("paligemma", tie_word_embeddings=False)),
        ("Gemma3ForConditionalGeneration", wide.config("gemma3-pictures")),
        ("Gemma3Model", wide.config("gemma3-pictures")),
        ("Gemma3ForSequenceClassification", wide.config("gemma3-pictures")),
    ],
)
def test_the_layers_that_are_left_out_by_default_are_the_references(name: str, config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        ours = getattr(gemlens, name)(config)
        theirs = getattr(transformers, name)(transformers.AutoConfig.from_pretrained(tmp_path))
    left_out = HfQuantizer.get_modules_to_not_convert(theirs)
    linears = {module for module, part in theirs.named_modules() if type(part) is nn.Linear}
    assert set(chosen(ours, TorchAoConfig("int8_weight_only"))) == {
        linear for linear in linears if not any(f"{part}." in f"{linear}.weight" for part in left_out)
    }


def test_named_modules_keep_their_weights_and_what_is_tied_does_in_any_case(tmp_path: Path) -> None:
    wide.model("paligemma").save_pretrained(tmp_path)
    config = TorchAoConfig("int8_weight_only", modules_to_not_convert=["vision_tower", "layers.1.mlp", "q_proj"])
    model = gemlens.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
    kept = {name for name, part in model.named_modules() if type(part) is nn.Linear}
    assert {name.split(".layers.")[-1] for name in kept if "language_model" in name} == {
        *(f"{layer}.self_attn.q_proj" for layer in range(3)),
        *(f"1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    }
    assert all(isinstance(part, QuantizedLinear) != (name in kept) for name, part in model.named_modules()
               if isinstance(part, nn.Linear))  # fmt: skip
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_layers_whose_width_does_not_fit_are_left_out_as_in_the_reference_but_with_a_warning(
    tiny: ModuleType, tmp_path: Path
) -> None:
    model = tiny.fresh("gemma3", intermediate_size=48, hidden_size=32)
    model.save_pretrained(tmp_path)
    thing = PrototypeInt4WeightOnlyConfig(group_size=32)
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.TorchAoConfig(thing), dtype=torch.float32, device_map="cpu"
    )
    with pytest.warns(UserWarning, match=r"3 of 21 .*group_size=32, such as 'model.layers.0.mlp.down_proj' .* of 48"):
        ours = gemlens.Gemma3ForCausalLM.from_pretrained(
            tmp_path, quantization_config=TorchAoConfig(thing), dtype=torch.float32
        )
    assert wide.rounded(ours).keys() == wide.rounded(theirs).keys()
    with pytest.raises(InputError, match=r"No linear layer can be quantized: 21 .* multiple of 256 wide"):
        load(model, tmp_path, ("int8_weight_only", {"group_size": 256}))


# -- a quantized model as any other ------------------------------------------------------------------------------------


@each_scheme
def test_a_quantized_model_is_counted_and_tied_as_before(scheme: Any, tmp_path: Path) -> None:
    model = wide.model("gemma3-pictures")
    quantized = load(model, tmp_path, scheme, torch.bfloat16)
    assert quantized.num_parameters() == model.num_parameters()
    assert quantized.dtype == torch.bfloat16
    assert quantized.state_dict().keys() == model.state_dict().keys()
    assert quantized.lm_head.weight is quantized.get_input_embeddings().weight
    assert not any(quantized.get_parameter(name).requires_grad for name in wide.rounded(quantized))
    assert quantized.num_parameters(only_trainable=True) < model.num_parameters()
    assert not quantized.training
    bits = "int4" if "int4" in scheme[0] else "int8"
    assert f"out_features=256, bias=False, weight={bits} in " in repr(quantized)


@pytest.mark.parametrize(
    ("scheme", "given", "expected"),
    [
        ("int4_weight_only", None, torch.bfloat16),
        ("int4_weight_only", torch.float16, torch.float16),
        ("int8_weight_only", None, torch.float32),
        ("int8_dynamic_activation_int8_weight", None, torch.float32),
        ("int8_weight_only", "auto", torch.float32),
        ("int8_weight_only", "bfloat16", torch.bfloat16),
    ],
)
def test_the_default_dtype_is_bfloat16_for_int4_as_in_the_reference(
    tiny: ModuleType, scheme: str, given: Any, expected: torch.dtype, tmp_path: Path
) -> None:
    model = load(wide.model("gemma3"), tmp_path, (scheme, {}), dtype=given)
    assert model.dtype == expected
    assert model.config.dtype == str(expected).removeprefix("torch.")
    assert wide.logits(model, tiny.prompt("gemma3")).dtype == expected


def test_moving_and_changing_the_dtype(tiny: ModuleType, tmp_path: Path) -> None:
    inputs = tiny.prompt("gemma3")
    int4_model = load(wide.model("gemma3"), tmp_path, ("int4_weight_only", {"group_size": 32}))
    before = wide.logits(int4_model, inputs)
    assert torch.equal(wide.logits(int4_model.to("cpu").float(), inputs), before)
    with pytest.raises(InputError, match=r"read for torch.float32 cannot become torch.bfloat16; load the model with"):
        int4_model.to(torch.bfloat16)
    with pytest.raises(InputError, match=r"int4 runs on CPU and on CUDA .*, but a weight is on meta; use int8"):
        int4_model.to("meta")
    int8_model = load(wide.model("gemma3"), tmp_path, ("int8_weight_only", {}))
    before = wide.logits(int8_model, inputs)
    half = wide.logits(int8_model.to(torch.bfloat16), inputs)
    assert half.dtype == torch.bfloat16
    assert (half.float() - before).abs().max() < 0.02 * before.abs().max()


def test_adapters_on_top_of_int8_weights_get_gradients(tiny: ModuleType, tmp_path: Path) -> None:
    model = load(wide.model("gemma3"), tmp_path, ("int8_weight_only", {}))
    embeds = model.get_input_embeddings()(tiny.words(1, 5)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.square().mean().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().min() > 0


@pytest.mark.parametrize("arguments", [{}, {"device_map": "cpu"}, {"device_map": "auto"}, {"device_map": {"": "cpu"}}])
def test_every_device_map_of_one_device(tiny: ModuleType, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = load(wide.model("gemma3"), tmp_path, wide.SCHEMES[0], **arguments)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert len(wide.rounded(model)) == 21


def test_the_plan_for_several_devices_counts_quantized_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not fit as it is fits when it is quantized, and does not fit two kinds of devices."""
    import accelerate.utils.modeling as modeling

    with torch.device("meta"):
        model = gemlens.Gemma3ForCausalLM(wide.config("gemma3"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(modeling, "get_max_memory", lambda *_: {"cpu": model.num_parameters() * 3 // 2})
    with pytest.raises(InputError, match="does not fit into the memory"):
        placing_for(model, "auto", torch.bfloat16)
    bits = {f"{name}.weight": 4 for name in chosen(model, TorchAoConfig("int4_weight_only", group_size=32))}
    assert placing_for(model, "auto", torch.bfloat16, bits).spread is None
    monkeypatch.setattr("gemlens.checkpoints.device_map._device", torch.device)
    with pytest.raises(InputError, match="names two kinds of devices"):
        placing_for(model, {"model": "cuda", "lm_head": "cpu"}, torch.bfloat16, bits)


# -- int4 and its kernels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 32), (80, 64), (64, 96), (272, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_in_the_order_of_files_has_the_kernels_values_and_goes_back(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    numbers = torch.Generator().manual_seed(0)
    packed: Any = int4.quantize(torch.randn(shape, generator=numbers).to(dtype), 32)
    stored: Any = int4.unpack(packed)
    assert (stored.qdata.dtype, *stored.qdata.shape) == (torch.int8, shape[0], shape[1] // 2)
    signed = torch.stack([(stored.qdata << 4) >> 4, stored.qdata >> 4], -1).flatten(1)
    assert (signed.min(), signed.max()) == (-8, 7)
    scale, zero = (part.T.float().repeat_interleave(32, 1) for part in (stored.scale, stored.zero_point))
    assert torch.allclose(signed * scale + zero, wide.values(packed).float(), rtol=2**-8, atol=2**-8)
    again: Any = int4.pack(stored, dtype)
    assert torch.equal(again.qdata, packed.qdata)
    assert torch.equal(again.scale_and_zero, packed.scale_and_zero)


@pytest.mark.parametrize(
    ("group_size", "outputs", "says"),
    [(256, 32, "it is 256 and a layer has 32"), (32, 40, "a multiple of 16 outputs, but it is 32 and a layer has 40")],
)
def test_what_the_cpus_int4_kernel_cannot_do_is_a_sentence(group_size: int, outputs: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        int4.quantize(torch.zeros(outputs, 256), group_size)


def test_an_order_that_cannot_be_undone_is_refused_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = int4.quantize(torch.randn(64, 64), 32)
    monkeypatch.setattr(int4, "_ROWS", 48)  # as on a processor that would mix more rows than any does
    with pytest.raises(InputError, match="cannot be read back from the order of this cpu's kernel"):
        int4.unpack(packed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_int4_goes_to_cuda_and_back_with_the_same_values(tiny: ModuleType, tmp_path: Path) -> None:
    on_cpu = load(wide.model("gemma3"), tmp_path, wide.SCHEMES[0], torch.bfloat16)
    on_cuda = load(wide.model("gemma3"), tmp_path, wide.SCHEMES[0], torch.bfloat16, device_map="cuda")
    inputs = tiny.prompt("gemma3")
    expected = wide.logits(on_cpu, inputs)
    there = {name: tensor.cuda() for name, tensor in inputs.items()}
    for model in (on_cuda, copy.deepcopy(on_cpu).to("cuda")):
        assert (wide.logits(model, there).cpu() - expected).abs().max() < 0.05 * expected.abs().max()
    on_cuda.save_pretrained(tmp_path / "cuda")
    saved = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path / "cuda")
    for model in (saved, on_cuda.to("cpu")):
        for name, weight in wide.rounded(model).items():
            packed = wide.rounded(on_cpu)[name]
            assert torch.equal(weight.qdata, packed.qdata), name
            assert torch.equal(weight.scale_and_zero, packed.scale_and_zero), name


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_the_config_may_come_as_a_dict_or_through_an_auto_class(tmp_path: Path) -> None:
    wide.model("paligemma").save_pretrained(tmp_path)
    config = TorchAoConfig("int8_weight_only")
    as_dict = gemlens.AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config.to_dict())
    assert as_dict.config.quantization_config == config.to_dict()
    assert len(wide.rounded(as_dict)) == 21 + 12 + 1  # decoder, picture encoder, projector


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("int8_weight_only", "quantization_config is a str, but it must be a TorchAoConfig or a dict"),
        ({"quant_method": "bitsandbytes"}, "one of 'bitsandbytes', but only torchao's are known"),
        ({}, "has no quant_type"),
    ],
)
def test_what_is_no_quantization_config_is_a_sentence(given: Any, says: str, tmp_path: Path) -> None:
    wide.model("gemma3").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=says):
        gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, quantization_config=given)


def test_without_torchao_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match=r"needs the torchao package: pip install 'gemlens\[quantized\]'"):
        load(wide.model("gemma3"), tmp_path, ("int8_weight_only", {}))
