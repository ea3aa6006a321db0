"""All metrics by name, which is that of the value that counts, and which one a prompt gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from gemlens.errors import InputError
from gemlens.evals.anls import anls
from gemlens.evals.cider import cider_d
from gemlens.evals.coco_map import average_precision
from gemlens.evals.counting import counting_accuracy
from gemlens.evals.exact_match import exact_match
from gemlens.evals.found import UNSEEN, Rank, found_boxes, true_boxes
from gemlens.evals.perplexity import perplexity
from gemlens.evals.referring import Fit, fit, referring
from gemlens.evals.relaxed import relaxed_accuracy
from gemlens.evals.score import Item, Metric, Score, of_texts
from gemlens.evals.vqa import vqa_accuracy
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding, parse
from gemlens.tasks.masks import Codec
from gemlens.tasks.prompts import kind_of

PERPLEXITY = "perplexity"  # the one metric of given answers; all others are of answers that the model writes
_TEXT = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "cider_d": cider_d,
    "counting_accuracy": counting_accuracy,
}
NAMES = (*_TEXT, "map", "map_by_order", "box_iou", "mask_iou", PERPLEXITY)


def metric_of(name: str, codec: Codec | None = None) -> Metric:
    """The metric of a name.

    Args:
        name: one of NAMES. "map" ranks boxes by how probable their tokens were, "map_by_order" by their order;
            "box_iou" and "mask_iou" are of the one thing that a prompt names.
        codec: makes masks of `<seg>` tokens.

    Raises:
        InputError: there is none of that name, or masks are to be compared without a codec.
    """
    if name in _TEXT:
        return of_texts(_TEXT[name])
    if name in ("map", "map_by_order"):
        return _AveragePrecision(name, "order" if name == "map_by_order" else "likelihood")
    if name == "box_iou":
        return _Referring(None)
    if name == "mask_iou":
        if codec is None:
            raise InputError(
                "Masks are compared after a codec has made them of <seg> tokens; pass one, or take 'box_iou'."
            )
        return _Referring(codec)
    if name == PERPLEXITY:
        return _perplexity
    raise InputError(f"There is no metric '{name}'; there are {', '.join(NAMES)}.")


def usual_metric(item: Item, codec: Codec | None = None) -> str:
    """The name of the metric that an item's prompt is usually scored by."""
    match kind_of(item.prefix):
        case "caption":
            return "cider_d"
        case "detect":
            return "map"
        case "segment":
            return "box_iou" if codec is None else "mask_iou"
        case "answer" if len(item.references) == 10:
            return "vqa_accuracy"
        case _:
            return "exact_match"


@dataclass(frozen=True)
class _AveragePrecision:
    name: str
    by: Rank

    def __call__(self, items: Sequence[Item], /) -> Score:
        score = average_precision([found_boxes(item, self.by) for item in items], [true_boxes(item) for item in items])
        own = zip(items, score.items, strict=True)
        values = {self.name if name == "map" else name: value for name, value in score.values.items()}
        return Score(values, tuple(0.0 if item.error else value for item, value in own))


@dataclass(frozen=True)
class _Referring:
    """Findings of the answer and of the first reference; masks as the codec makes them, of both."""

    codec: Codec | None

    def __call__(self, items: Sequence[Item], /) -> Score:
        return referring(map(self._fit, items), masks=self.codec is not None)

    def _fit(self, item: Item) -> Fit:
        size = item.size or UNSEEN
        found, true = (parse(text, size, self.codec) for text in (item.answer, "".join(item.references[:1])))
        if item.error and not true:  # what could not be asked was not found, whatever it is
            true = [Finding("", Box(0, 0, *size))]
        return fit(found, true)


def _perplexity(items: Sequence[Item], /) -> Score:
    """Of the items that could be read: what cannot be read has no probability."""
    read = [item for item in items if item.error is None and item.tokens]
    if not read:
        return Score({PERPLEXITY: inf}, (-inf,) * len(items))
    score = perplexity([item.likelihood for item in read], [item.tokens for item in read])
    own = {item.index: value for item, value in zip(read, score.items, strict=True)}
    return Score(score.values, tuple(own.get(item.index, -inf) for item in items))
