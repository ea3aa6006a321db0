"""The worst answers as a page of pictures: one HTML file that needs no other, runs nothing and fetches nothing.

Report, Source -> the items of the lowest scores -> their pictures, read again -> boxes drawn -> HTML
"""

import base64
import io
from collections.abc import Iterator
from html import escape

from PIL.Image import Image

from gemlens.data.example import Source
from gemlens.errors import InputError
from gemlens.evals.asking import opened
from gemlens.evals.run import Report
from gemlens.evals.score import Item, number_text
from gemlens.tasks.drawing import draw
from gemlens.tasks.findings import parse
from gemlens.tasks.masks import Codec

_SIDE = 448  # pixels of the longer side of a picture on the page
_LONGEST = 2_000  # characters of a text that are shown
_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
"""
_STYLE = """<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
article { border-top: 1px solid #ccc; padding: 1rem 0 } figure { display: inline-block; margin: 0 1rem .5rem 0 }
img { display: block; max-width: 100% } figcaption, h3 { color: #555; font-size: .9rem; font-weight: normal }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .9rem }
</style>
"""


def page(report: Report, source: Source, title: str, *, worst: int = 24, codec: Codec | None = None) -> str:
    """The page's HTML.

    Args:
        report: with scores.
        source: that the items came from; it is read for their pictures.
        title: what was scored on what.
        worst: so many items, those with errors first, then by falling score. None are shown whose score is 1 or more.
        codec: makes masks of `<seg>` tokens.
    """
    shown = worst_items(report, worst)
    parts = [_HEAD, f"<title>{_safe(title)}</title>\n", _STYLE, f"<h1>{_safe(title)}</h1>\n", *_summary(report)]
    if shown:
        parts.append(f"<h2>The {len(shown)} worst</h2>\n")
    parts += [part for item in shown for part in _article(item, source, codec)]
    return "".join(parts)


def worst_items(report: Report, count: int) -> list[Item]:
    """Items that are not right, the worst first: those with errors, then by score, in the order of the source."""
    wrong = [item for item in report.items if item.error is not None or item.score is None or item.score < 1]
    ranks = {item.index: float("-inf") if item.error or item.score is None else item.score for item in wrong}
    return sorted(wrong, key=lambda item: ranks[item.index])[:count]


def _summary(report: Report) -> Iterator[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    errors = f"; {report.errors} could not be read or asked and count as wrong" if report.errors else ""
    yield f"<p>{len(report.items)} examples ({_safe(kinds)}), {report.seconds:.1f} s{errors}.</p>\n<table>\n"
    for name, value in report.values.items():
        yield f"<tr><td>{_safe(name)}</td><td class=number>{number_text(value)}</td></tr>\n"
    yield "</table>\n"


def _article(item: Item, source: Source, codec: Codec | None) -> Iterator[str]:
    score = "" if item.score is None else f", score {item.score:.3f}"
    yield f"<article>\n<h3>{_safe(item.id)}{score}</h3>\n"
    try:
        pictures = opened(source[item.index]).pictures
    except InputError:  # the item's error says why
        pictures = ()
    if pictures and isinstance(pictures[0], Image):
        yield from _figures(item, pictures[0], codec)
    yield "<table>\n"
    rows = [("prompt", item.prefix), *(("error", item.error) for _ in range(item.error is not None))]
    rows += [("answer", item.answer), *(("right", text) for text in dict.fromkeys(item.references))]
    for name, text in rows:
        yield f"<tr><th>{name}</th><td class=text>{_safe(text or '')}</td></tr>\n"
    yield "</table>\n</article>\n"


def _figures(item: Item, picture: Image, codec: Codec | None) -> Iterator[str]:
    """The picture; twice, where boxes were found or are there: with those of the answer and with the true ones."""
    found = parse(item.answer, picture.size, codec)
    true = parse("".join(item.references[:1]), picture.size, codec)
    drawn = [("found", draw(picture, found)), ("true", draw(picture, true))] if found or true else [("", picture)]
    for name, each in drawn:
        each.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        each.save(file, "JPEG", quality=85)
        data = base64.b64encode(file.getvalue()).decode()
        yield f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{name}</figcaption></figure>\n'


def _safe(text: str) -> str:
    """The text as HTML shows it: nothing in it acts, and nothing in it is unseen."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return escape("".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in cut))
