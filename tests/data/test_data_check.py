"""A check finds what is wrong, and nothing where nothing is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import BOX, picture, row, write_jsonl
from PIL import Image

from gemlens.data.check import REMARKS, WRONG, Lengths, Report, check
from gemlens.data.example import Example, Examples
from gemlens.data.sources import open_source
from gemlens.data.text_checks import text_problems
from gemlens.errors import InputError

COW = "<loc0100><loc0200><loc0300><loc0400> cow"
CODES = "".join(f"<seg{number:03}>" for number in range(16))


def problems(prefix: str, suffix: str, pictures: int = 1) -> list[str]:
    blank = (Image.new("RGB", (40, 40)),)
    return [name for name, _ in text_problems(Example("x", blank * pictures, prefix, suffix))]


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("detect cow", COW),
        ("detect cow ; big dog", f"{COW} ; {BOX} big dog"),
        ("<image>detect cow", COW),
        ("segment cow", f"{BOX}{CODES} cow"),
        ("segment the left cow", f"{BOX}{CODES}"),
        ("caption en", "a cow on the beach"),
        ("answer en what is 1 < 2 > 0?", "<b>true</b>"),
        ("ocr", "EXIT"),
    ],
)
def test_good_texts_have_no_problem(prefix: str, suffix: str) -> None:
    assert problems(prefix, suffix) == []


@pytest.mark.parametrize(
    ("prefix", "suffix", "name"),
    [
        ("caption en", " \n", "empty answer"),
        ("detect cow", "", "nothing found"),
        ("caption en", "a cow<eos>", "control token"),
        ("caption en", "<image>a cow", "control token"),
        ("<image><image>caption en", "a cow", "control token"),
        ("caption <start_of_turn>", "a cow", "control token"),
        ("detect cow", "a pig", "broken box"),
        ("detect cow", "<loc0300><loc0200><loc0100><loc0400> cow", "broken box"),
        ("detect cow", "<loc0100><loc0200><loc0300><loc0200> cow", "broken box"),
        ("detect cow", "<loc0100><loc0200><loc0300> cow", "broken box"),
        ("detect cow", "<loc0100><loc0200><loc0300><loc1024> cow", "broken box"),
        ("detect cow", "<loc0100><loc0200><loc0300><loc400> cow", "broken box"),
        ("segment cow", f"{BOX}{CODES[:-8]} cow", "broken box"),
        ("segment cow", f"{BOX}{CODES.replace('015', '128')} cow", "broken box"),
        ("detect cow", f"{COW} ; {BOX} dog", "unasked label"),
        ("answer en is the cow brown or black?", "Brown", "short answer in prompt"),
        ("the cow stands on the beach. what happens?", "The cow stands on the beach.", "answer in prompt"),
    ],
)
def test_each_problem_is_found_by_its_name(prefix: str, suffix: str, name: str) -> None:
    assert set(problems(prefix, suffix)) == {name}
    assert name in WRONG or name in REMARKS


def test_a_part_of_a_word_is_no_answer_in_the_prompt() -> None:
    assert problems("answer en is this a cowboy?", "cow") == []


def test_texts_of_chats_are_looked_at() -> None:
    messages = (
        {"role": "user", "content": "Say <eos>"},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    )
    found = [name for name, _ in text_problems(Example("x", messages=messages))]
    assert found == ["control token", "empty answer"]


class TestPictures:
    def report(self, folder: Path, *rows: Any, **named: Any) -> Report:
        return check(open_source(write_jsonl(folder / "train.jsonl", rows)), **named)

    def test_good_data_is_fine(self, folder: Path) -> None:
        report = self.report(folder, row(1), row(2, image="a.png"))
        assert report.is_fine
        assert not report.found
        assert report.examples == 2
        assert report.kinds == {"detect": 2}
        assert report.sizes == {(64, 48): 2}

    def test_damaged_and_missing_pictures_are_counted_for_every_example(self, folder: Path) -> None:
        (folder / "bad.png").write_bytes((folder / "cow.png").read_bytes()[:2000])
        report = self.report(folder, row(1, image="bad.png"), row(2, image="bad.png"), row(3, image="gone.png"), row(4))
        assert report.found == {"damaged picture": 2, "missing picture": 1}
        assert "train.jsonl:2" in report.sentences["damaged picture"][1]
        assert "train.jsonl:3" in report.sentences["missing picture"][0]
        assert not report.is_fine

    def test_rows_that_are_none_are_counted(self, folder: Path) -> None:
        report = self.report(folder, {"imge": 1}, row())
        assert report.found == {"unreadable row": 1}
        assert report.kinds.total() == 1

    def test_the_same_picture_in_another_file_is_known(self, folder: Path) -> None:
        with Image.open(folder / "cow.png") as cow:
            cow.save(folder / "copy.bmp")
        report = self.report(folder, row(1), row(1, image="copy.bmp"), row(1, suffix="", image="copy.bmp"))
        assert report.found == {"repeated": 1, "two answers": 1, "nothing found": 1}
        assert "train.jsonl:3" in report.sentences["two answers"][0]
        assert "train.jsonl:1" in report.sentences["two answers"][0]

    def test_several_captions_are_no_contradiction(self, folder: Path) -> None:
        captions = [{"image": "cow.png", "prefix": "caption en", "suffix": text} for text in ("a cow", "an animal")]
        report = self.report(folder, *captions)
        assert report.found == {"several captions": 1}
        assert report.is_fine

    def test_pictures_in_both_are_found(self, folder: Path) -> None:
        other = open_source(
            write_jsonl(folder / "val.jsonl", [row(5), row(6, image="a.png"), row(7, image="gone.png")])
        )
        report = self.report(folder, row(1), row(2, image="b.png"), against=other)
        assert report.found == {"in both": 1, "not compared": 1}
        assert "val.jsonl:3" in report.sentences["not compared"][0]
        assert "val.jsonl:1" in report.sentences["in both"][0]
        assert "train.jsonl:1" in report.sentences["in both"][0]

    def test_small_pictures_and_none_are_remarks(self, folder: Path) -> None:
        picture(folder / "small.png", size=(31, 100))
        report = self.report(folder, row(1, image="small.png"), {"prefix": "ocr", "suffix": "A"})
        assert report.found == {"small picture": 1, "no picture": 1}
        assert report.is_fine

    def test_only_the_first_sentences_are_kept(self, folder: Path) -> None:
        report = self.report(folder, *(row(number, suffix="<eos>") for number in range(100)))
        assert report.found["control token"] == 100
        assert len(report.sentences["control token"]) < 10


def test_lengths_are_measured_and_what_makes_no_tokens_is_told() -> None:
    def measure(example: Example) -> tuple[int, int]:
        if example.prefix == "ocr 3":
            raise InputError("Too long.")
        return 10 * int(example.prefix[-1]), 2

    source = Examples([Example(str(number), (), f"ocr {number}", "text") for number in range(1, 5)])
    report = check(source, measure=measure)
    assert report.tokens()["prompt"] == Lengths({16: 1, 32: 1, 64: 1}, 40)
    assert report.tokens()["together"] == Lengths({16: 1, 32: 1, 64: 1}, 42)
    assert report.sentences["no tokens"] == ["3: Too long."]


def test_every_example_advances_once() -> None:
    source, steps = Examples([Example(str(number), (), "ocr", "a") for number in range(7)]), []
    check(source, source, advance=lambda: steps.append(1))
    assert len(steps) == 14


def test_a_report_is_json(folder: Path) -> None:
    report = check(
        open_source(write_jsonl(folder / "train.jsonl", [row(1), row(2, suffix="")])), measure=lambda _: (20, 3)
    )
    told = json.loads(json.dumps(report.to_dict()))
    assert told["examples"] == 2
    assert told["pictures"] == {"count": 2, "sizes": 1, "widths": [64, 64], "heights": [48, 48]}
    assert told["problems"][0]["name"] == "nothing found"
    assert told["tokens"]["together"] == {"histogram": {"32": 2}, "longest": 23}
