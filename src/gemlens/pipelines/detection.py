"""Pictures and labels -> what is where in them: boxes in pixels of the original pictures, with scores.

pictures, labels -> "detect cat ; dog" -> the model's answer, greedily -> parse -> Findings
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeAlias

from PIL.Image import Image

from gemlens.data.example import Example
from gemlens.errors import InputError
from gemlens.evals.asking import Reader, Said, WrittenAnswers
from gemlens.evals.found import found_boxes
from gemlens.evals.score import Item
from gemlens.models.auto import AutoModelForImageTextToText
from gemlens.models.generative import GenerativeModel
from gemlens.pipelines.task import Pipeline, batches, sort_keywords
from gemlens.processing.pictures.pictures import open_picture
from gemlens.tasks import prompts
from gemlens.tasks.boxes import BINS, checked_bins
from gemlens.tasks.findings import Finding, parse, without_repeats
from gemlens.tasks.labels import split
from gemlens.tasks.mask_pictures import mask_pictures

Record: TypeAlias = dict[str, Any]


class Answer(NamedTuple):
    """What was found in a picture, and the text that said so."""

    findings: list[Finding] | list[Record]
    text: str


@dataclass(frozen=True)
class Settings:
    """What a call asks for.

    Args:
        labels: what to look for, or "cat ; dog" in one text.
        threshold: findings of a lower score are left out.
        max_new_tokens: length of an answer at most: of a box four tokens and its label, of a mask 16 more.
        batch_size: so many pictures are looked at together.
        keep_repeats: whether to keep a box of the same label that covers the same as one before it.
        return_text: whether to give the model's answer, too.
        as_dicts: whether to give `{"score": 0.9, "label": "cat", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}`
            instead of findings, as other libraries do; with masks, "mask" is a picture of mode L.
        bins: into how many steps <loc> tokens cut a side: 1023, or 1024 for models that were trained so.
        allow_urls: whether pictures may be fetched from http and https URLs.

    Raises:
        InputError: a value out of range.
    """

    labels: str | Sequence[str] = ()
    threshold: float = 0.0
    max_new_tokens: int = 256
    batch_size: int = 1
    keep_repeats: bool = False
    return_text: bool = False
    as_dicts: bool = False
    bins: int = BINS
    allow_urls: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold!r}, but scores lie within 0 and 1.")
        checked_bins(self.bins)

    @property
    def names(self) -> list[str]:
        """The labels, one by one.

        Raises:
            InputError: there are none.
        """
        names = split(self.labels) if isinstance(self.labels, str) else list(self.labels)
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError("Nothing to look for was named; pass labels=['cat', 'dog'] or 'cat ; dog'.")
        return names


class DetectionPipeline(Pipeline):
    """Finds things in pictures.

    The score of a finding is the geometric mean of the probabilities of its four `<loc>` tokens: PaliGemma itself
    writes none. It orders findings well and is no frequency of being right.

    Args:
        model: a PaliGemma, or a Gemma 3 with pictures that was trained to write boxes.
        processor: of the model.
        defaults: keywords of a call; see `Settings`.
    """

    task = "detect"
    models = AutoModelForImageTextToText
    prompt: ClassVar[Callable[..., str]] = staticmethod(prompts.detect)

    model: GenerativeModel

    def __init__(self, model: GenerativeModel, processor: Reader, **defaults: Any) -> None:
        super().__init__(model, processor, **defaults)
        self.processor = processor

    def __call__(self, pictures: Any, labels: str | Sequence[str] | None = None, **keywords: Any) -> Any:
        """Looks for things in a picture or in each of a list of pictures.

        Args:
            pictures: whatever `open_picture` takes: a path, a URL, a Pillow image; boxes count the pixels of the
                picture as it is seen, turned as its EXIF data says.
            labels: what to look for: `["cat", "dog"]`, or "cat ; dog".
            keywords: see `Settings`.

        Returns:
            A list of `Finding`s in the order in which the model wrote them; with `as_dicts`, of dicts; with
            `return_text`, an `Answer`. Of a list of pictures, a list of these.

        Raises:
            InputError: no labels, or an argument is wrong.
            PictureError: a picture is damaged or may not be fetched.
            TypeError: a keyword of an unknown name.
        """
        given = {} if labels is None else {"labels": labels}
        settings = self.settings(self.processor, {**self._defaults, **keywords, **given})
        many = isinstance(pictures, (list, tuple))
        prompt, answers = self.prompt(*settings.names), []
        for batch in batches(pictures if many else [pictures], settings.batch_size):
            opened = [open_picture(each, allow_urls=settings.allow_urls) for each in batch]
            answers += self._look(opened, prompt, settings)
        found = answers if settings.return_text else [answer.findings for answer in answers]
        return found if many else found[0]

    @classmethod
    def settings(cls, encoder: Any, keywords: Mapping[str, Any]) -> Settings:
        """What keywords of a call ask for; see `Settings`."""
        (own,) = sort_keywords(keywords, [each.name for each in fields(Settings)], task=cls.task)
        return Settings(**own)

    def _look(self, pictures: Sequence[Image], prompt: str, settings: Settings) -> list[Answer]:
        """What is in each of some pictures that are looked at together."""
        ask = WrittenAnswers(self.model, self.processor, settings.max_new_tokens)
        said = ask([Example(f"picture {number}", (each,), prompt) for number, each in enumerate(pictures)])
        answers = []
        for picture, one in zip(pictures, said, strict=True):
            findings = self._parse(one.answer, picture.size, settings)
            found = [
                replace(finding, score=score)
                for finding, score in zip(findings, _scores(one, picture.size), strict=True)
                if score >= settings.threshold
            ]
            found = found if settings.keep_repeats else without_repeats(found)
            answers.append(Answer(_records(found, picture.size) if settings.as_dicts else found, one.answer))
        return answers

    def _parse(self, text: str, size: tuple[int, int], settings: Settings) -> list[Finding]:
        return parse(text, size, bins=settings.bins)


def _scores(said: Said, size: tuple[int, int]) -> list[float]:
    """Of each finding; `gemlens evaluate` ranks by the same ones."""
    item = Item(
        0, "", answer=said.answer, size=size, tokens=said.tokens, likelihood=said.likelihood, locations=said.locations
    )
    return [found.score for found in found_boxes(item, by="likelihood")]


def _records(findings: Sequence[Finding], size: tuple[int, int]) -> list[Record]:
    """Findings as other libraries give them: edges as whole pixels."""
    records = []
    for finding, mask in zip(findings, mask_pictures(findings, size), strict=True):
        box = finding.box
        edges = {"xmin": box.left, "ymin": box.top, "xmax": box.right, "ymax": box.bottom}
        record: Record = {"score": finding.score, "label": finding.label}
        record["box"] = {name: round(edge) for name, edge in edges.items()}
        records.append(record if mask is None else {**record, "mask": mask})
    return records
