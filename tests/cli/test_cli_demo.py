"""`gemlens demo`: all tasks on one picture, with what the caption names; and what the embedded model makes of it."""

import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from scripted_model import make_all_say
from typer.testing import Result

from gemlens import PaliGemmaForConditionalGeneration
from gemlens.assets import DEMO_PICTURE, DEMO_SEED
from gemlens.cli.demo import Named, named_in, questions
from gemlens.processing.pictures.pictures import open_picture
from gemlens.scenes.kinds import BY_NAME, KINDS
from gemlens.scenes.questions import caption
from gemlens.scenes.scene import draw
from gemlens.tasks.mask_codec import MaskCodec

Call = Callable[..., Result]
CODES = "".join(f"<seg{n:03d}>" for n in range(16))
HALF = "<loc0000><loc0000><loc1023><loc0511>"
ANSWERS = {
    "caption en": "a cat, two dogs and the word TREE",
    "answer en how many dogs are there?": "2",
    "answer en where is the cat?": "left",
    "detect cat ; dog": f"{HALF} cat ; <loc0000><loc0600><loc0500><loc1023> dog",
    "segment cat": f"{HALF}{CODES} cat",
    "ocr": "TREE",
}


@pytest.fixture
def embedded(
    checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[dict[str, str]], None]:
    """Puts a model that answers by a script in the place of the embedded one, and takes the network away."""
    folder = tmp_path / "embedded"
    shutil.copytree(checkpoint("paligemma"), folder)
    MaskCodec().save(folder / "mask_codec.npz")
    monkeypatch.setattr("gemlens.checkpoints.hub.MODEL", folder)
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.chdir(tmp_path)
    return lambda answers: make_all_say(monkeypatch, str(folder), answers)


def test_every_task_is_shown_with_its_answer_and_the_drawing_is_written(
    gemlens: Call, embedded: Any, tmp_path: Path
) -> None:
    embedded(ANSWERS)
    result = gemlens("demo")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = re.findall(r"^> (.*)\n(.*)\n", result.stdout, re.MULTILINE)
    assert shown == list(ANSWERS.items())
    width, height = open_picture(DEMO_PICTURE).size
    numbers = PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "embedded").num_parameters()
    millions = f"{numbers / 1e6:.1f} million parameters"
    assert f"{millions}, looks at a drawn scene, {width} x {height}." in result.stdout
    assert re.search(rf"= +cat +0, 0, {0.4995 * width:.0f}, {height}\n", result.stdout)
    assert "seconds; gemlens-demo.png shows what was found." in result.stdout
    assert "gemlens demo --image mine.jpg" in result.stdout
    difference = ImageChops.difference(open_picture(tmp_path / "gemlens-demo.png"), open_picture(DEMO_PICTURE))
    assert difference.getbbox() == (0, 0, width, height)


def test_a_picture_of_ones_own_is_asked_about_what_its_caption_names(
    gemlens: Call, embedded: Any, tmp_path: Path
) -> None:
    Image.new("RGB", (50, 40), "white").save(tmp_path / "mine.jpg")
    embedded({"caption en": "an owl", "answer en how many owls are there?": "1", "answer en where is the owl?": "top",
              "detect owl": f"{HALF} owl", "segment owl": "", "ocr": ""})  # fmt: skip
    result = gemlens("demo", "--image", "mine.jpg", "--save", "out/found.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "looks at mine.jpg, 50 x 40." in result.stdout
    assert open_picture(tmp_path / "out" / "found.png").getpixel((0, 20)) != (255, 255, 255)


def test_a_caption_without_known_things_is_said_to_be_one(gemlens: Call, embedded: Any, tmp_path: Path) -> None:
    embedded({"caption en": "nothing", "ocr": "STOP"})
    result = gemlens("demo", "--save", "out.png")
    assert result.exit_code == 0
    assert f"names none of the {len(KINDS)} kinds of things" in result.stdout
    assert "> ocr\nSTOP\n" in result.stdout
    assert open_picture(tmp_path / "out.png").tobytes() == open_picture(DEMO_PICTURE).tobytes()


def test_mistakes_are_sentences(gemlens: Call, embedded: Any) -> None:
    embedded({})
    for arguments, told in (
        (["--image", "none.jpg"], "The picture 'none.jpg' does not exist"),
        (["--save", "out.txt"], "--save 'out.txt' must end in one of .png"),
    ):
        result = gemlens("demo", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert told in result.stderr


def test_things_are_named_as_captions_of_scenes_name_them() -> None:
    for seed in range(100):
        scene = draw(seed, "test")
        kinds = [thing.kind for thing in scene.things]
        text = caption(scene, None).answer  # type: ignore[arg-type]  # captions leave nothing to chance
        expected = {Named(kind, kinds.count(kind)) for kind in kinds}
        assert set(named_in(text)) == expected
        assert len(named_in(text)) == len(expected)


def test_questions_are_of_what_is_there_most_often_and_of_what_is_there_once() -> None:
    cat, dogs = Named(BY_NAME["cat"], 1), Named(BY_NAME["dog"], 3)
    assert questions([cat, dogs]) == ["how many dogs are there?", "where is the cat?"]
    assert questions([dogs]) == ["how many dogs are there?", "is there a dog?"]


def test_the_picture_is_the_scene_of_its_seed() -> None:
    """Nearly: another version of Pillow may resize a little differently."""
    picture, scene = open_picture(DEMO_PICTURE), draw(DEMO_SEED, "test")
    assert picture.size == scene.picture.size
    difference = np.asarray(picture).astype(int) - np.asarray(scene.picture)
    assert np.abs(difference).mean() < 1
    assert len({thing.kind for thing in scene.things}) >= 3
    assert len(scene.words) == 1


def test_the_embedded_model_knows_the_scene(gemlens: Call, tmp_path: Path) -> None:
    scene = draw(DEMO_SEED, "test")
    started = time.perf_counter()
    result = gemlens("demo", "--save", tmp_path / "found.png")
    assert time.perf_counter() - started < 30, "seconds; 10 on a machine that does nothing else"
    answers = dict(re.findall(r"^> (.*)\n(.*)\n", result.stdout, re.MULTILINE))
    assert answers["caption en"] == caption(scene, None).answer  # type: ignore[arg-type]
    assert answers["ocr"] == scene.words[0].text
    kinds = [thing.kind.name for thing in scene.things]
    found = re.findall(r"^ +=  (\w+) ", result.stdout, re.MULTILINE)
    assert sorted(found)[: len(kinds)] == sorted(kinds) or set(found) == set(kinds)
