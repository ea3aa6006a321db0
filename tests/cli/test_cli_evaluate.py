"""`gemlens evaluate`: its figures are the library's, and an interrupted run gives what an uninterrupted one gives."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processor_pairs import picture
from typer.testing import Result

import gemlens as library
from gemlens.data.sources import open_source
from gemlens.evals.metrics import NAMES
from gemlens.evals.run import evaluate
from gemlens.tasks.mask_codec import MaskCodec

Call = Callable[..., Result]
Folder = Callable[[str], str]
SHORT = ("--max-new-tokens", 6, "--dtype", "float32")
BOX = "<loc0000><loc0000><loc0511><loc0511> cat"
ROWS = [
    ("caption en", "a red cat"),
    ("detect cat", BOX),
    ("answer en how many?", "2"),
    ("ocr", "STOP"),
    ("segment x", BOX),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten examples, of which one has a broken picture."""
    rows = []
    for number, (prefix, suffix) in enumerate(ROWS * 2):
        picture(number, 20 + number, 16).save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "prefix": prefix, "suffix": suffix}))
    (tmp_path / "3.png").write_bytes(b"junk")
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    return tmp_path / "test.jsonl"


def without_time(path: Path) -> Any:
    return {**json.loads(path.read_text()), "seconds": None}


def test_figures_are_those_of_the_library(gemlens: Call, checkpoint: Folder, data: Path) -> None:
    folder = checkpoint("paligemma")
    model = library.AutoModelForImageTextToText.from_pretrained(folder)
    processor = library.AutoProcessor.from_pretrained(folder)
    expected = evaluate(model, processor, open_source(str(data)), max_new_tokens=6)
    said = json.loads(gemlens("evaluate", folder, data, "--json", *SHORT).stdout)
    assert said["values"] == expected.values
    assert said["kinds"] == {"caption": 2, "detect": 2, "answer": 2, "ocr": 2, "segment": 2}
    assert (said["items"], said["errors"]) == (10, 1)


def test_the_table_has_every_value_and_errors_are_told_aside(gemlens: Call, checkpoint: Folder, data: Path) -> None:
    result = gemlens("evaluate", checkpoint("paligemma"), data, *SHORT)
    assert result.exit_code == 0
    assert re.search(r"^cider_d +0\.0000$", result.stdout, re.MULTILINE)
    assert re.search(r"^map_50 +0\.0000$", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("10 examples (2 caption, 2 detect, 2 answer, 2 ocr, 2 segment)\n")
    assert "1 of 10 could not be asked and count as wrong; test.jsonl:4: " in result.stderr


def test_an_interrupted_run_is_continued_to_the_same_files(
    gemlens: Call, checkpoint: Folder, data: Path, tmp_path: Path
) -> None:
    folder, whole, cut = checkpoint("paligemma"), tmp_path / "whole", tmp_path / "cut"
    gemlens("evaluate", folder, data, "--out", whole, *SHORT)
    gemlens("evaluate", folder, data, "--out", cut, *SHORT)
    lines = (cut / "items.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "items.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:20])  # as kill -9 leaves it
    (cut / "summary.json").unlink()
    result = gemlens("evaluate", folder, data, "--out", cut, "--batch-size", 3, *SHORT)
    assert result.exit_code == 0
    rows, expected = (
        [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()] for out in (cut, whole)
    )
    assert rows[:6] == expected[:6]
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "likelihood": 0, "locations": []} == {**other, "likelihood": 0, "locations": []}
    assert without_time(cut / "summary.json") == without_time(whole / "summary.json")
    assert {path.name for path in cut.iterdir()} == {"settings.json", "items.jsonl", "summary.json", "page.html"}


def test_another_metric_of_the_same_answers_needs_no_model(
    gemlens: Call, checkpoint: Folder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = checkpoint("paligemma"), tmp_path / "out"
    gemlens("evaluate", folder, data, "--out", out, *SHORT)
    monkeypatch.setattr("gemlens.cli.evaluate._loaded", None)
    result = gemlens("evaluate", folder, data, "--out", out, "--metric", "anls", "--json", *SHORT)
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)["values"]) == ["anls"]


def test_results_of_another_model_or_data_are_not_mixed_in(
    gemlens: Call, checkpoint: Folder, data: Path, tmp_path: Path
) -> None:
    folder, out = checkpoint("paligemma"), tmp_path / "out"
    gemlens("evaluate", folder, data, "--out", out, "--limit", 1, *SHORT)
    other = gemlens("evaluate", checkpoint("paligemma2"), data, "--out", out, "--limit", 1, *SHORT)
    assert other.exit_code == 1
    assert "holds results of other settings (model " in other.stderr
    data.write_text(data.read_text().replace("red", "blue"))
    changed = gemlens("evaluate", folder, data, "--out", out, "--limit", 1, *SHORT)
    assert "data_files" in changed.stderr
    anew = gemlens("evaluate", folder, data, "--out", out, "--limit", 1, "--force", *SHORT)
    assert anew.exit_code == 0


def test_the_page_shows_the_worst(gemlens: Call, checkpoint: Folder, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gemlens("evaluate", checkpoint("paligemma"), data, "--out", out, "--worst", 2, *SHORT)
    html = (out / "page.html").read_text()
    assert html.count("<article>") == 2
    assert "test.jsonl:4" in html


@pytest.mark.parametrize("family", ["paligemma", "gemma3-text"])
def test_perplexity(gemlens: Call, checkpoint: Folder, tmp_path: Path, family: str) -> None:
    picture(1).save(tmp_path / "a.png")
    row = {"prefix": "What is it?", "suffix": "a cat", **({"image": "a.png"} if family == "paligemma" else {})}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    result = gemlens("evaluate", checkpoint(family), tmp_path / "a.jsonl", "--metric", "perplexity", "--json")
    assert json.loads(result.stdout)["values"]["perplexity"] > 1


def test_masks_are_compared_with_a_codec(gemlens: Call, checkpoint: Folder, data: Path, tmp_path: Path) -> None:
    MaskCodec().save(tmp_path / "codec.npz")
    arguments = ("--mask-codec", tmp_path / "codec.npz", "--json", *SHORT)
    said = json.loads(gemlens("evaluate", checkpoint("paligemma"), data, *arguments).stdout)
    assert {"mask_iou", "box_iou", "box_accuracy_50", "box_accuracy_75", "invalid"} <= said["values"].keys()


def test_the_drawn_world_is_data_too(gemlens: Call, checkpoint: Folder) -> None:
    result = gemlens("evaluate", checkpoint("paligemma"), "scenes:test?count=3&tasks=count", "--json", *SHORT)
    assert json.loads(result.stdout)["kinds"] == {"answer": 3}


def test_help_names_every_metric(gemlens: Call) -> None:
    shown = " ".join(gemlens("evaluate", "--help").stdout.split())
    assert f"{', '.join(NAMES[:-1])} or {NAMES[-1]}" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--metric", "bleu"), 1, "There is no metric 'bleu'"),
        (("--metric", "mask_iou"), 1, "a codec has made them"),
        (("--limit", "0"), 2, "--limit"),
        (("--mask-codec", "no.npz"), 1, "no.npz"),
    ],
    ids=range(4),
)
def test_mistakes_are_told_before_the_model_is_loaded(
    gemlens: Call, data: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    result = gemlens("evaluate", "no-such-model", data, *arguments)
    assert (result.exit_code, why in result.stderr) == (code, True)


def test_where_nothing_can_be_asked_the_exit_code_says_so(gemlens: Call, checkpoint: Folder, data: Path) -> None:
    """A model that reads text only, and data with pictures."""
    result = gemlens("evaluate", checkpoint("gemma3-text"), data, *SHORT)
    assert result.exit_code == 1
    assert "10 of 10 could not be asked" in result.stderr
    assert "reads text only" in result.stderr
