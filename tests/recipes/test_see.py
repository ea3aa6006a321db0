"""What the picture encoder of gemlens-tiny is taught: labels by a second count, and a loss that falls."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gemlens import PaliGemmaProcessor, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.scene import Scene
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.tasks.masks import encode_mask
from gemlens.training.loop import Run
from gemlens.training.settings import settings_of
from training.small_run import model_folder

sys.path.append(str(Path(__file__).parents[2] / "recipes" / "gemlens-tiny"))
import see

SIDE = 8  # patches
CODEC = MaskCodec.load(see.MASK_CODEC)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> see.Labels:
    processor = PaliGemmaProcessor.from_pretrained(model_folder(tmp_path_factory.mktemp("model")))
    processor.image_processor = SiglipImageProcessor(size={"height": 128, "width": 128}, image_seq_length=SIDE**2)
    return see.Labels(processor, SIDE, CODEC)


def scenes(count: int) -> list[tuple[see.Seen, Scene]]:
    source = see.Sights()
    examples = [source[number] for number in range(count)]
    return [(example, example.scene) for example in examples if example.scene is not None]


def test_patches_name_the_thing_that_covers_most_of_them_and_its_box_and_codes(labels: see.Labels) -> None:
    asked = scenes(12)
    batch = labels([example for example, _ in asked])
    assert batch["pixel_values"].shape == (len(asked), 3, 128, 128)
    before = things = 0
    for row, (_, scene) in enumerate(asked):
        height, width = (np.arange(size) * SIDE // size for size in reversed(scene.picture.size))
        for patch in range(SIDE**2):
            inside = np.ix_(height == patch // SIDE, width == patch % SIDE)
            shares = [thing.mask[inside].mean() for thing in scene.things]
            owner = int(batch["owner"][row, patch])
            if max(shares, default=0) <= see.LEAST:
                assert (owner, int(batch["labels"][row, patch])) == (-1, see.NOTHING)
                continue
            thing = scene.things[owner - before]
            assert shares[owner - before] == max(shares)
            assert KINDS[int(batch["labels"][row, patch])] == thing.kind
            expected = [thing.box.top, thing.box.left, thing.box.bottom, thing.box.right]
            sides = [scene.picture.height, scene.picture.width] * 2
            assert batch["edges"][row, patch].tolist() == pytest.approx(np.divide(expected, sides))
            assert batch["codes"][owner].tolist() == list(encode_mask(thing.mask, thing.box, CODEC))
            things += 1
        assert batch["middle"][row].sum() <= len(scene.things)
        before += len(scene.things)
    assert things > 30
    assert before == len(batch["codes"])


def test_patches_name_the_letters_whose_middle_they_hold(labels: see.Labels) -> None:
    asked = [(example, scene) for example, scene in scenes(20) if scene.words]
    letters = labels([example for example, _ in asked])["letters"]
    for row, (_, scene) in enumerate(asked):
        written: list[list[str]] = [[] for _ in range(SIDE**2)]
        for word in scene.words:
            for letter, (x, y) in zip(word.text, word.centres, strict=True):
                place = int(y / scene.picture.height * SIDE) * SIDE + int(x / scene.picture.width * SIDE)
                written[place].append(letter)
        for patch, expected in enumerate(written):
            found = [see.LETTERS[number - 1] for number in letters[row, patch].tolist() if number]
            assert found == expected[: see.SLOTS]


def test_a_pupil_learns_with_the_loop_of_gemlens_train(labels: see.Labels, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=128, patch_size=16,
        vision_use_head=False,
    )  # fmt: skip
    pupil = see.Pupil(SiglipVisionModel(vision))
    said = {"model": "here", "data": ["scenes:train"], "output": str(tmp_path), "steps": 30, "batch_size": 8}
    settings = settings_of({**said, "method": "full", "optimizer": "muon", "learning_rate": 1e-2, "log_every": 1})
    look = see.Look(pupil, labels, count=8)
    Run(settings, pupil, see.Sights(), labels, objective=see.Sight(), evaluate=look).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1].keys() >= {"validation_loss", "kinds", "boxes", "codes", "letters"}
