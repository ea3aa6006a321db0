"""gemlens-tiny as it lies in the package: small, whole, and the same to transformers."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from gemlens import AutoProcessor, PaliGemmaForConditionalGeneration, pipeline
from gemlens.assets import MODEL
from gemlens.scenes.questions import TASKS
from gemlens.scenes.source import Scenes
from gemlens.tasks.mask_codec import MaskCodec

CODEC = MODEL / "mask_codec.npz"
LONGEST = 40  # tokens of an answer that are compared


def test_it_is_a_paligemma_of_5_to_15_million_parameters_in_25_megabytes() -> None:
    model = PaliGemmaForConditionalGeneration.from_pretrained(MODEL)
    assert 5e6 <= model.num_parameters() <= 15e6
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 25e6
    assert type(model.vision_tower).__name__ == "SiglipVisionModel"
    assert type(model.language_model).__name__ == "GemmaModel"
    codec = MaskCodec.load(CODEC)
    assert codec.encode(torch.zeros(1, 64, 64)).shape == (1, 16)


@cache
def ours() -> tuple[Any, Any]:
    return PaliGemmaForConditionalGeneration.from_pretrained(MODEL).eval(), AutoProcessor.from_pretrained(MODEL)


@cache
def theirs() -> tuple[Any, Any]:
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32)
    return model.eval(), transformers.PaliGemmaProcessor.from_pretrained(MODEL)


@pytest.mark.parametrize("task", TASKS)
def test_transformers_opens_the_folder_and_gives_the_same_tokens(task: str) -> None:
    source = Scenes("test", seed=2, tasks=(task,), codec=CODEC, count=3)
    for number in range(len(source)):
        example = source[number]
        said = []
        for model, processor in (ours(), theirs()):
            inputs = processor(images=example.pictures[0], text=f"<image>{example.prefix}", return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            said.append((inputs["input_ids"].tolist(), ids.tolist()))
        assert said[0] == said[1], example.id


def test_its_name_opens_it_in_a_pipeline() -> None:
    """And its boxes lie where the scene has things of that kind."""
    source = Scenes("test", seed=2, tasks=("detect",), count=20)
    number = next(number for number in range(20) if source[number].suffix and ";" not in source[number].prefix)
    label = source[number].prefix.removeprefix("detect ")
    found = pipeline("detect", model="gemlens-tiny")(source[number].pictures[0], label)
    boxes = [thing.box for thing in source.scene(number).things if thing.kind.name == label]
    assert found
    assert all(finding.label == label for finding in found)
    for x, y in ((finding.box.left + finding.box.right, finding.box.top + finding.box.bottom) for finding in found):
        assert any(box.left < x / 2 < box.right and box.top < y / 2 < box.bottom for box in boxes)
