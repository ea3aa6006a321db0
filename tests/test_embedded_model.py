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
    scene = Scenes("test", seed=2, tasks=("detect",), count=1)
    found = pipeline("detect", model="gemlens-tiny")(scene[0].pictures[0], scene[0].prefix.removeprefix("detect "))
    assert isinstance(found, list)
