"""Whatever stands in a data file, reading it gives an example or a sentence that names the place."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from data_files import coco, picture, row
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens.data.check import check
from gemlens.data.coco import Coco, CocoSettings
from gemlens.data.example import Example, Source
from gemlens.data.jsonl import JsonList
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.rows import RowReader
from gemlens.data.sources import open_source
from gemlens.errors import InputError

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": "cow.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cow."},
    ],
    "id": 5,
    "references": ["A cow.", "cow"],
}
ROWS = [row(), row(image=["cow.png", "cow.png"]), {"file_name": "cow.png", "text": "a cow"}, CHAT]
NAMES = ["image", "images", "prefix", "suffix", "messages", "role", "content", "type", "text", "path", "bytes", "id"]
TEXTS = [
    "",
    "cow.png",
    "<image>",
    "user",
    "assistant",
    "image",
    "text",
    "../cow.png",
    "\ud800",
    "\0",
    "data:,x",
    "http://x",
]

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(TEXTS))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    picture(folder / "cow.png")
    return folder


def places(value: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in a value: [(), ("image",), ("messages", 0, "role"), ...]."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [trail, *(found for key, each in inner for found in places(each, (*trail, key)))]


def put(value: Any, trail: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place."""
    if not trail:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[trail[0]] = put(value[trail[0]], trail[1:], new)
    return copy


def refused(call: Callable[[], Any]) -> tuple[Any, str]:
    """(value, "") of a call, or (None, the sentence it was refused with)."""
    try:
        return call(), ""
    except InputError as error:
        return None, str(error)


def read_all(source: Source, name: str) -> None:
    """Reads every example; what is refused must say where."""
    for number in range(len(source)):
        example, sentence = refused(partial(source.__getitem__, number))
        assert "\n" not in sentence
        assert len(sentence) < 700
        if example is None:
            assert name in sentence
        else:
            for text in (example.prefix, example.suffix, example.id, *example.references):
                text.encode()


@given(st.data())
@settings(max_examples=600)
def test_any_value_in_any_place_of_a_row(place: Path, data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(ROWS))
    damaged = put(original, data.draw(st.sampled_from(places(original))), data.draw(values))
    read_all(JsonList(place / "rows.json", [damaged], RowReader(PictureFolder(place))), "rows.json")


@given(values)
@settings(max_examples=300)
def test_any_value_as_a_row(place: Path, value: Any) -> None:
    read_all(JsonList(place / "rows.json", [value], RowReader(PictureFolder(place))), "rows.json")


class Flat:
    """A codec that sees no difference."""

    def encode(self, masks: Any) -> Any:
        import torch

        return torch.zeros((len(masks), 16), dtype=torch.int64)

    def decode(self, codes: Any) -> Any:
        raise AssertionError


@given(st.data())
@settings(max_examples=600)
def test_any_value_in_any_place_of_a_coco_file(place: Path, data: st.DataObject) -> None:
    original = coco()
    damaged = put(original, data.draw(st.sampled_from(places(original)[1:])), data.draw(values))
    tasks = data.draw(st.sampled_from([(), ("segment",), ("caption",), ("detect", "segment")]))
    chosen = CocoSettings(tasks=tasks, codec=Flat())
    source, sentence = refused(lambda: Coco(place / "c.json", damaged, PictureFolder(place), chosen))
    assert source is not None or "c.json" in sentence
    read_all(source or (), "c.json")


@given(st.lists(st.binary(max_size=30), max_size=5).map(b"\n".join))
@settings(max_examples=300)
def test_any_bytes_in_a_file_of_lines(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    source = open_source(path)
    read_all(source, "any.jsonl:")


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_in_a_csv_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"image,caption\n" + data)
    source, sentence = refused(lambda: open_source(path))
    assert source is not None or "any.csv" in sentence
    read_all(source or (), "any.csv:")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", "this is no JSON"),
        ('{"id": NaN}', "NaN is no number"),
        ('{"id": 1', "this is no JSON .* at column 9"),
        ('{"image": "cow.png", "prefix": "\\ud800", "suffix": ""}', "'prefix' has half a character"),
        ('"row"', "this is 'row', but a row is an object"),
        ("{}", "the row has '';"),
        ('{"imge": 1, "prefix": "a"}', "the row has 'imge, prefix'; expected are image"),
        ('{"prefix": "a", "caption": "b"}', "the row has 'caption, prefix'; expected"),
        ('{"image": "a.png", "images": [], "prefix": "", "suffix": ""}', "given as 'image' and as 'images'"),
        ('{"prefix": 5, "suffix": ""}', "'prefix' is 5, but it must be a text"),
        ('{"prefix": "", "suffix": "", "id": true}', "'id' is True"),
        ('{"prefix": "", "suffix": "", "references": "a"}', "'references' is 'a', but it must be a list"),
        ('{"image": {"bytes": "x"}, "prefix": "", "suffix": ""}', "the picture"),
        ('{"image": "data:image/png;base64,AAAA", "prefix": "", "suffix": ""}', "is no picture that is read here"),
    ],
    ids=lambda value: value[:20] if len(value) < 60 else "long",
)
def test_damaged_lines_are_sentences(place: Path, line: str, sentence: str) -> None:
    path = place / "lines.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n")
    source = open_source(path)
    assert source[0].prefix == "detect cow0"
    with pytest.raises(InputError, match=rf"lines\.jsonl:2: .*{sentence}"):
        source[1]


def test_a_file_in_another_encoding_is_a_sentence(place: Path) -> None:
    path = place / "utf16.jsonl"
    path.write_text(json.dumps(row()), "utf-16")
    with pytest.raises(InputError, match=r"utf16\.jsonl:1: this is no UTF-8 .*save the file as UTF-8"):
        open_source(path)[0]


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=40)), max_size=6))
@settings(max_examples=100)
def test_a_check_survives_any_texts(texts: list[tuple[str, str]]) -> None:
    from gemlens.data.example import Examples

    tokens = ["<loc0001>", "<loc9>", "<seg000>", "detect a ; b", "<eos>", " ; "]
    rows = [
        Example(str(number), (), tokens[number % 6] + asked, answered + tokens[(number + 3) % 6])
        for number, (asked, answered) in enumerate(texts)
    ]
    report = check(Examples(rows))
    json.dumps(report.to_dict())
