"""The page shows what is in the data, needs nothing else, and obeys nothing that the data says."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from data_files import BOX, picture, row, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gemlens.data.example import Example, Examples
from gemlens.data.preview import write_page
from gemlens.data.sources import open_source
from gemlens.errors import InputError

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></article></main><iframe src=//evil>",
    "'; alert(1); '",
    "&lt;script&gt;",
    "<!-- <svg/onload=alert(1)>",
    "\x00\x1b[31m\ud800\u202e",
    "{cards}{0}{style.__class__}",
]


class Page(HTMLParser):
    """Elements, attributes and the text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def pictures(self) -> list[Image.Image]:
        urls = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        data = [base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True) for url in urls]
        return [Image.open(io.BytesIO(each)) for each in data]


def page_of(rows: list[Example], path: Path, **named: object) -> Page:
    write_page(Examples(rows), path / "page.html", **named)  # type: ignore[arg-type]
    return Page((path / "page.html").read_text("utf-8"))


def is_harmless(page: Page) -> bool:
    """Only our elements, none with a handler, an address of the network or a script."""
    ours = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "main",
        "article",
        "div",
        "h2",
        "h3",
        "pre",
        "p",
        "img",
    }
    values = [
        value
        for _, name, value in page.attributes
        if name not in ("content", "alt", "class", "lang", "charset", "name")
    ]
    return set(page.tags) <= ours and all(
        re.fullmatch(r"data:image/jpeg;base64,[\w+/=]*|Content-Security-Policy", value) for value in values
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_only_texts(tmp_path: Path, text: str) -> None:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": [{"type": "text", "text": text}]})
    cow = Image.new("RGB", (40, 30))
    rows = [
        Example(text, (cow,), f"detect {text}", f"{BOX} {text}", references=(text,)),
        Example("chat", (), messages=messages),
        Example("gone", (Path(text.replace("\0", "")),), text, text),
    ]
    page = page_of(rows, tmp_path)
    assert is_harmless(page)
    shown = "".join(page.words)
    visible = text.replace("\0", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "?")
    assert f"{BOX} {visible}" in shown


@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(HOSTILE)), min_size=3, max_size=3))
@settings(max_examples=100)
def test_any_texts_are_only_texts(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    blank = Image.new("RGB", (40, 30))
    rows = [Example(texts[0], (), texts[1], texts[2]), Example(texts[2], (blank,), texts[0], f"{BOX} {texts[1]}")]
    assert is_harmless(page_of(rows, tmp_path_factory.getbasetemp()))


def test_the_page_forbids_itself_scripts_and_the_network(tmp_path: Path) -> None:
    page_of([Example("x", (Image.new("RGB", (40, 30)),), "ocr", "a")], tmp_path)
    text = (tmp_path / "page.html").read_text()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in text
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text
    assert not re.search(
        r"(?:https?:)?//\w|url\(|@import", text.replace("data:image/jpeg;base64,", "").split("<main>")[0]
    )


def test_boxes_are_drawn_where_they_are_and_pictures_are_reduced(tmp_path: Path) -> None:
    grey = Image.new("RGB", (2000, 1000), (128, 128, 128))
    corners = "<loc0256><loc0256><loc0767><loc0767> cow"  # a quarter to three quarters
    with_box, without = page_of(
        [Example("x", (grey,), "detect cow", suffix) for suffix in (corners, "")], tmp_path
    ).pictures
    assert with_box.size == (512, 256)
    change = np.abs(np.asarray(with_box, dtype=int) - np.asarray(without, dtype=int)).max(axis=2) > 60
    rows, columns = np.nonzero(change[:, 250:])  # right of the name
    assert abs(rows.min() - 64) <= 2
    assert abs(rows.max() - 192) <= 2
    assert abs(columns.max() + 250 - 384) <= 2


def test_masks_are_drawn_with_a_codec(tmp_path: Path) -> None:
    import torch

    class All:
        def encode(self, masks: torch.Tensor) -> torch.Tensor:
            raise AssertionError

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(codes), 64, 64)

    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    answer = "<loc0256><loc0256><loc0767><loc0767>" + "<seg000>" * 16 + " cow"
    example = Example("x", (grey,), "segment cow", answer)
    (plain,), (tinted,) = (page_of([example], tmp_path, codec=codec).pictures for codec in (None, All()))
    middle = (100, 100)
    assert max(abs(each - 128) for each in plain.getpixel(middle)) < 10  # type: ignore[union-attr, operator]
    assert max(abs(each - 128) for each in tinted.getpixel(middle)) > 20  # type: ignore[union-attr, operator]


def test_examples_are_spread_evenly_and_counted(folder: Path) -> None:
    source = open_source(write_jsonl(folder / "train.jsonl", [row(number) for number in range(100)]))
    assert write_page(source, folder / "page.html", count=4) == 4
    page = Page((folder / "page.html").read_text())
    assert [word for word in page.words if word.startswith("train.jsonl")] == [
        f"train.jsonl:{n}" for n in (1, 26, 51, 76)
    ]
    assert "4 of 100 examples" in page.words
    assert write_page(source, folder / "page.html", count=500) == 100


def test_what_cannot_be_read_is_shown_as_a_sentence(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    source = open_source(write_jsonl(folder / "train.jsonl", [{"imge": 1}, row(image="bad.png"), row(suffix="cow")]))
    write_page(source, folder / "page.html")
    shown = "".join(Page((folder / "page.html").read_text()).words)
    assert "train.jsonl:1: the row has 'imge'" in shown
    assert "bad.png' is no picture that is read here" in shown
    assert "broken box: the answer to detect or segment has no <loc> tokens." in shown


def test_token_lengths_are_shown(folder: Path) -> None:
    source = open_source(write_jsonl(folder / "train.jsonl", [row()]))
    write_page(source, folder / "page.html", measure=lambda example: (260, 7))
    assert "260 + 7 = 267 tokens" in (folder / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_a_sentence(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/page\.html' cannot be written"):
        write_page(Examples([]), folder / "nowhere" / "page.html")


def test_several_pictures_are_shown_without_boxes(folder: Path) -> None:
    other = picture(folder / "other.png", 5)
    page = page_of([Example("x", (folder / "cow.png", other), "detect cow", f"{BOX} cow")], folder)
    assert len(page.pictures) == 2
