"""Examples -> one HTML page that needs nothing else: pictures with boxes and masks, prompts, answers, token lengths.

Everything from the data is escaped, and the page forbids itself scripts and the network besides.
"""

import base64
import io
import unicodedata
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL.Image import Image

from gemlens.data.check import Measure
from gemlens.data.example import Example, Source
from gemlens.data.picture_folder import open_pictures
from gemlens.data.text_checks import text_problems, texts_of
from gemlens.errors import GemlensError, InputError
from gemlens.tasks import drawing, findings
from gemlens.tasks.masks import Codec

_SIDE = 512  # pixels of a picture on the page, at most
_LONGEST = 5000  # characters of a text
_STYLE = """
:root { color-scheme: light dark; --line: #d0d4da; --quiet: #5c6570; --wrong: #b3261e; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --line: #3c434c; --quiet: #9aa4b0; --wrong: #ff8a80; --box: #1d2228; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
article { background: var(--box); border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
img { display: block; max-width: 100%; }
div { padding: .75rem 1rem; }
h2 { color: var(--quiet); font-size: .85rem; font-weight: normal; margin: 0; overflow-wrap: anywhere; }
h3 { color: var(--quiet); font-size: .75rem; margin: .6rem 0 0; }
pre { font: 13px/1.4 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.wrong { color: var(--wrong); margin: .6rem 0 0; }
"""


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<main>
{cards}
</main>
</body>
</html>
"""


def write_page(
    source: Source, path: Path, count: int = 50, measure: Measure | None = None, codec: Codec | None = None
) -> int:
    """Writes a page of examples, evenly spread over the source.

    Args:
        source: of the examples.
        path: of the page.
        count: examples at most.
        measure: tells how many tokens prompt and answer of an example have.
        codec: decodes masks; without it, only boxes are drawn.

    Returns:
        How many examples the page shows.

    Raises:
        InputError: the file cannot be written.
    """
    total = len(source)
    shown = min(count, total)
    page = _Page(measure, codec)
    cards = [page.card(source, place * total // shown) for place in range(shown)]
    title = f"{shown} of {total} examples"
    text = _PAGE.format(title=title, style=_STYLE, cards="\n".join(cards))
    try:
        path.write_bytes(text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be written ({str(error.strerror).lower()}).") from error
    return shown


@dataclass(frozen=True)
class _Page:
    measure: Measure | None
    codec: Codec | None

    def card(self, source: Source, number: int) -> str:
        """One example, or the sentence why it cannot be read."""
        try:
            example = source[number]
        except GemlensError as error:
            return f"<article><div>{_text('p', str(error), 'wrong')}</div></article>"
        pictures, problems = self._pictures(example)
        texts = "".join(_text("h3", title) + _text("pre", text) for title, text in _texts(example))
        problems += [f"{name}: {sentence}" for name, sentence in text_problems(example)]
        wrong = "".join(_text("p", problem, "wrong") for problem in problems)
        return (
            f"<article>{pictures}<div>{_text('h2', example.id)}{texts}{self._lengths(example)}{wrong}</div></article>"
        )

    def _pictures(self, example: Example) -> tuple[str, list[str]]:
        """The pictures as HTML, and what is wrong with them."""
        try:
            pictures = [_reduced(picture) for picture in open_pictures(example)]
        except GemlensError as error:
            return "", [str(error)]
        if len(pictures) == 1:
            _, answer = texts_of(example)
            found = findings.parse(answer, pictures[0].size, self.codec)
            pictures = [drawing.draw(pictures[0], found)]
        return "".join(f'<img alt="" src="{_data_url(picture)}">' for picture in pictures), []

    def _lengths(self, example: Example) -> str:
        if self.measure is None:
            return ""
        try:
            asked, answered = self.measure(example)
        except GemlensError as error:
            return _text("p", str(error), "wrong")
        return _text("h3", f"{asked} + {answered} = {asked + answered} tokens")


def _texts(example: Example) -> list[tuple[str, str]]:
    """(title, text) of everything that is said."""
    if not example.messages:
        references = [("reference", text) for text in example.references]
        return [("prefix", example.prefix), ("suffix", example.suffix), *references]
    said = []
    for message in example.messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "[picture]") for part in content]
        said.append((message["role"], "\n".join(parts)))
    return said


def _text(tag: str, text: str, kind: str = "") -> str:
    """An element that holds a text and nothing else, whatever the text says."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    harmless = "".join(each if each in "\n\t" or unicodedata.category(each) != "Cc" else "\ufffd" for each in text)
    kind = kind and f' class="{kind}"'
    return f"<{tag}{kind}>{escape(harmless)}</{tag}>"


def _reduced(picture: Image) -> Image:
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _data_url(picture: Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
