"""Answers are read as big_vision reads them, whatever they are; what is written comes back."""

import random
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gemlens.errors import InputError
from gemlens.tasks.boxes import Box, read_box
from gemlens.tasks.findings import Finding, parse, without_repeats, write

SIZE = (640, 480)
BOX = "<loc0100><loc0200><loc0300><loc0400>"
OTHER = "<loc0000><loc0000><loc0050><loc0060>"
SEGS = "".join(f"<seg{code:03d}>" for code in range(0, 128, 8))
LABELS = ["Dr. Pepper", "A&W", "caf\u00e9 au lait", "\u732b", "\u05d7\u05ea\u05d5\u05dc", "7up", "AC; DC", "a;b", "",
          "e;", "<b>", "100 %", "it's \"so\"", "<loc12>", "loc1>", "\U0001f600", "<seg0001", "two\nlines"]  # fmt: skip


def labels_in(text: str) -> list[str]:
    return [finding.label for finding in parse(text, SIZE)]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_read_in_its_order() -> None:
    cat, dog = parse(f"{BOX} cat ; {OTHER}{SEGS} big dog", SIZE)
    assert cat == Finding("cat", read_box([100, 200, 300, 400], SIZE))
    assert dog == Finding("big dog", read_box([0, 0, 50, 60], SIZE), codes=tuple(range(0, 128, 8)))
    assert cat.mask is dog.mask is None


@pytest.mark.parametrize(
    "tokens",
    [
        "<loc0100><loc0200><loc0300>",
        f"{BOX}<loc0001>",
        BOX + OTHER,
        "<loc0100><loc0200><loc0300><loc1024>",
        "<loc0300><loc0200><loc0100><loc0400>",
        "<loc0100><loc0200><loc0100><loc0400>",
        "<loc0100><loc0200><loc0300><loc0200>",
        BOX + SEGS[:-8],
        f"{BOX}{SEGS}<seg000>",
        BOX + SEGS[:-8] + "<seg128>",
        SEGS,
        SEGS + BOX,
        BOX[:10] + SEGS + BOX[10:],
        BOX[:-1],
        BOX.replace("loc", "LOC"),
        "<loc00100><loc00200><loc00300><loc00400>",
        "<loc\u0661\u0661\u0661\u0661>" * 2 + "<loc\u0662\u0662\u0662\u0662>" * 2,
    ],
)
def test_tokens_that_are_no_finding_are_left_out_with_their_label(tokens: str) -> None:
    assert parse(tokens, SIZE) == []
    assert labels_in(f"{OTHER} cat ; {tokens} dog ; {OTHER} cow") == ["cat", "cow"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (f"{BOX} cat;{OTHER} dog;", ["cat", "dog;"]),
        (f"{BOX}cat ;{OTHER}dog ;", ["cat", "dog"]),
        (f"{BOX} cat {OTHER} dog", ["cat", "dog"]),
        (f"{BOX} cat ; dog", ["cat"]),
        (f"{BOX} cat<eos><pad>", ["cat"]),
        (f"{BOX} cat\n", ["cat"]),
        (f"{BOX} ; {OTHER}", ["", ""]),
        (f"there: {BOX} cat", ["cat"]),
        (f"{BOX} cat ; <loc0001><loc00", ["cat"]),
        (f"{BOX} cat ; <loc00", ["cat"]),
        (BOX.replace("><", "> <") + " cat", ["cat"]),
        (f"{BOX} {SEGS.replace('><', '> <')}\tcat", ["cat"]),
    ],
)
def test_labels_end_where_the_next_thing_begins(text: str, labels: list[str]) -> None:
    assert labels_in(text) == labels


def big_vision_counts(tokens: list[tuple[str, int]], masks: bool) -> bool:
    """transfers/segmentation.py: full prediction, valid box tokens, valid seg tokens, valid box; in ids from 0."""
    ids = [number + (0 if kind == "loc" else 1024) for kind, number in tokens]
    wanted = 4 + 16 if masks else 4
    t = np.array([*ids[:4], *(token - 1024 for token in ids[4:wanted])])
    return bool(
        len(t) == wanted
        and (np.clip(t[:4], 0, 1023) == t[:4]).all()
        and (np.clip(t[4:], 0, 127) == t[4:]).all()
        and t[2] > t[0]
        and t[3] > t[1]
    )


locs = st.tuples(st.just("loc"), st.integers(0, 1023))
segs = st.tuples(st.just("seg"), st.integers(0, 127))
nearly_a_mask = st.tuples(st.lists(locs, min_size=3, max_size=5), st.lists(segs, min_size=15, max_size=16)).map(
    lambda parts: [*parts[0], *parts[1]]
)
runs = nearly_a_mask | st.lists(locs | segs, max_size=20) | st.lists(locs, min_size=3, max_size=4)


@given(runs)
def test_up_to_twenty_tokens_count_as_they_do_in_big_vision(tokens: list[tuple[str, int]]) -> None:
    found = parse("".join(f"<{kind}{n:04d}>" if kind == "loc" else f"<{kind}{n:03d}>" for kind, n in tokens), SIZE)
    masks = len(tokens) > 4
    assert len(found) == big_vision_counts(tokens, masks)
    for finding in found:
        y1, x1, y2, x2 = (number / 1023 for _, number in tokens[:4])
        width, height = SIZE
        assert astuple(finding.box) == pytest.approx((x1 * width, y1 * height, x2 * width, y2 * height))
        assert finding.codes == (tuple(number for _, number in tokens[4:]) if masks else None)


def test_what_follows_twenty_tokens_spoils_a_finding_here_but_not_in_big_vision() -> None:
    tokens = [("loc", 0), ("loc", 0), ("loc", 9), ("loc", 9), *[("seg", 5)] * 17]
    assert big_vision_counts(tokens, masks=True)
    assert parse("".join(f"<{kind}{n:04d}>" if kind == "loc" else f"<seg{n:03d}>" for kind, n in tokens), SIZE) == []


@pytest.fixture(scope="module")
def from_paligemma() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for OpenCV
        from supervision.detection.vlm import from_paligemma
    return from_paligemma


@given(data=st.data())
def test_ordinary_answers_are_read_as_supervision_reads_them(
    from_paligemma: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]], data: st.DataObject
) -> None:
    """Its labels have letters, digits, spaces and hyphens only, and it divides by 1024."""
    labels = st.text("abc xyz-09\u00e9\u732b", min_size=1).map(str.strip).filter(bool)
    spans = st.lists(st.integers(0, 1023), min_size=2, max_size=2, unique=True).map(sorted)
    rows = data.draw(st.lists(st.tuples(spans, spans, labels), max_size=5))
    texts = [f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}> {label}" for (y1, y2), (x1, x2), label in rows]
    text = " ; ".join(texts)
    boxes, _, names = from_paligemma(text, SIZE)
    found = parse(text, SIZE, bins=1024)
    assert [finding.label for finding in found] == names.tolist() == [label for _, _, label in rows]
    assert np.allclose([astuple(finding.box) for finding in found] or np.empty((0, 4)), boxes)


# -- texts that nobody meant -------------------------------------------------------------------------------------------

FRAGMENTS = [
    BOX, OTHER, SEGS, BOX + SEGS, "<loc0000>", "<loc0512>", "<loc1023>", "<loc1024>", "<loc9999>",
    "<seg000>", "<seg127>", "<seg128>", "<seg999>", "<loc", "loc0000>", "<loc0", "<loc00000>", "</loc0000>",
    "<seg", "<seg0000>", "<seg12", "<<", ">>", "<", ">", "<loc-001>", "<loc 001>", "<loc1e3>", f"<loc{'9' * 400}>",
    "9" * 5000, "-1", "1e400", "NaN", " ; ", ";", " ;", "; ", " ", "\t", "\n", "\r\n", "\0", "\x1b[31m", "\x7f",
    "\u200b", "\u202e", "\ud800", "\udfff", "\U0001f600", "\u0661", "\u732b", "cat", "Dr. Pepper", "A&W", "caf\u00e9",
    "<eos>", "<bos>", "<pad>", "<image>", "%s", "{}", "\\", "'", '"',
]  # fmt: skip


def test_hostile_texts_never_raise() -> None:
    """100,000 of them; what is found has its label out of the text, and a box inside the picture."""
    dice, found, began = random.Random(7), 0, time.process_time()
    for _ in range(100_000):
        text = "".join(dice.choices(FRAGMENTS, k=dice.randint(1, 9)))
        for finding in parse(text, SIZE):
            found += 1
            box = finding.box
            assert 0 <= box.left < box.right <= SIZE[0]
            assert 0 <= box.top < box.bottom <= SIZE[1]
            assert finding.label in text
            assert finding.codes is None or len(finding.codes) == 16
    assert found > 10_000, "so the texts are not merely noise"
    assert time.process_time() - began < 20, "seconds; one is usual"


@pytest.mark.parametrize(
    "piece",
    ["<loc0000>", "<loc0000> ", BOX, f"{BOX} cat ; ", f"{BOX}{SEGS} cat ; ", BOX + SEGS, "<loc0000", "<", " ", " ;",
     ";", "; ", "a;b", "<eos>", "\n\n", "<seg000>\t", f"{BOX};", "9"],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("start", ["", BOX, "<loc0000>"])
def test_a_megabyte_takes_less_than_a_second(piece: str, start: str) -> None:
    """Of three, the best: the others measure the collection of garbage in a process that holds much else."""
    text = start + piece * (1_000_000 // len(piece))
    times = []
    for _ in range(3):
        began = time.process_time()
        parse(text, SIZE)
        times.append(time.process_time() - began)
    assert min(times) < 1


def test_what_is_no_picture_is_refused_even_if_nothing_was_found() -> None:
    with pytest.raises(InputError, match="The size of a picture is"):
        parse("", (0, 10))
    with pytest.raises(InputError, match="bins=1000"):
        parse("", SIZE, bins=1000)


# -- writing -----------------------------------------------------------------------------------------------------------

any_label = st.sampled_from(LABELS) | st.text() | st.lists(st.sampled_from(FRAGMENTS), max_size=3).map("".join)
any_box = st.lists(st.integers(0, 1023), min_size=4, max_size=4).map(
    lambda n: Box(min(n[0], n[1]), min(n[2], n[3]), max(n[0], n[1]) + 1, max(n[2], n[3]) + 1)
)
any_codes = st.none() | st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple)
any_finding = st.builds(Finding, label=any_label, box=any_box, codes=any_codes)


def refused(label: str) -> bool:
    """What the documents say may not stand in a label, in other words."""
    parts = [r"\A\s", r"\s\Z", r"(^|\s);(\s|$)", r"<loc[0-9]{4}>", r"<seg[0-9]{3}>", "<eos>"]
    return any(re.search(part, label) for part in parts)


@given(st.lists(any_finding, max_size=4), st.tuples(st.integers(1024, 3000), st.integers(1024, 3000)))
def test_what_is_written_comes_back_or_is_refused(findings: list[Finding], size: tuple[int, int]) -> None:
    try:
        text = write(findings, size)
    except InputError:
        event("refused")
        assert any(refused(finding.label) for finding in findings)
        return
    back = parse(text, size)
    assert [(found.label, found.codes) for found in back] == [(found.label, found.codes) for found in findings]
    for found, there in zip(back, findings, strict=True):
        assert astuple(found.box) == pytest.approx(astuple(there.box), abs=max(size) / 1023)


@given(st.lists(st.sampled_from(LABELS), max_size=4))
def test_labels_of_any_sign_and_script_come_back(labels: list[str]) -> None:
    assert labels_in(write([Finding(label, Box(1, 2, 30, 40)) for label in labels], SIZE)) == labels


def test_an_answer_is_written_as_the_original_writes_it() -> None:
    findings = [
        Finding("cat", Box(320, 240, 640, 480)),
        Finding("dog", Box(0, 0, 640, 480), codes=tuple(range(0, 128, 8))),
        Finding("", Box(0, 0, 320, 480)),
    ]
    assert write(findings, SIZE) == (
        "<loc0512><loc0512><loc1023><loc1023> cat"
        f" ; <loc0000><loc0000><loc1023><loc1023>{SEGS} dog"
        " ; <loc0000><loc0000><loc1023><loc0512>"
    )
    assert write([], SIZE) == ""


@pytest.mark.parametrize("label", ["cat ; dog", " cat", "cat<eos>", "a <loc0001> b", "<seg000>", "cat ;", ";"])
def test_a_label_that_would_not_come_back_is_refused(label: str) -> None:
    with pytest.raises(InputError, match="The label"):
        write([Finding(label, Box(0, 0, 9, 9))], SIZE)


@pytest.mark.parametrize("codes", [(), (1,) * 15, (1,) * 17, (*(1,) * 15, 128), (*(1,) * 15, -1)])
def test_codes_that_are_no_mask_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="A mask takes 16 codes from 0 to 127"):
        write([Finding("cat", Box(0, 0, 9, 9), codes=codes)], SIZE)


# -- repeats -----------------------------------------------------------------------------------------------------------


def test_repeats_are_left_out_and_the_first_stays() -> None:
    cat = Finding("cat", Box(0, 0, 100, 100), score=0.5)
    nearly, apart = replace(cat, box=Box(0, 0, 100, 95), score=0.9), replace(cat, box=Box(50, 0, 150, 100))
    dog = replace(cat, label="dog")
    assert without_repeats([cat, nearly, dog, apart, cat]) == [cat, dog, apart]
    assert without_repeats([cat, nearly], iou=0.96) == [cat, nearly]
    assert without_repeats([cat, apart], iou=1 / 3) == [cat]
    assert without_repeats([]) == []


@given(st.lists(any_finding, max_size=8), st.floats(0.05, 1))
def test_what_stays_does_not_overlap_and_what_goes_does(findings: list[Finding], iou: float) -> None:
    kept = without_repeats(findings, iou)
    same = [(a, b) for number, a in enumerate(kept) for b in kept[number + 1 :] if a.label == b.label]
    assert all(a.box.iou(b.box) < iou for a, b in same)
    for finding in findings:
        assert any(finding.label == other.label and finding.box.iou(other.box) >= iou for other in kept)
    places = [next(place for place, finding in enumerate(findings) if finding is each) for each in kept]
    assert all(one < two for one, two in pairwise(places))


@pytest.mark.parametrize("iou", [0, -1, 1.1, float("nan")])
def test_an_overlap_that_is_none_is_refused(iou: float) -> None:
    with pytest.raises(InputError, match=re.escape(f"iou={iou!r}, but an overlap is a number above 0")):
        without_repeats([], iou)
