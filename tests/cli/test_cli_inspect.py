"""`gemlens inspect`: true numbers, without reading weights."""

import json
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import gemlens as library
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.facts import memory_plan, parameters_by_part, stored_tensors
from gemlens.kernels.machine import machine

Call = Callable[..., Result]
Folder = Callable[[str], str]
FAMILIES = ["gemma3-text", "gemma3-pictures", "paligemma", "paligemma2"]
STOPS = ["ask", "encode", "prefill", "step", "sample", "decode", "understand"]


def model_of(folder: str) -> Any:
    auto: Any = library.AutoModelForCausalLM
    if library.AutoConfig.from_pretrained(folder).model_type in library.AutoModelForImageTextToText.classes:
        auto = library.AutoModelForImageTextToText
    return auto.from_pretrained(folder)


def without_weights(folder: str, copy: Path) -> Path:
    """The folder with weights whose data is gone: a header and nothing that could be read as numbers."""
    for file in Path(folder).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    length = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    data = weights.read_bytes()
    weights.write_bytes(data[:length] + b"\xff" * (len(data) - length))  # NaN, wherever somebody looks
    return copy


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_model_and_no_weights_are_needed(
    gemlens: Call, checkpoint: Folder, tmp_path: Path, name: str
) -> None:
    model = model_of(checkpoint(name))
    copy = without_weights(checkpoint(name), tmp_path)
    told = json.loads(gemlens("inspect", copy, "--json", "--tensors").stdout)
    assert told["parameters"]["total"] == model.num_parameters()
    embedding = model.get_input_embeddings().weight.numel()
    assert told["parameters"]["embedding"] == embedding
    decoder = sum(weight.numel() for weight in model.text_model().parameters()) - embedding
    assert told["parameters"]["decoder"] == decoder
    assert told["parameters"].get("picture encoder", 0) == sum(
        weight.numel() for name, weight in model.named_parameters() if "vision_tower" in name
    )
    (copy / "model.safetensors").unlink()
    assert json.loads(gemlens("inspect", copy, "--json").stdout) == {key: told[key] for key in told if key != "tensors"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("context", [7, 16, 40])
def test_planned_keys_and_values_are_what_a_static_cache_takes(checkpoint: Folder, name: str, context: int) -> None:
    """A ring of a static cache has one slot more, for what nobody sees."""
    model, batch = model_of(checkpoint(name)), 3
    plan = memory_plan(model.config, model.num_parameters(), "float32", context, batch)
    cache = library.StaticCache(model.text_model(), context)
    with torch.inference_mode():
        model.text_model()(torch.ones(batch, context, dtype=torch.int64), past_key_values=cache)
    taken = 0
    for layer in cache.layers:
        assert layer.keys is not None
        assert layer.values is not None
        slots = layer.keys.shape[2] - (1 if layer.is_sliding else 0)
        taken += (layer.keys[:, :, :slots].numel() + layer.values[:, :, :slots].numel()) * 4
    assert plan.keys_and_values == taken
    assert plan.weights == sum(weight.nbytes for weight in {*model.parameters()})
    assert memory_plan(model.config, model.num_parameters(), "bfloat16", context, batch).total * 2 == plan.total


def test_planned_memory_of_a_picture_is_what_torch_allocates() -> None:
    from torch.profiler import ProfilerActivity, profile

    vision = library.SiglipVisionConfig(
        hidden_size=64, intermediate_size=240, num_hidden_layers=3, num_attention_heads=2, image_size=112, patch_size=7,
        vision_use_head=False,
    )  # fmt: skip
    encoder, picture = library.SiglipVisionModel(vision).eval(), torch.zeros(1, 3, 112, 112)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        encoder(picture)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    plan = memory_plan(library.Gemma3Config(vision_config=vision), 0, "float32", 1, 1)
    assert plan.picture == pytest.approx(max(accumulate(sizes)), rel=0.05)


def test_tensors_are_those_of_the_file(checkpoint: Folder, tmp_path: Path) -> None:
    library.AutoModelForCausalLM.from_pretrained(checkpoint("gemma3-text"), dtype="bfloat16").save_pretrained(tmp_path)
    from safetensors.torch import load_file

    held = load_file(tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in stored_tensors(Checkpoint.of(str(tmp_path)))}
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        assert (found[name].shape, found[name].format, found[name].nbytes) == (
            tuple(tensor.shape),
            "BF16",
            tensor.nbytes,
        )


def test_a_person_reads_parts_layers_memory_and_tensors(gemlens: Call, checkpoint: Folder) -> None:
    shown = gemlens("inspect", checkpoint("gemma3-pictures"), "--context", 100, "--batch", 2, "--tensors").stdout
    assert re.search(r"^parameters .* M: .*picture encoder", shown, re.MULTILINE)
    assert re.search(r"^1 layers +see 16 tokens +0\n1 layers +see all +1$", shown, re.MULTILINE)
    assert re.search(r"^keys and values, 2 x 100 tokens +\S+ kB +\S+ kB$", shown, re.MULTILINE)
    assert re.search(r"^language_model.model.norm.weight +\[128\] +F32 +512 B$", shown, re.MULTILINE)
    assert "memory" not in gemlens("inspect", checkpoint("gemma3-text")).stdout.split()


@pytest.mark.parametrize("name", ["gemma3-text", "gemma3-pictures", "paligemma"])
def test_the_trace_has_seven_stops_with_the_true_shapes(gemlens: Call, checkpoint: Folder, cow: str, name: str) -> None:
    picture = [] if name == "gemma3-text" else ["--image", cow]
    told = json.loads(gemlens("inspect", checkpoint(name), "--trace", "What is it?", *picture, "--json").stdout)
    assert [stop["word"] for stop in told["trace"]] == STOPS
    by_word = {stop["word"]: stop for stop in told["trace"]}
    reader = library.AutoProcessor.from_pretrained(checkpoint(name))
    mark = {"gemma3-text": "", "gemma3-pictures": "<start_of_image>", "paligemma": "<image>"}[name]
    images = {"images": [[library.processing.pictures.pictures.open_picture(cow)]]} if picture else {}
    inputs: Any = reader(text=f"{mark}What is it?", return_tensors="pt", **images)
    assert f"input_ids {list(inputs['input_ids'].shape)}" in by_word["encode"]["gives"]
    assert ("pixel_values" in by_word["encode"]["gives"]) == bool(picture)
    vocabulary = told["config"].get("text_config", told["config"])["vocab_size"]
    assert f"logits [1, 1, {vocabulary}]" in by_word["prefill"]["gives"]
    assert by_word["understand"]["gives"] == "findings [0]"  # two tokens are none
    assert all(stop["milliseconds"] >= 0 for stop in told["trace"])
    shown = gemlens("inspect", checkpoint(name), "--trace", "What is it?", *picture).stdout
    assert [line.split()[0] for line in shown.splitlines()[-7:]] == STOPS


def test_parameters_of_published_sizes_are_counted_without_weights() -> None:
    """268 M, as the name of Gemma 3 270M says."""
    config = library.Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256,
    )  # fmt: skip
    assert sum(parameters_by_part(config).values()) == 268_098_176


def test_it_shows_what_runs_on_this_machine(gemlens: Call) -> None:
    here = machine()
    told = json.loads(gemlens("inspect", "--machine", "--json").stdout)
    assert told["kernels"] == here.kernels
    assert told["threads"] == here.threads
    assert told["usable"][-1] == "reference"
    assert here.kernels in told["usable"]
    assert here.kernels in gemlens("inspect", "--machine").stdout


def test_without_a_model_there_is_nothing_to_inspect(gemlens: Call) -> None:
    done = gemlens("inspect")
    assert done.exit_code == 2
    assert "pass --machine" in " ".join(done.output.replace("│", " ").split())
