"""Quantized models in files: there and back, torchao's own layout, damaged files, and memory while loading."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
import wide
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

import gemlens
from gemlens import TorchAoConfig
from gemlens.checkpoints.safetensors import SafetensorsSource
from gemlens.errors import CheckpointError, InputError
from gemlens.quantization import int4

Q_PROJ = "model.layers.0.self_attn.q_proj"


def quantized(family: str, scheme: Any, folder: Path, dtype: Any = torch.bfloat16, **arguments: Any) -> Any:
    """A model that was rounded when it was loaded."""
    model = wide.model(family)
    model.save_pretrained(folder / "float")
    config = TorchAoConfig(scheme[0], **scheme[1])
    return type(model).from_pretrained(folder / "float", dtype=dtype, quantization_config=config, **arguments)


def parts(weight: Any) -> dict[str, torch.Tensor]:
    return {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", wide.FAMILIES)
@pytest.mark.parametrize("scheme", wide.SCHEMES, ids=str)
@pytest.mark.parametrize("max_shard_size", ["5GB", "50KB"])
def test_a_saved_quantized_model_comes_back_with_the_same_bits(
    tiny: ModuleType, family: str, scheme: Any, max_shard_size: str, tmp_path: Path
) -> None:
    model = quantized(family, scheme, tmp_path)
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    written = [path for path in (tmp_path / "saved").iterdir() if path.suffix != ".json"]
    assert {path.suffix for path in written} == {".safetensors"}
    assert (len(written) > 1) == (max_shard_size == "50KB")
    said = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert said["quantization_config"] == TorchAoConfig(scheme[0], **scheme[1]).to_dict()
    again = type(model).from_pretrained(tmp_path / "saved")
    assert again.dtype == torch.bfloat16
    mine, other = wide.rounded(again), wide.rounded(model)
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        assert all(torch.equal(part, parts(other[name])[key]) for key, part in parts(weight).items()), name
    inputs = tiny.prompt(family)
    assert torch.equal(wide.logits(again, inputs), wide.logits(model, inputs))
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_what_was_named_to_stay_stays_after_saving(tmp_path: Path) -> None:
    scheme = ("int8_weight_only", {"modules_to_not_convert": ["mlp", "vision_tower"]})
    model = quantized("gemma3-pictures", scheme, tmp_path)
    model.save_pretrained(tmp_path / "saved")
    again = gemlens.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert wide.rounded(again).keys() == wide.rounded(model).keys()
    assert len(wide.rounded(again)) == 12


def test_int4_is_saved_the_same_on_every_processor(tiny: ModuleType, tmp_path: Path) -> None:
    """In memory the order depends on the processor; a file that was written on one opens on another."""
    model = quantized("gemma3", wide.SCHEMES[0], tmp_path, torch.float32)
    model.save_pretrained(tmp_path / "saved")
    torch.save(wide.logits(model, tiny.prompt("gemma3")), tmp_path / "expected.pt")
    program = f"""
import sys; sys.path[:0] = {[str(Path(wide.__file__).parent), str(Path(tiny.__file__).parent)]}
import torch, tiny, wide, gemlens
model = gemlens.Gemma3ForCausalLM.from_pretrained({str(tmp_path / "saved")!r})
expected = torch.load({str(tmp_path / "expected.pt")!r})
difference = (wide.logits(model, tiny.prompt("gemma3")) - expected).abs().max().item()
print(torch.backends.cpu.get_cpu_capability(), difference)
model.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    capability, difference = done.stdout.split()
    assert capability == "DEFAULT"
    assert float(difference) < 1e-3
    mine, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("saved", "again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("family", ["paligemma", "gemma3-pictures"])
def test_parts_of_a_quantized_checkpoint_open_on_their_own(tiny: ModuleType, family: str, tmp_path: Path) -> None:
    model = quantized(family, wide.SCHEMES[0], tmp_path)
    model.save_pretrained(tmp_path / "saved")
    text_class = gemlens.GemmaForCausalLM if family == "paligemma" else gemlens.Gemma3ForCausalLM
    text = text_class.from_pretrained(tmp_path / "saved")
    assert text.dtype == torch.bfloat16
    assert len(wide.rounded(text)) == 21
    ids = tiny.words(1, 7)
    causal = {"token_type_ids": torch.ones_like(ids)} if family == "paligemma" else {}
    expected = wide.logits(model, {"input_ids": ids, **causal})
    # PaliGemma's mask is given to SDPA as a matrix, which adds in another order.
    bound = 0.02 * expected.abs().max() if family == "paligemma" else 0
    assert (wide.logits(text, {"input_ids": ids}) - expected).abs().max() <= bound
    tower = gemlens.SiglipVisionModel.from_pretrained(tmp_path / "saved")
    assert len(wide.rounded(tower)) == 12
    assert torch.equal(tower(tiny.pixels(1)).last_hidden_state, model.vision_tower(tiny.pixels(1)).last_hidden_state)


def test_another_dtype_may_be_asked_for(tiny: ModuleType, tmp_path: Path) -> None:
    model = quantized("gemma3", wide.SCHEMES[0], tmp_path)
    model.save_pretrained(tmp_path / "saved")
    wider = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert {weight.dtype for weight in wider.parameters()} == {torch.float32}
    expected = wide.logits(model, tiny.prompt("gemma3")).float()
    assert (wide.logits(wider, tiny.prompt("gemma3")) - expected).abs().max() < 0.05 * expected.abs().max()


# -- other programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", wide.SCHEMES, ids=str)
def test_torchaos_own_reader_understands_what_we_write(scheme: Any, tmp_path: Path) -> None:
    model = quantized("gemma3", scheme, tmp_path)
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    read, left_over = unflatten_tensor_state_dict(load_file(file), header)
    assert left_over == {}
    assert read.keys() == model.state_dict().keys() - {"lm_head.weight"}  # which is the embedding
    for name, weight in wide.rounded(model).items():
        same: Any = weight if isinstance(weight, Int8Tensor) else int4.unpack(weight)
        assert type(read[name]) is type(same)
        assert read[name].__tensor_flatten__()[1] == {**same.__tensor_flatten__()[1], **read_shape(read[name])}
        assert all(torch.equal(part, parts(read[name])[key]) for key, part in parts(same).items()), name


def read_shape(weight: Any) -> dict[str, Any]:
    """JSON has lists for torch.Size."""
    return {} if isinstance(weight, Int8Tensor) else {"shape": weight.__tensor_flatten__()[1]["shape"]}


@pytest.mark.parametrize("older", [False, True], ids=["zeros", "no zeros"])
def test_we_open_what_torchaos_own_writer_writes(tiny: ModuleType, older: bool, tmp_path: Path) -> None:
    model = quantized("gemma3", ("int8_weight_only", {}), tmp_path)
    state = {name: weight.data for name, weight in model.named_parameters()}
    tensors, header = flatten_tensor_state_dict(state)
    kept = {name: tensor for name, tensor in tensors.items() if not (older and name.endswith("_zero_point"))}
    how = transformers.TorchAoConfig(Int8WeightOnlyConfig()).to_dict()
    said = {**model.config.to_dict(), "quantization_config": how}
    (tmp_path / "config.json").write_text(json.dumps(said))
    save_file(kept, tmp_path / "model.safetensors", metadata=header)
    again = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(wide.logits(again, tiny.prompt("gemma3")), wide.logits(model, tiny.prompt("gemma3")))


def test_the_reference_can_only_pickle_a_quantized_model_and_we_write_safetensors(tmp_path: Path) -> None:
    model = quantized("gemma3", ("int8_weight_only", {}), tmp_path)
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig()), device_map="cpu"
    )
    with pytest.raises(ValueError, match=r"quantized with QuantizationMethod\.TORCHAO and is not serializable"):
        theirs.save_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[wide.SCHEMES[0], wide.SCHEMES[2]], ids=["int4", "int8"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a quantized model."""
    quantized("gemma3", request.param, tmp_path).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **fields}))


def rows_lost(part: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    name = f"{Q_PROJ}._weight_{part}"
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


DAMAGES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "scales that are missing": lambda tensors: tensors.pop(f"{Q_PROJ}._weight_scale"),
    "numbers that are missing": lambda tensors: tensors.pop(f"{Q_PROJ}._weight_qdata"),
    "scales of too few rows": rows_lost("scale"),
    "zeros of too few rows": rows_lost("zero_point"),
    "numbers of another format": lambda tensors: tensors.update({f"{Q_PROJ}._weight_qdata": torch.ones(128, 64)}),
    "numbers without a shape": lambda tensors: tensors.update({f"{Q_PROJ}._weight_qdata": torch.ones(9).char()}),
    "no numbers at all": lambda tensors: tensors.update({f"{Q_PROJ}._weight_qdata": torch.ones(0, 64).char()}),
    "a part that nobody knows": lambda tensors: tensors.update({f"{Q_PROJ}._weight_act_pre_scale": torch.ones(1)}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_parts_that_do_not_fit_are_a_sentence(saved: Path, damage: Any) -> None:
    change(saved, damage)
    with pytest.raises(CheckpointError, match=rf"'{Q_PROJ}.weight' is in the file as .*, which is no weight of int"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


def test_numbers_of_another_shape_than_the_models_are_a_sentence(saved: Path) -> None:
    change(saved, lambda tensors: tensors.update(
        {f"{Q_PROJ}.{part}": tensors[f"model.layers.0.mlp.up_proj.{part}"].clone()
         for part in ("_weight_qdata", "_weight_scale", "_weight_zero_point")}
    ))  # fmt: skip
    with pytest.raises(
        CheckpointError, match=rf"'{Q_PROJ}.weight' is \[256, 128\] in the file and \[128, 128\] in the"
    ):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


def test_layers_that_the_model_does_not_have_are_left_over(saved: Path) -> None:
    change_config(saved, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    with pytest.raises(CheckpointError, match=r"left over: .*'model\.layers\.2\.mlp\.up_proj\.weight'"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


def test_a_scheme_that_is_not_the_files_is_a_sentence(saved: Path) -> None:
    change_config(saved, quantization_config=TorchAoConfig("int8_weight_only").to_dict())
    with pytest.raises(CheckpointError, match="which is no weight of int8 in rows"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


def test_a_file_whose_config_does_not_say_how_it_is_quantized_is_a_sentence(saved: Path) -> None:
    change_config(saved, quantization_config=None)
    with pytest.raises(
        CheckpointError, match=r"are quantized, but config.json has no quantization_config that says how"
    ):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"config.json: .* one of 'gptq', .* Use the checkpoint as it was before"),
        (["int8"], r"config.json has the quantization_config \['int8'\], but it must be an object"),
    ],
)
def test_another_programs_quantization_is_a_sentence(said: Any, says: str, tmp_path: Path) -> None:
    wide.model("gemma3").save_pretrained(tmp_path)
    change_config(tmp_path, quantization_config=said)
    with pytest.raises(CheckpointError, match=says):
        gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path)


def test_a_quantized_embedding_is_a_sentence(saved: Path) -> None:
    def move(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.embed_tokens.weight"]
        for part in ("_weight_qdata", "_weight_scale", "_weight_zero_point"):
            tensors[f"model.embed_tokens.{part}"] = tensors[f"{Q_PROJ}.{part}"].clone()

    change(saved, move)
    with pytest.raises(InputError, match=r"'model.embed_tokens' cannot be quantized: it is no linear layer"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)


def test_int8_weights_with_a_zero_elsewhere_are_a_sentence(tmp_path: Path) -> None:
    quantized("gemma3", ("int8_weight_only", {}), tmp_path).save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors[f"{Q_PROJ}._weight_zero_point"].fill_(3))
    with pytest.raises(CheckpointError, match=rf"'{Q_PROJ}.weight' has zeros that are not 0"):
        gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path)


def test_nan_is_warned_of_in_weights_and_in_scales(saved: Path) -> None:
    change(saved, lambda tensors: tensors[f"{Q_PROJ}._weight_scale"].fill_(float("nan")))
    with pytest.warns(UserWarning, match=rf"NaN or infinity.*'{Q_PROJ}.weight'"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved)
    folder = saved.parent / "float"
    change(folder, lambda tensors: tensors[f"{Q_PROJ}.weight"][3, 5].fill_(float("inf")))
    with pytest.warns(UserWarning, match=rf"NaN or infinity.*'{Q_PROJ}.weight'"):
        gemlens.Gemma3ForCausalLM.from_pretrained(folder, quantization_config=TorchAoConfig("int8_weight_only"))


def test_a_quantized_checkpoint_is_not_quantized_again(saved: Path) -> None:
    stored = json.loads((saved / "config.json").read_text())["quantization_config"]
    gemlens.Gemma3ForCausalLM.from_pretrained(saved, quantization_config=stored)
    with pytest.raises(InputError, match=r"is quantized already, as int\d in groups of \d\d; load it without"):
        gemlens.Gemma3ForCausalLM.from_pretrained(saved, quantization_config=TorchAoConfig("int8_weight_only"))


def test_a_model_that_others_quantized_is_not_saved_half(tmp_path: Path) -> None:
    from torchao.quantization import quantize_

    model = wide.model("gemma3")
    quantize_(model.model, Int8WeightOnlyConfig())
    with pytest.raises(InputError, match="is no plain tensor of F64"):
        model.save_pretrained(tmp_path / "never")


def test_a_file_that_changed_since_it_was_opened_is_a_sentence(saved: Path) -> None:
    source = SafetensorsSource(saved / "model.safetensors")
    name = f"{Q_PROJ}._weight_scale"
    change(saved, rows_lost("scale"))
    with pytest.raises(CheckpointError, match="changed while it was read; load it again"):
        source.raw(name)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"'{name}' cannot be read from"):
        source.raw(name)
    with pytest.raises(CheckpointError, match="hold no tensor 'x'"):
        source.transient("x")
    with pytest.raises(CheckpointError, match="is stored as I8, but only F64"):
        source.transient(f"{Q_PROJ}._weight_qdata")


# -- memory ------------------------------------------------------------------------------------------------------------


def test_of_the_wide_weights_one_is_alive_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alive: list[Any] = []
    most = 0
    read = SafetensorsSource.transient

    def watched(self: SafetensorsSource, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(weight() is not None for weight in alive))
        tensor = read(self, name, dtype)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsSource, "transient", watched)
    gc.disable()  # nothing may wait for the collector
    try:
        model = quantized("gemma3", wide.SCHEMES[0], tmp_path)
    finally:
        gc.enable()
    assert len(alive) == len(wide.rounded(model)) == 21
    assert most == 0, "when the next weight is read, those before it are gone"
    assert not any(weight() is not None for weight in alive)


PEAK = """
import re, sys
from pathlib import Path
import torch, gemlens

def memory(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

warm, folder, scheme = sys.argv[1:]
load = gemlens.Gemma3ForCausalLM.from_pretrained
config = gemlens.TorchAoConfig(scheme)
load(warm, dtype=torch.bfloat16, quantization_config=config)  # what torch and torchao need themselves
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = memory("VmRSS")
model = load(folder, dtype=torch.bfloat16, quantization_config=config)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("scheme", ["int4_weight_only", "int8_weight_only"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_the_peak_while_loading_is_near_the_quantized_size(scheme: str, stored: torch.dtype, tmp_path: Path) -> None:
    """310 MB of bfloat16 (or 620 of float32) become 83 or 158 MB; a layer has at most 4 million numbers.

    torchao needs about 20 bytes per number of the layer at hand.
    """
    numbers = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "pad_token_id": 0}
    for folder, width, depth in (("warm", 128, 1), ("large", 1024, 10)):
        config = gemlens.Gemma3TextConfig(
            vocab_size=1000, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth, **numbers
        )
        model = gemlens.Gemma3ForCausalLM(config).to(stored)
        model.save_pretrained(tmp_path / folder)
    layers = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("proj.weight"))
    size = layers * (0.5 + 4 / 128 if "int4" in scheme else 1) + (model.num_parameters() - layers) * 2
    arguments = [sys.executable, "-c", PEAK, str(tmp_path / "warm"), str(tmp_path / "large"), scheme]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < size + 24 * 4 * 1024 * 1024 + 20e6
