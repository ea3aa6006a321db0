"""`gemlens detect`: pictures and labels -> boxes: as lines, JSON, COCO and drawings. `gemlens segment` shares all this.

PICTURE... -> Opened -> the task's pipeline -> findings -> standard output, Files
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from gemlens.assets import MODEL_NAME
from gemlens.cli import options
from gemlens.cli.ask import Opened, check_is_no_file, load_to_look
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.prompts import Picture
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import columns, show, tell, waiting
from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.pipelines.detection import DetectionPipeline
    from gemlens.tasks.coco import FoundIn
    from gemlens.tasks.findings import Finding

_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def detect(
    pictures: options.Pictures,
    labels: options.Labels,
    model: options.ModelOption = MODEL_NAME,
    threshold: options.Threshold = 0.0,
    save: options.SaveDrawing = None,
    coco: options.Coco = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of an answer at most.")] = 256,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.JsonLines = False,
) -> None:
    """Find things in pictures and say where they are.

    A line for each: the picture if there are several, label, score, left, top, right and bottom in pixels of the
    picture as it is seen. The score is the mean probability of the tokens that wrote the box. A PaliGemma is needed, or
    a model that was trained to write boxes as PaliGemma does. Without --model the embedded model looks, which knows
    drawn scenes only.

    \b
    gemlens detect scene.png "cat ; dog" --save found.png
    gemlens detect *.jpg "traffic light" --model google/paligemma2-3b-mix-448 --coco found.json
    """

    def load() -> "DetectionPipeline":
        from gemlens.pipelines.detection import DetectionPipeline

        checkpoint = Checkpoint.of(model)
        reader = checkpoint.reader(checkpoint.config())
        settings: dict[str, Any] = {"threshold": threshold, "max_new_tokens": max_new_tokens}
        return DetectionPipeline(load_to_look(checkpoint, Loading(dtype, device)), reader, **settings)

    find_in_each(pictures, labels, load, Files(save, coco), as_json)


@dataclass(frozen=True)
class Files:
    """What is written beside standard output.

    Args:
        save: drawings: a file, for one picture, or a folder.
        coco: a file for all findings.
        masks: a folder for masks, a picture each.
    """

    save: Path | None = None
    coco: Path | None = None
    masks: Path | None = None

    def check(self, pictures: int) -> None:
        """Before anything long begins.

        Raises:
            InputError: there are several pictures and one file, or a name ends in no format of pictures.
        """
        if self.save is None or not self._one_file(self.save):
            return
        if pictures > 1:
            raise InputError(f"--save '{self.save}' is one file for {pictures} pictures; name a folder.")
        if self.save.suffix.lower() not in _FORMATS:
            raise InputError(f"--save '{self.save}' must end in one of {', '.join(_FORMATS)}, or be a folder.")

    def write(self, name: str, picture: Picture, findings: "Sequence[Finding]") -> None:
        """Writes the drawing and the masks of a picture; `name` is what they are called in a folder."""
        from gemlens.tasks.drawing import draw
        from gemlens.tasks.mask_pictures import mask_pictures

        if self.save is not None:
            path = self.save if self._one_file(self.save) else self.save / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(picture.image, findings).save(path)
        if self.masks is not None:
            self.masks.mkdir(parents=True, exist_ok=True)
            for number, mask in enumerate(mask_pictures(findings, picture.image.size), 1):
                if mask is not None:
                    mask.save(self.masks / f"{name}-{number}.png")

    @staticmethod
    def _one_file(path: Path) -> bool:
        return bool(path.suffix) and not path.is_dir()


def find_in_each(
    sources: Sequence[str], labels: str, load: "Callable[[], DetectionPipeline]", files: Files, as_json: bool
) -> None:
    """Shows and writes what is found in each picture.

    Raises:
        InputError: labels or files cannot be what is meant.
        Exit: a picture could not be opened.
    """
    check_is_no_file(labels, "LABELS")
    files.check(len(sources))
    pictures = Opened(sources)
    found = _looked(pictures, dict(zip(sources, _names(sources), strict=True)), labels, load, files, as_json)
    if files.coco is None:
        for _ in found:
            pass
    else:
        from gemlens.checkpoints.save import write_json
        from gemlens.tasks.coco import to_coco

        write_json(files.coco, to_coco(found))  # takes one after the other: masks of many would fill the memory
    if written := [str(path) for path in (files.save, files.masks, files.coco) if path is not None]:
        tell(f"Saved to {' and '.join(written)}.")
    pictures.finish()


def _looked(
    pictures: Opened,
    names: dict[str, str],
    labels: str,
    load: "Callable[[], DetectionPipeline]",
    files: Files,
    as_json: bool,
) -> "Iterator[FoundIn]":
    from gemlens.tasks.coco import FoundIn

    pipeline = None
    for picture in pictures:
        if pipeline is None:
            with waiting("Loading the model"):
                pipeline = load()
        with waiting(f"Looking at {picture.source}"):
            findings, text = pipeline(picture.image, labels, return_text=True)
        if as_json:
            show(json.dumps(_report(picture, findings, text)) + "\n")
        else:
            _print(picture, findings, text, with_name=len(names) > 1)
        files.write(names[picture.source], picture, findings)
        yield FoundIn(picture.source, picture.image.size, findings)


def _print(picture: Picture, findings: "Sequence[Finding]", text: str, with_name: bool) -> None:
    if not findings:
        said = f"; the model's answer was {text!r}" if text else ""
        tell(f"Nothing was found in {picture.source}{said}.")
        return
    rows = []
    for finding in findings:
        box = finding.box
        edges = [f"{edge:.0f}" for edge in (box.left, box.top, box.right, box.bottom)]
        rows.append([*([picture.source] if with_name else []), finding.label, f"{finding.score:.3f}", *edges])
    show("\n".join(columns(rows, right=range(len(rows[0]) - 5, len(rows[0])))) + "\n")


def _report(picture: Picture, findings: "Sequence[Finding]", text: str) -> dict[str, Any]:
    """What a program wants to know."""
    from gemlens.tasks import rle

    width, height = picture.image.size
    found = []
    for finding in findings:
        box = {name: round(getattr(finding.box, name), 2) for name in ("left", "top", "right", "bottom")}
        mask = {} if finding.mask is None else {"mask": rle.encode(finding.mask)}
        found.append({"label": finding.label, "score": finding.score, "box": box, **mask})
    return {"picture": picture.source, "width": width, "height": height, "findings": found, "text": text}


def _names(sources: Sequence[str]) -> list[str]:
    """A name for the files of each picture; no two are alike."""
    names: list[str] = []
    for source in sources:
        path = urlsplit(source).path if "://" in source else source
        stem = "picture" if source == "-" or source.startswith("data:") else PurePath(path).stem or "picture"
        choices = (f"{stem}-{number}" if number else stem for number in count())
        names.append(next(name for name in choices if name not in names))
    return names
