"""`gemlens data`: what is wrong with data, and how it looks.

DATA -> open_source -> Source -> check -> Report -> table or JSON
                              -> write_page -> HTML
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.options import Json
from gemlens.cli.terminal import columns, plain, progress, tell, waiting

if TYPE_CHECKING:
    from gemlens.data.check import Lengths, Measure, Report
    from gemlens.data.example import Example, Source

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="JSONL, JSON, COCO, CSV, Parquet, a folder of pictures with texts, or scenes:train; choices behind a "
        "question mark, as in 'instances.json?tasks=detect&labels=present'.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "--processor", metavar="MODEL", help="Whose tokens to count: a folder or a hub id."),
]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Let the data name pictures outside its folder; trust it then.")
]


@data.callback()
def about() -> None:
    """Look at data before training on it: what is wrong with it, and how it looks.

    \b
    gemlens data check train.jsonl --against validation.jsonl
    gemlens data preview train.jsonl page.html
    """


@data.command("check")
def check_data(
    name: Data,
    against: Annotated[
        str | None, typer.Option(metavar="DATA", help="Other data, which must not have the same pictures.")
    ] = None,
    model: Model = None,
    allow_outside: AllowOutside = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let remarks count as wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Read everything and tell what is wrong.

    Wrong are rows and pictures that cannot be read, empty answers, control tokens in texts, boxes that cannot be read
    back, prompts that say their answer, two answers to one prompt, pictures that --against has too. The exit code is 1
    if anything is wrong, and 0 if there are only remarks.

    \b
    gemlens data check train.jsonl --against validation.jsonl --model google/paligemma2-3b-pt-224
    gemlens data check "instances.json?tasks=detect,segment&codec=vae-oid.npz" --json
    """
    from gemlens.data.check import check

    source = _open(name, allow_outside)
    other = _open(against, allow_outside) if against is not None else None
    measure = _measure(model) if model is not None else None
    with progress("Reading", len(source) + (len(other) if other is not None else 0)) as advance:
        report = check(source, other, measure, advance)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _show(report)
    if not report.is_fine or (strict and report.found):
        raise typer.Exit(1)


@data.command("preview")
def preview_data(
    name: Data,
    page: Annotated[Path, typer.Argument(metavar="PAGE.html", help="Where the page is written.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Examples to show, evenly spread.")] = 50,
    model: Model = None,
    codec: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Decoder of masks (vae-oid.npz); without it, boxes are drawn.")
    ] = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Write an HTML page that shows examples.

    Pictures with boxes and masks drawn on them, prompts and answers are all in the one file, which needs no network.

    \b
    gemlens data preview train.jsonl page.html --count 100
    """
    from gemlens.data.preview import write_page
    from gemlens.tasks.mask_codec import MaskCodec

    source = _open(name, allow_outside)
    measure = _measure(model) if model is not None else None
    with waiting(f"Writing {page}"):
        shown = write_page(source, page, count, measure, MaskCodec.load(codec) if codec is not None else None)
    tell(f"Wrote {shown} of {len(source)} examples to {page}.")


def _open(name: str, allow_outside: bool) -> "Source":
    from gemlens.data.sources import open_source

    with waiting(f"Opening {name}"):
        return open_source(name, allow_outside=allow_outside or None)


def _measure(model: str) -> "Measure":
    """Counts the tokens of examples as training does. What the pictures show does not matter for that."""
    from dataclasses import replace

    from PIL import Image

    from gemlens.models.loss import IGNORED
    from gemlens.training.batches import Collator

    checkpoint = Checkpoint.of(model)
    collate, blank = Collator(checkpoint.reader(checkpoint.config())), Image.new("RGB", (8, 8))

    def measure(example: "Example") -> tuple[int, int]:
        batch = collate([replace(example, pictures=(blank,) * len(example.pictures))])
        learned = int((batch["labels"] != IGNORED).sum())
        return int(batch["attention_mask"].sum()) - learned, learned

    return measure


# -- the report --------------------------------------------------------------------------------------------------------


def _show(report: "Report") -> None:
    from gemlens.data.check import REMARKS, WRONG

    _table(_summary(report))
    if tokens := report.tokens():
        print()
        _table(_lengths(tokens), right=(1, 2, 3))
    for title, names in (("wrong", WRONG), ("remark", REMARKS)):
        if found := [name for name in names if report.found[name]]:
            print()
            _table([(title, "times", ""), *((name, f"{report.found[name]:,}", names[name]) for name in found)], (1,))
            for sentence in (sentence for name in found for sentence in report.sentences[name]):
                print(plain(f"  {sentence}"))
    print("\nNothing is wrong." if report.is_fine else "\nSomething is wrong; see above.")


def _lengths(tokens: "Mapping[str, Lengths]") -> list[tuple[str, ...]]:
    steps = sorted({step for each in tokens.values() for step in each.histogram})
    rows = [(f"up to {step}", *(f"{each.histogram.get(step, 0):,}" for each in tokens.values())) for step in steps]
    return [("tokens", *tokens), *rows, ("the longest", *(f"{each.longest:,}" for each in tokens.values()))]


def _summary(report: "Report") -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.most_common())
    rows = [("examples", f"{report.examples:,}" + (f": {kinds}" if kinds else ""))]
    if report.sizes:
        usual, _ = report.sizes.most_common(1)[0]
        (least, *_, most) = sorted((*report.sizes, usual), key=lambda size: size[0] * size[1])
        sizes = [f"{width} x {height}" for width, height in (least, most, usual)]
        rows.append(("pictures", f"{report.sizes.total():,}, from {sizes[0]} to {sizes[1]} pixels, mostly {sizes[2]}"))
    return rows


def _table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A table: lines of columns, or on a terminal one that rich fits into its width."""
    if not sys.stdout.isatty():
        print("\n".join(columns(rows, right)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for place in range(len(rows[0])):
        table.add_column(justify="right" if place in right else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console().print(table)
