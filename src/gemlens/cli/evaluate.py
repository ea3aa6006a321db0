"""`gemlens evaluate`: a model, data with answers -> scores, and where asked for, every answer and the worst as a page.

MODEL, DATA -> Checkpoint, open_source -> evaluate -> a table or JSON; --out: settings, items, summary, page
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import columns, progress, show, tell, waiting

if TYPE_CHECKING:
    from gemlens.data.example import Source
    from gemlens.evals.asking import Reader
    from gemlens.evals.results import Results, Settings
    from gemlens.evals.run import Report
    from gemlens.evals.score import Item
    from gemlens.models.generative import GenerativeModel
    from gemlens.tasks.mask_codec import MaskCodec

PAGE = "page.html"


def evaluate(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Examples with answers: JSONL, COCO, Parquet, a folder, scenes:test ..."),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="exact_match, vqa_accuracy, anls, relaxed_accuracy, cider_d, counting_accuracy, map, map_by_order, "
            "box_iou, mask_iou or perplexity; default: by prompt.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Ask only so many examples.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Choose these at random, not the first ones.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write all answers and a page of the worst; resumable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Examples that are asked together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of an answer at most.")] = 128,
    mask_codec: Annotated[
        str | None, typer.Option(metavar="FILE.npz", help="Makes masks of <seg> tokens, as vae-oid.npz does.")
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", min=0, help="How many answers the page shows.")] = 24,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
    force: Annotated[bool, typer.Option("--force", help="Throw away results of other settings in FOLDER.")] = False,
) -> None:
    """Score a model on examples with answers.

    Answers are greedy; the batch size changes nothing but rounding. Without --metric the prompt decides: cider_d for
    captions, map for detection, mask_iou or box_iou for segmentation, vqa_accuracy where there are ten answers,
    exact_match for everything else. A picture that cannot be read counts as a wrong answer. With --out, an interrupted
    run is taken up where it stopped; another metric can be tried without asking again.

    \b
    gemlens evaluate my-model test.jsonl
    gemlens evaluate google/paligemma2-3b-ft-docci-448 captions/ --limit 500 --out results
    gemlens evaluate my-model "instances.json?tasks=detect" --json
    gemlens evaluate my-model "scenes:test?count=200" --batch-size 16
    """
    from gemlens.data.sources import open_source
    from gemlens.evals.metrics import PERPLEXITY, metric_of
    from gemlens.evals.page import page
    from gemlens.evals.results import Results, summary, write_whole

    codec = None if mask_codec is None else _codec(mask_codec)
    if metric is not None:
        metric_of(metric, codec)  # a wrong name is told before anything is read
    source = open_source(data)
    settings: Settings = {
        "model": model,
        "model_files": _stamp(model),
        "data": data,
        "data_files": _stamp(data.partition("?")[0]),
        "examples": len(source),
        "limit": limit,
        "seed": seed,
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "answers": "given" if metric == PERPLEXITY else "written",
    }
    results = None if out is None else Results(out, settings, anew=force)
    asking = Asking(source, metric, codec, batch_size, max_new_tokens, limit, seed)
    report = _report(asking, model, Loading(dtype, device), results)
    if results is not None:
        results.finish(report, settings)
        write_whole(results.folder / PAGE, page(report, source, f"{model} on {data}", worst=worst, codec=codec))
    told = summary(report, settings)
    show(json.dumps(told) + "\n" if as_json else _table(report))
    if report.errors:
        first = next(item for item in report.items if item.error)
        tell(f"{report.errors} of {len(report.items)} could not be asked and count as wrong; {first.id}: {first.error}")
    if report.errors == len(report.items):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Asking:
    """What is asked; see `gemlens.evals.run.evaluate`."""

    source: "Source"
    metric: str | None
    codec: "MaskCodec | None"
    batch_size: int
    max_new_tokens: int
    limit: int | None
    seed: int | None


def _report(asking: Asking, model: str, loading: Loading, results: "Results | None") -> "Report":
    """Asks what is not known yet. For another metric of the same answers no model is loaded."""
    from gemlens.evals.metrics import PERPLEXITY
    from gemlens.evals.run import chosen_examples, evaluate, scored

    known = {} if results is None else {item.index: item for item in results.items}
    chosen = chosen_examples(asking.source, asking.limit, asking.seed)
    missing = sum(index not in known for index in chosen)
    if not missing:
        return scored([known[index] for index in chosen], metric=asking.metric, codec=asking.codec)
    answerer, reader = _loaded(Checkpoint.of(model), loading, packed=asking.metric != PERPLEXITY)
    with progress("Asking", missing) as advance:

        def on_item(item: "Item") -> None:
            if results is not None:
                results.append(item)
            advance()

        return evaluate(
            answerer,
            reader,
            asking.source,
            metric=asking.metric,
            codec=asking.codec,
            batch_size=asking.batch_size,
            max_new_tokens=asking.max_new_tokens,
            limit=asking.limit,
            seed=asking.seed,
            known=known.values(),
            on_item=on_item,
        )


def _loaded(checkpoint: Checkpoint, loading: Loading, packed: bool) -> "tuple[GenerativeModel, Reader]":
    """The model and what reads prompts for it; packed, it answers faster, but nobody can look below its head."""
    with waiting(f"Loading {checkpoint.name}"):
        reader = checkpoint.reader(checkpoint.config())
        return checkpoint.load_to_answer(loading) if packed else checkpoint.load(loading), reader


def _codec(path: str) -> "MaskCodec":
    from gemlens.tasks.mask_codec import MaskCodec

    return MaskCodec.load(path)


def _stamp(place: str) -> str | None:
    """Tells files from later ones of the same names, by sizes and times; None of what is no file or folder here."""
    path = Path(place)
    if not path.exists():
        return None
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _table(report: "Report") -> str:
    from gemlens.evals.score import number_text

    rows = [(name, number_text(value)) for name, value in report.values.items()]
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    return "\n".join([*columns(rows, right=[1]), f"{len(report.items)} examples ({kinds})", ""])
