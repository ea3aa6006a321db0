"""`gemlens run`: one prompt in, one answer out."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from gemlens.cli import options
from gemlens.cli.answer import Speaker
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.prompts import Inputs, Message, Picture, Reader
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import show, tell, waiting
from gemlens.errors import InputError


def run(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text; - or nothing reads it from standard input.")
    ] = None,
    image: options.Images = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Pass the prompt as it is, without the chat template.")] = False,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    greedy: options.Greedy = False,
    stop: options.Stop = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Answer one prompt; the answer is shown as it comes.

    Instruction-tuned models get the prompt by their chat template; base models and PaliGemma as it is. Pictures stand
    before the text, or where the prompt has their marks. Without options for drawing tokens the model's
    generation_config decides. Ctrl-C ends the answer: what was said stays, the exit code is 130.

    \b
    gemlens run google/gemma-3-4b-it "What is in this picture?" --image cow.jpg
    gemlens run real/gemma-3-270m-q4_k_m.gguf "The capital of France is" --greedy --max-new-tokens 20
    cat notes.txt | gemlens run google/gemma-3-1b-it - --system "Summarise in one sentence." --json
    """
    sampling = options.sampling(max_new_tokens, temperature, top_k, top_p, seed, greedy, stop)
    text, started = _prompt_text(prompt, bool(image)), time.perf_counter()
    pictures = [Picture.open(source) for source in image or ()]
    checkpoint = Checkpoint.of(model)
    with waiting(f"Loading {checkpoint.name}"):
        reader = Reader(checkpoint.reader(checkpoint.config()))
        inputs = _inputs(reader, text, pictures, system, raw)
        speaker = Speaker(checkpoint.load_to_answer(Loading(dtype, device)), reader.tokenizer)
    loading = time.perf_counter() - started
    answer = speaker.answer(inputs, sampling, (lambda text: None) if as_json else show)
    if as_json:
        print(json.dumps({**answer.report(), "load_seconds": round(loading, 4), "model": checkpoint.name}))
    else:
        print(flush=True)
    if verbose:
        tell(f"loaded in {loading:.1f} s as {speaker.model.dtype} on {speaker.model.device}\n{answer}")
    if answer.stop_reason == "interrupted":
        raise typer.Exit(130)


def _inputs(reader: Reader, text: str, pictures: Sequence[Picture], system: str | None, raw: bool) -> Inputs:
    if raw or not reader.has_template or not reader.takes_conversations:
        if system is not None:
            why = "--raw was given" if raw else "this model has no chat template"
            raise InputError(f"--system has no place, as {why}; write it into the prompt.")
        return reader.prompt(text, pictures)
    told = [Message("system", system)] if system is not None else []
    return reader.conversation([*told, Message("user", text, tuple(pictures))])


def _prompt_text(prompt: str | None, with_pictures: bool) -> str:
    """The prompt, from standard input where it is not on the command line."""
    if prompt is None and sys.stdin.isatty():
        raise typer.BadParameter("pass a text, or - to type it and end it with Ctrl-D.", param_hint="PROMPT")
    if prompt is None or prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"Standard input is no text in UTF-8 ({error.reason}).") from error
    if not prompt and not with_pictures:
        raise typer.BadParameter("the prompt is empty.", param_hint="PROMPT")
    return prompt
