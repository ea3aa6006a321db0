"""The page of the worst: whole in one file, nothing in it acts, and boxes are where they were found."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scripted import white

from gemlens.data.example import Example, Examples
from gemlens.evals.page import page, worst_items
from gemlens.evals.run import Report, scored
from gemlens.evals.score import Item
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding, write

HOSTILE = "<script>alert(1)</script> \" ' & \x00 \u202e <img src=x onerror=alert(1)> \ud800"
BOX = Box(8, 8, 40, 40)
CAT = write([Finding("cat", BOX)], (64, 48))


def made(
    answer: str = HOSTILE, prefix: str = "caption en", right: str = "a cat", count: int = 1
) -> tuple[Report, Examples]:
    source = Examples([Example(f"<b>{number}", (white(),), prefix, right) for number in range(count)])
    items = [Item(number, f"<b>{number}", prefix, answer, (right,), (64, 48)) for number in range(count)]
    return scored(items, metric="exact_match"), source


PLAIN = {"html", "meta", "title", "style", "h1", "h2", "h3", "p", "table", "tr", "td", "th", "article", "figure", "img",
         "figcaption"}  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and their attributes, and the texts between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_hostile_texts_are_shown_and_do_nothing() -> None:
    read = Tags(page(*made("no", prefix=HOSTILE, right=HOSTILE), title=HOSTILE))
    assert {tag for tag, _ in read.tags} == PLAIN
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert all((attributes["src"] or "").startswith("data:image/jpeg") for tag, attributes in read.tags if tag == "img")
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\u202e", "\ufffd").replace("\ud800", "\ufffd")
    assert read.texts.count(shown) == 4  # title, heading, prompt, right answer


def test_the_page_fetches_nothing_and_is_utf8() -> None:
    html = page(*made(answer="\u4f60"), title="x")
    assert "default-src 'none'" in html
    assert "http://" not in html
    assert "https://" not in html
    assert "\u4f60" in html.encode().decode()


def test_boxes_of_answer_and_truth_are_drawn_on_two_pictures() -> None:
    found, true = pictures(page(*made(answer="nothing", prefix="detect cat", right=CAT), title="x"))
    inside = (slice(6, 42), slice(6, 42))
    assert np.asarray(found).min() > 240
    assert np.asarray(true)[inside].min() < 80


def test_an_answer_without_boxes_has_one_picture() -> None:
    assert len(pictures(page(*made(), title="x"))) == 1


def test_large_pictures_are_made_small() -> None:
    source = Examples([Example("wide", (white(2000, 500),), "caption en", "x")])
    report = scored([Item(0, "wide", "caption en", "y", ("x",), (2000, 500))], metric="exact_match")
    assert [each.size for each in pictures(page(report, source, "x"))] == [(448, 112)]


def test_the_worst_come_first_and_right_ones_not_at_all() -> None:
    scores = [0.5, 1.0, 0.25, None, 0.25, 0.0]
    items = [Item(number, str(number), score=score) for number, score in enumerate(scores)]
    items.append(Item(6, "6", error="gone", score=0.0))
    report = Report({}, tuple(items), {}, 1, 0.0)
    assert [item.index for item in worst_items(report, 9)] == [3, 6, 5, 2, 4, 0]
    assert [item.index for item in worst_items(report, 2)] == [3, 6]
    assert worst_items(report, 0) == []


def test_so_many_as_asked_are_on_the_page() -> None:
    report, source = made(count=5)
    assert page(report, source, "x", worst=3).count("<article>") == 3
    assert page(report, source, "x", worst=9).count("<article>") == 5


def test_an_unreadable_picture_is_told_and_not_shown() -> None:
    source = Examples([Example("a", (b"junk",), "caption en", "x")])
    report = scored([Item(0, "a", "caption en", references=("x",), error="It is <gone>.")], metric="exact_match")
    html = page(report, source, "x")
    assert not pictures(html)
    assert "It is &lt;gone&gt;." in html
    assert "1 could not be read or asked" in html


@pytest.mark.parametrize("length", [10_000])
def test_endless_answers_are_cut(length: int) -> None:
    html = page(*made(answer="z" * length), title="x")
    assert max(map(len, re.findall("z+", html))) == 2000
