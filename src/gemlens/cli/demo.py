"""`gemlens demo`: the embedded model captions, answers, finds, segments and reads, each as one would ask for it.

caption -> the things that it names -> questions, what to find -> findings -> one drawing
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.assets import DEMO_PICTURE, MODEL_NAME
from gemlens.cli.answer import Speaker
from gemlens.cli.ask import Wanted, load_to_look
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.detect import Files
from gemlens.cli.facts import parameters_by_part
from gemlens.cli.prompts import Picture, Reader
from gemlens.cli.settings import Loading, Sampling
from gemlens.cli.terminal import columns, show, waiting
from gemlens.scenes.kinds import KINDS, Kind
from gemlens.tasks import prompts

if TYPE_CHECKING:
    from gemlens.tasks.findings import Finding
    from gemlens.tasks.masks import Codec

_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_NEXT = """
Try next:
  gemlens demo --image mine.jpg                             your own picture
  gemlens detect scene.png "cat ; dog" --save found.png     one task by itself
  gemlens train --help                                      teach a model something new
  gemlens ask photo.jpg "what is this?" --model google/paligemma2-3b-mix-448
                                                            a real checkpoint, by its hub id
"""


def demo(
    image: Annotated[str | None, typer.Option("--image", metavar="PATH", help="Your own picture, or its URL.")] = None,
    save: Annotated[Path, typer.Option("--save", metavar="FILE", help="Where the drawing goes.")] = Path(
        "gemlens-demo.png"
    ),
) -> None:
    """Show the tasks on a picture, with the embedded model and without a download.

    It captions the picture, answers two questions, finds things, segments one and reads what is written. Prompts and
    answers are shown as they come, and what was found is drawn. The model knows drawn scenes only: 48 kinds of things,
    words and numbers, on photographs.

    \b
    gemlens demo
    gemlens demo --image mine.jpg --save mine-found.png
    """
    started = time.perf_counter()
    files = Files(save)
    files.check(1)
    picture = Picture.open(str(DEMO_PICTURE) if image is None else image)
    with waiting(f"Loading {MODEL_NAME}"):
        tour = Tour.with_model(MODEL_NAME, picture)
    (width, height), looked_at = picture.image.size, image or "a drawn scene"
    millions = sum(parameters_by_part(tour.speaker.model.config).values()) / 1e6
    show(f"{MODEL_NAME}, {millions:.1f} million parameters, looks at {looked_at}, {width} x {height}.\n\n")
    findings = tour.make()
    files.write(save.stem, picture, findings)
    show(f"\nThat took {time.perf_counter() - started:.1f} seconds; {save} shows what was found.\n{_NEXT}")


@dataclass(frozen=True)
class Tour:
    """What is asked about one picture; prompts and answers are shown."""

    reader: Reader
    speaker: Speaker
    codec: "Codec | None"
    picture: Picture

    @classmethod
    def with_model(cls, model: str, picture: Picture) -> "Tour":
        """With a PaliGemma that was trained on scenes."""
        from gemlens.checkpoints.hub import Origin
        from gemlens.pipelines.segmentation import codec_of

        checkpoint = Checkpoint.of(model)
        reader = Reader(checkpoint.reader(checkpoint.config()))
        speaker = Speaker(load_to_look(checkpoint, Loading(device="cpu")), reader.tokenizer)
        return cls(reader, speaker, codec_of(Origin(checkpoint.place)), picture)

    def make(self) -> "list[Finding]":
        """Asks everything, and gives what was found: boxes, with a mask where it was asked for."""
        things = named_in(self.ask(prompts.caption()))
        found: list[Finding] = []
        if things:
            for question in questions(things):
                self.ask(prompts.answer(question))
            boxes = self.find(prompts.detect(*sorted(thing.kind.name for thing in things)))
            rarest = min(things, key=lambda thing: thing.count).kind.name
            masks = self.find(prompts.segment(rarest))
            found = [each for each in boxes if not masks or each.label != rarest] + masks
        else:
            some = ", ".join(kind.name for kind in KINDS[:4])
            show(f"(That names none of the {len(KINDS)} kinds of things that this model knows, like {some};\n")
            show("so there is nothing to ask about or to find.)\n\n")
        self.ask(prompts.ocr())
        return found

    def ask(self, prompt: str) -> str:
        """The answer to a prompt."""
        show(f"> {prompt}\n")
        inputs = Wanted(prompt, prompt).inputs(self.reader, self.picture)
        answer = self.speaker.answer(inputs, Sampling(128, greedy=True), show)
        show("\n\n")
        return answer.text

    def find(self, prompt: str) -> "list[Finding]":
        """The findings of the answer to a prompt."""
        from gemlens.tasks.findings import parse, without_repeats

        found = without_repeats(parse(self.ask(prompt), self.picture.image.size, self.codec))
        rows = []
        for each in found:
            edges = [f"{edge:.0f}" for edge in (each.box.left, each.box.top, each.box.right, each.box.bottom)]
            pixels = [] if each.mask is None else [f"{int(each.mask.sum())} pixels"]
            rows.append(["  =", each.label, ", ".join(edges), *pixels])
        if rows:
            show("\n".join(columns(rows)) + "\n\n")
        return found


@dataclass(frozen=True)
class Named:
    """Things of a kind that a caption names."""

    kind: Kind
    count: int


def named_in(caption: str) -> list[Named]:
    """The things of a caption like "a cat, two dogs and the word TREE", in its order."""
    found = []
    for kind in KINDS:
        if match := re.search(rf"\b(\w+) (?:{kind.name}|{kind.names})\b", caption):
            found.append((match.start(), Named(kind, _NUMBERS.get(match[1], 1))))
    return [named for _, named in sorted(found, key=lambda each: each[0])]


def questions(things: Sequence[Named]) -> list[str]:
    """How many there are of what is there most often, and where something is of which there is one."""
    most = max(things, key=lambda thing: thing.count)
    single = [thing.kind for thing in things if thing.count == 1]
    second = f"where is the {single[0].name}?" if single else f"is there {things[-1].kind.one}?"
    return [f"how many {most.kind.names} are there?", second]
