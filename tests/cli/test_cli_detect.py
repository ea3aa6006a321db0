"""`gemlens detect`: lines, JSON, COCO and drawings of what is found, in each of several pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_model import make_all_say
from typer.testing import Result

import gemlens as library
from gemlens.processing.pictures.pictures import open_picture
from gemlens.tasks.boxes import Box
from gemlens.tasks.drawing import draw
from gemlens.tasks.findings import Finding, write

Call = Callable[..., Result]
Say = Callable[[dict[str, Any]], str]
SIZE = (300, 200)
CAT, DOG = Finding("cat", Box(30, 20, 150, 120)), Finding("dog", Box(0, 0, 300, 200))
BOTH = write([CAT, DOG], SIZE)


@pytest.fixture
def says(checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Makes a PaliGemma answer by a script, and gives its folder."""

    def prepare(answers: dict[str, Any], chances: Any = (0.9,) * 4) -> str:
        make_all_say(monkeypatch, checkpoint("paligemma"), answers, chances)
        return checkpoint("paligemma")

    return prepare


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.new("RGB", SIZE, "white").save(path)
    return path


def test_a_line_says_label_score_and_box_in_pixels(gemlens: Call, says: Say, scene: Path) -> None:
    result = gemlens("detect", scene, "cat ; dog", "--model", says({"detect cat ; dog": BOTH}))
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows == [["cat", "0.900", "30", "20", "150", "120"], ["dog", "1.000", "0", "0", "300", "200"]]


def test_without_a_model_the_embedded_one_looks(
    gemlens: Call, says: Say, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemlens.checkpoints.hub.MODEL", Path(says({"detect cat ; dog": BOTH})))
    assert gemlens("detect", scene, "cat ; dog").stdout.startswith("cat")


def test_lines_of_several_pictures_begin_with_their_names(gemlens: Call, says: Say, scene: Path) -> None:
    other = scene.with_name("other.png")
    Image.new("RGB", (30, 20)).save(other)
    folder = says({"detect cat ; dog": [BOTH, BOTH]})
    lines = gemlens("detect", scene, other, "cat ; dog", "--model", folder).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [str(scene), "cat"], [str(scene), "dog"], [str(other), "cat"], [str(other), "dog"],
    ]  # fmt: skip
    assert lines[2].split()[3:] == ["3", "2", "15", "12"]


def test_json_is_one_object_per_picture(gemlens: Call, says: Say, scene: Path) -> None:
    folder = says({"detect cat ; dog": [BOTH, "nothing"]})
    lines = gemlens("detect", scene, scene, "cat ; dog", "--model", folder, "--json").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert {**first, "findings": None} == {
        "picture": str(scene), "width": 300, "height": 200, "findings": None, "text": BOTH,
    }  # fmt: skip
    cat, dog = first["findings"]
    assert (cat["label"], dog["label"]) == ("cat", "dog")
    assert cat["score"] == pytest.approx(0.9)
    assert cat["box"] == pytest.approx({"left": 30, "top": 20, "right": 150, "bottom": 120}, abs=0.3)
    assert (second["findings"], second["text"]) == ([], "nothing")


def test_a_threshold_and_the_length_are_passed_on(gemlens: Call, says: Say, scene: Path) -> None:
    folder = says({"detect cat ; dog": BOTH})
    assert gemlens("detect", scene, "cat ; dog", "--model", folder, "--threshold", 0.95).stdout.startswith("dog")
    seen: dict[str, Any] = {}
    generate: Any = library.PaliGemmaForConditionalGeneration.generate

    def watch(self: Any, *given: Any, **named: Any) -> Any:
        seen.update(named)
        return generate(self, *given, **named)

    library.PaliGemmaForConditionalGeneration.generate = watch  # type: ignore[method-assign]  # undone by `says`
    gemlens("detect", scene, "cat ; dog", "--model", folder, "--max-new-tokens", 7)
    assert seen["max_new_tokens"] == 7


def test_the_drawing_is_that_of_the_findings(gemlens: Call, says: Say, scene: Path, tmp_path: Path) -> None:
    folder, out = says({"detect cat ; dog": BOTH}), tmp_path / "new" / "found.png"
    result = gemlens("detect", scene, "cat ; dog", "--model", folder, "--save", out)
    assert result.stderr == f"Saved to {out}.\n"
    find: Any = library.pipeline("detect", folder, device=-1)
    assert open_picture(out).tobytes() == draw(open_picture(scene), find(scene, "cat ; dog")).tobytes()


def test_drawings_of_several_pictures_have_names_of_their_own_in_a_folder(
    gemlens: Call, says: Say, scene: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    pictures = [scene, tmp_path / "scene-1.png", tmp_path / "more" / "scene.png"]
    for number, path in enumerate(pictures[1:], 1):
        Image.new("RGB", (100 * number, 100)).save(path)
    folder = says({"detect cat ; dog": [BOTH] * 3})
    gemlens("detect", *pictures, "cat ; dog", "--model", folder, "--save", tmp_path / "out")
    sizes = {path.name: open_picture(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"scene.png": SIZE, "scene-1.png": (100, 100), "scene-2.png": (200, 100)}


def test_coco_has_all_pictures_and_is_read_by_pycocotools(
    gemlens: Call, says: Say, scene: Path, tmp_path: Path
) -> None:
    from pycocotools.coco import COCO

    folder, out = says({"detect cat ; dog": [BOTH, ""]}), tmp_path / "found.json"
    gemlens("detect", scene, scene, "cat ; dog", "--model", folder, "--coco", out)
    coco = COCO(str(out))
    assert [each["file_name"] for each in coco.dataset["images"]] == [str(scene)] * 2
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [coco.cats[each["category_id"]]["name"] for each in found] == ["cat", "dog"]
    assert found[0]["bbox"] == pytest.approx([30, 20, 120, 100], abs=0.3)
    assert found[0]["score"] == pytest.approx(0.9)
    assert coco.getAnnIds(imgIds=[2]) == []


def test_boxes_are_of_the_upright_picture_and_so_is_the_drawing(gemlens: Call, says: Say, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (200, 300), "white").save(tmp_path / "turned.jpg", exif=exif)
    folder, out = says({"detect cat ; dog": BOTH}), tmp_path / "out.png"
    result = gemlens("detect", tmp_path / "turned.jpg", "cat ; dog", "--model", folder, "--save", out)
    assert result.stdout.splitlines()[1].split()[2:] == ["0", "0", "300", "200"]
    assert open_picture(out).size == SIZE


def test_a_picture_may_come_from_standard_input(gemlens: Call, says: Say, scene: Path, tmp_path: Path) -> None:
    folder = says({"detect cat ; dog": BOTH})
    arguments = ("cat ; dog", "--model", folder, "--save", tmp_path / "out")
    piped = gemlens("detect", "-", *arguments, stdin=scene.read_bytes())
    assert piped.stdout == gemlens("detect", scene, *arguments).stdout != ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"picture.png", "scene.png"}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_broken_picture_is_told_and_the_others_go_on(gemlens: Call, says: Say, scene: Path) -> None:
    broken = scene.with_name("broken.png")
    broken.write_bytes(b"junk")
    folder = says({"detect cat ; dog": BOTH})
    result = gemlens("detect", broken, scene, "none.png", "cat ; dog", "--model", folder)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("gemlens: The picture '") and "broken.png" in first  # noqa: PT018
    assert second.startswith("gemlens: The picture 'none.png' does not exist")


def test_when_nothing_is_found_the_answer_is_told_aside(gemlens: Call, says: Say, scene: Path) -> None:
    result = gemlens("detect", scene, "cat", "--model", says({"detect cat": "I see a \x1bcat"}))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"Nothing was found in {scene}; the model's answer was 'I see a")
    assert "\x1b" not in result.stderr
    assert gemlens("detect", scene, "cat", "--model", says({"detect cat": ""})).stderr == (
        f"Nothing was found in {scene}.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{scene}"], 2, "Missing argument 'PICTURE...'"),
        (["{scene}", "{scene}"], 2, "is a file; this comes behind the pictures"),
        (["{scene}", ""], 1, "Nothing to look for was named"),
        (["{scene}", "cat", "--save", "out.txt"], 1, "--save 'out.txt' must end in one of .png, .jpg"),
        (["{scene}", "{scene}", "cat", "--save", "out.png"], 1, "is one file for 2 pictures; name a folder"),
        (["{scene}", "cat", "--threshold", "2"], 2, "2.0 is not in the range"),
        (["{scene}", "cat", "--coco", "{folder}"], 1, "Is a directory"),
    ],
)
def test_mistakes_are_sentences(
    gemlens: Call, says: Say, scene: Path, arguments: list[str], code: int, told: str
) -> None:
    filled = [each.format(scene=scene, folder=scene.parent) for each in arguments]
    result = gemlens("detect", *filled, "--model", says({"detect cat": ""}))
    assert result.exit_code == code
    assert told in " ".join(result.stderr.replace("\u2502", " ").split())
    assert "Traceback" not in result.stderr


def test_a_model_that_reads_text_only_is_refused(gemlens: Call, checkpoint: Callable[[str], str], scene: Path) -> None:
    result = gemlens("detect", scene, "cat", "--model", checkpoint("gemma3-text"))
    assert result.exit_code == 1
    assert "A Gemma3ForCausalLM came for the task 'detect'" in result.stderr
