"""from_pretrained and save_pretrained of whole models: round trips, layouts, dtypes, devices."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import gemlens
from gemlens.errors import CheckpointError, ConfigError, InputError

FAMILIES = ("gemma", "gemma2", "gemma3", "paligemma", "paligemma2", "gemma3-pictures")
PICTURES = ("paligemma", "paligemma2", "gemma3-pictures")


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, other[name]), name


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def types_for(inputs: dict[str, Tensor], tiny: ModuleType) -> dict[str, Tensor]:
    """The reference needs to be told where Gemma 3's pictures are."""
    return {**inputs, "token_type_ids": (inputs["input_ids"] == tiny.PICTURE).long()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_a_saved_model_comes_back_whole(tiny: ModuleType, family: str, max_shard_size: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "5GB")
    again = type(model).from_pretrained(tmp_path)
    same_weights(again, model)
    said = {"dtype": "float32", "architectures": [type(model).__name__]}
    assert again.config.to_dict() == {**model.config.to_dict(), **said}
    assert not again.training
    assert again.lm_head.weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_we_save_and_gives_our_logits(tiny: ModuleType, family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.save_pretrained(tmp_path)
    reference, report = getattr(transformers, type(model).__name__).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values())
    same_weights(reference, model)
    inputs = tiny.prompt(family)
    expected = logits(reference.eval(), types_for(inputs, tiny) if family == "gemma3-pictures" else inputs)
    if family == "paligemma2":  # the reference leaves the final soft cap out: docs/differences.md
        cap = model.config.text_config.final_logit_softcapping
        expected = torch.tanh(expected / cap) * cap
    assert torch.allclose(logits(model, inputs), expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_we_open_what_transformers_saves_and_give_its_logits(tiny: ModuleType, family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.save_pretrained(tmp_path / "ours")
    reference = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    again = type(model).from_pretrained(tmp_path / "theirs")
    same_weights(again, model)
    inputs = tiny.prompt(family)
    assert torch.equal(logits(again, inputs), logits(model, inputs))


@pytest.mark.parametrize("family", PICTURES)
def test_both_layouts_of_the_names_are_read(tiny: ModuleType, family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    model.save_pretrained(tmp_path)
    older = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith(("language_model.model.", "vision_tower.", "multi_modal_")) for name in older)
    newer = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(newer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same_weights(type(model).from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("family", "text_class", "base_class"),
    [
        ("paligemma", gemlens.GemmaForCausalLM, gemlens.PaliGemmaModel),
        ("paligemma2", gemlens.Gemma2ForCausalLM, gemlens.PaliGemmaModel),
        ("gemma3-pictures", gemlens.Gemma3ForCausalLM, gemlens.Gemma3Model),
    ],
)
def test_parts_of_a_multimodal_checkpoint_open_on_their_own(
    tiny: ModuleType, family: str, text_class: Any, base_class: Any, tmp_path: Path
) -> None:
    model = tiny.model(family)
    model.save_pretrained(tmp_path)
    same_weights(text_class.from_pretrained(tmp_path).model, model.language_model)
    same_weights(base_class.from_pretrained(tmp_path), model.model)
    same_weights(gemlens.SiglipVisionModel.from_pretrained(tmp_path), model.vision_tower)


def test_a_base_model_and_its_head_class_open_each_others_files(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.model("gemma3")
    model.save_pretrained(tmp_path / "head")
    base = gemlens.Gemma3TextModel.from_pretrained(tmp_path / "head")
    same_weights(base, model.model)
    base.save_pretrained(tmp_path / "base")
    same_weights(gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path / "base"), model)


def test_a_classifier_made_from_a_generator_gets_a_new_head(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.model("gemma3-pictures")
    model.save_pretrained(tmp_path / "generator")
    classifier = gemlens.Gemma3ForSequenceClassification.from_pretrained(tmp_path / "generator", num_labels=3)
    same_weights(classifier.model, model.model)
    assert classifier.score.weight.shape == (3, 16)
    assert classifier.score.weight.std() > 0
    classifier.save_pretrained(tmp_path / "classifier")
    again = gemlens.AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    same_weights(again, classifier)
    reference = transformers.Gemma3ForSequenceClassification.from_pretrained(tmp_path / "classifier")
    same_weights(reference, classifier)


@pytest.mark.parametrize(
    ("auto", "family", "expected"),
    [
        (gemlens.AutoModel, "gemma", "GemmaModel"),
        (gemlens.AutoModel, "gemma2", "Gemma2Model"),
        (gemlens.AutoModel, "gemma3", "Gemma3TextModel"),
        (gemlens.AutoModel, "paligemma", "PaliGemmaModel"),
        (gemlens.AutoModel, "gemma3-pictures", "Gemma3Model"),
        (gemlens.AutoModelForCausalLM, "gemma", "GemmaForCausalLM"),
        (gemlens.AutoModelForCausalLM, "gemma2", "Gemma2ForCausalLM"),
        (gemlens.AutoModelForCausalLM, "gemma3", "Gemma3ForCausalLM"),
        (gemlens.AutoModelForCausalLM, "gemma3-pictures", "Gemma3ForConditionalGeneration"),
        (gemlens.AutoModelForImageTextToText, "paligemma2", "PaliGemmaForConditionalGeneration"),
        (gemlens.AutoModelForImageTextToText, "gemma3-pictures", "Gemma3ForConditionalGeneration"),
    ],
)
def test_auto_classes_choose_the_references_class(
    tiny: ModuleType, auto: Any, family: str, expected: str, tmp_path: Path
) -> None:
    tiny.model(family).save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)).__name__ == expected
    assert type(auto.from_config(gemlens.AutoConfig.from_pretrained(tmp_path))).__name__ == expected
    assert type(getattr(transformers, auto.__name__).from_pretrained(tmp_path)).__name__ == expected


def test_auto_classes_refuse_what_they_do_not_know(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="AutoModelForImageTextToText does not know the model type 'gemma'"):
        gemlens.AutoModelForImageTextToText.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="'llama'"):
        gemlens.AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
    ],
)
def test_dtype_of_the_weights_in_memory(tiny: ModuleType, asked: Any, expected: torch.dtype, tmp_path: Path) -> None:
    tiny.fresh("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    for arguments in ({"dtype": asked}, {"torch_dtype": asked}):
        model = gemlens.AutoModelForCausalLM.from_pretrained(tmp_path, **arguments)
        assert {weight.dtype for weight in model.parameters()} == {expected}
        assert model.dtype == expected


def test_auto_dtype_without_a_word_in_the_config_is_the_files(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.fresh("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"], config["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert gemlens.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "device_map", [None, "auto", "cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_device_maps_of_one_device(tiny: ModuleType, device_map: Any, tmp_path: Path) -> None:
    model = tiny.model("gemma3-pictures")
    model.save_pretrained(tmp_path)
    same_weights(type(model).from_pretrained(tmp_path, device_map=device_map), model)


@pytest.mark.parametrize(
    ("device_map", "says"),
    [
        ({"model.vision_tower": "cpu"}, "says nothing about"),
        ("nonsense", "no device of this machine"),
        ({"": "meta"}, "holds no values"),
    ],
)
def test_device_maps_that_cannot_be_followed_are_sentences(
    tiny: ModuleType, device_map: Any, says: str, tmp_path: Path
) -> None:
    tiny.model("gemma3-pictures").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=says):
        gemlens.Gemma3ForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)


def test_arguments_that_mean_nothing_are_errors(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma3").save_pretrained(tmp_path)
    load = gemlens.Gemma3ForCausalLM.from_pretrained
    with pytest.raises(TypeError, match="unknown arguments 'atn_implementation'"):
        load(tmp_path, atn_implementation="eager")
    with pytest.raises(InputError, match="same argument"):
        load(tmp_path, dtype="auto", torch_dtype="auto")
    with pytest.raises(InputError, match="dtype is 'int8'"):
        load(tmp_path, dtype="int8")
    with pytest.raises(ConfigError, match="describes a model of type 'gemma3_text'"):
        gemlens.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path)


def test_fields_of_the_config_can_be_overridden(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma3").save_pretrained(tmp_path)
    model = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, sliding_window=3, attn_implementation="eager")
    assert model.config.windows == (3, None, 3)
    assert model.attn_implementation == "eager"
    own = gemlens.Gemma3TextConfig.from_pretrained(tmp_path, sliding_window=5)
    assert gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, config=own).config.sliding_window == 5


def test_a_subfolder_and_the_newest_of_two_saves_are_read(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.fresh("gemma")
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="10KB")
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "checkpoint")
    same_weights(gemlens.GemmaForCausalLM.from_pretrained(tmp_path, subfolder="checkpoint"), model)


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma").save_pretrained(tmp_path)
    model = gemlens.GemmaForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    same_weights(gemlens.GemmaForCausalLM.from_pretrained(tmp_path), tiny.model("gemma"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_advice(tiny: ModuleType, name: str, tmp_path: Path) -> None:
    tiny.model("gemma").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match="pickles, which can execute code"):
        gemlens.GemmaForCausalLM.from_pretrained(tmp_path)


def test_one_error_names_all_that_does_not_fit(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.9.mlp.up_proj.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    weights["model.norm.weight"] = torch.zeros(5)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        gemlens.GemmaForCausalLM.from_pretrained(tmp_path)
    said = str(caught.value)
    assert "missing: 'model.layers.0.mlp.up_proj.weight'" in said
    assert "left over: 'model.layers.9.mlp.up_proj.weight'" in said
    assert "'model.norm.weight' is [5] in the file and [16] in the model" in said


def test_nan_weights_are_warned_about(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.fresh("gemma")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"NaN or infinity.*'model.norm.weight'"):
        gemlens.GemmaForCausalLM.from_pretrained(tmp_path)


def test_nothing_in_a_config_is_executed(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.model("gemma").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    hostile = {"auto_map": {"AutoConfig": "evil.Evil"}, "_attn_implementation_internal": "evil/kernel"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **hostile}))
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    model = gemlens.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.extra["auto_map"] == hostile["auto_map"]
    same_weights(model, tiny.model("gemma"))


MEMORY_PROBE = """
import resource, sys, torch, gemlens
gemlens.Gemma3ForCausalLM, torch.zeros(8) @ torch.zeros(8)
import gemlens.checkpoints.pretrained
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = gemlens.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
size = sum(weight.nbytes for weight in model.parameters()) / 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / size)
"""


@pytest.mark.parametrize("max_shard_size", ["5GB", "50MB"])
def test_a_load_at_the_files_dtype_peaks_below_1_2_of_the_model(max_shard_size: str, tmp_path: Path) -> None:
    config = gemlens.Gemma3TextConfig(
        vocab_size=60_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=24, num_attention_heads=4,
        num_key_value_heads=1, head_dim=128,
    )  # fmt: skip
    with torch.device("meta"):
        model = gemlens.Gemma3ForCausalLM(config)
    model.to_empty(device="cpu").to(torch.bfloat16)
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    probe = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    shutil.rmtree(tmp_path)
    assert float(probe.stdout) < 1.2
