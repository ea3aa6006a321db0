"""`gemlens ask`: a question about pictures -> the answer to each, as it comes. `gemlens caption` asks in the same way.

PICTURE... -> Opened -> Wanted.inputs, in the words of the model's kind -> Speaker -> a line or JSON for each
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.assets import MODEL_NAME
from gemlens.cli import options
from gemlens.cli.answer import Speaker
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.facts import parameters_by_part
from gemlens.cli.prompts import Inputs, Message, Picture, Reader
from gemlens.cli.settings import Loading, Sampling
from gemlens.cli.terminal import show, tell, waiting
from gemlens.errors import PictureError
from gemlens.tasks import prompts

if TYPE_CHECKING:
    from gemlens.models.generative import GenerativeModel

_SMALL = 30_000_000  # parameters


def ask(
    pictures: options.Pictures,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about each picture.")],
    model: options.ModelOption = MODEL_NAME,
    language: options.Language = "en",
    max_new_tokens: options.MaxNewTokens = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.JsonLines = False,
) -> None:
    """Ask a question about pictures.

    PaliGemma reads "answer en QUESTION", a model with a chat template a message. The answer is the most probable one;
    `gemlens run` takes any prompt, and options to draw answers. Without --model the embedded model answers, which knows
    drawn scenes only.

    \b
    gemlens ask scene.png "how many cats are there?"
    gemlens ask *.jpg "is it raining?" --model google/paligemma2-3b-mix-448 --json
    """
    check_is_no_file(question, "QUESTION")
    message = question if language == "en" else f"{question} (Answer in the language with the code '{language}'.)"
    wanted = Wanted(prompts.answer(question, language), message)
    answer_each(pictures, wanted, model, Loading(dtype, device), max_new_tokens, as_json)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a picture: `prompt` in PaliGemma's words, `message` in words for a conversation."""

    prompt: str
    message: str

    def inputs(self, reader: Reader, picture: Picture) -> Inputs:
        """What a model of that kind reads."""
        if not reader.takes_conversations:
            return reader.prompt(self.prompt, [picture], control_tokens_act=False)
        if reader.has_template:
            return reader.conversation([Message("user", self.message, (picture,))])
        return reader.prompt(self.message, [picture], control_tokens_act=False)


class Opened:
    """The pictures of a command line, opened one at a time; what cannot be opened is told, and the others go on."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources, self._failed = sources, False

    def __iter__(self) -> Iterator[Picture]:
        for source in self._sources:
            try:
                yield _standard_input() if source == "-" else Picture.open(source)
            except PictureError as error:
                self._failed = True
                tell(f"gemlens: {error}")

    def finish(self) -> None:
        """Ends the command with an error if a picture could not be opened.

        Raises:
            Exit: so it was.
        """
        if self._failed:
            raise typer.Exit(1)


def answer_each(
    sources: Sequence[str], wanted: Wanted, model: str, loading: Loading, max_new_tokens: int | None, as_json: bool
) -> None:
    """Shows the answer about each picture.

    Raises:
        Exit: Ctrl-C ended an answer, or a picture could not be opened.
    """
    pictures, loaded = Opened(sources), None
    for picture in pictures:
        reader, speaker = loaded = loaded or _load(Checkpoint.of(model), loading)
        if len(sources) > 1 and not as_json:
            show(f"{picture.source}: ")
        inputs, greedy = wanted.inputs(reader, picture), Sampling(max_new_tokens, greedy=True)
        answer = speaker.answer(inputs, greedy, (lambda text: None) if as_json else show)
        if as_json:
            show(json.dumps({"picture": picture.source, **answer.report()}))
        show("\n")
        if answer.stop_reason == "interrupted":
            raise typer.Exit(130)
    pictures.finish()


def check_is_no_file(text: str, name: str) -> None:
    """Refuses a picture in the place of what is wanted of pictures, which is the last argument.

    Raises:
        BadParameter: `text` is the path of a file.
    """
    if Path(text).suffix and Path(text).is_file():
        raise typer.BadParameter(f"'{text}' is a file; this comes behind the pictures.", param_hint=name)


def load_to_look(checkpoint: Checkpoint, loading: Loading) -> "GenerativeModel":
    """The model, to answer about one picture at a time.

    Threads wait for each other longer than they work on products as small as the embedded model's: forty tokens took
    0.3 s with one thread and 11 s with two, where others used the two cores as well.
    """
    import torch

    model = checkpoint.load_to_answer(loading)
    if sum(parameters_by_part(model.config).values()) < _SMALL:  # packed weights are no parameters
        torch.set_num_threads(1)
    return model


def _load(checkpoint: Checkpoint, loading: Loading) -> tuple[Reader, Speaker]:
    with waiting(f"Loading {checkpoint.name}"):
        reader = Reader(checkpoint.reader(checkpoint.config()))
        reader.check_takes_pictures()
        return reader, Speaker(load_to_look(checkpoint, loading), reader.tokenizer)


def _standard_input() -> Picture:
    from gemlens.processing.pictures.pictures import open_picture

    return Picture("-", open_picture(sys.stdin.buffer))
