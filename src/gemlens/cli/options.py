"""The arguments and options that several commands share, each written once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemlens.cli.settings import Sampling
from gemlens.errors import InputError

_MODEL = "A folder, a hub id such as google/gemma-3-4b-it, or a GGUF file."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
ModelOrNone = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL)]
ModelOption = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A folder, a hub id, or a GGUF file.")]
Pictures = Annotated[
    list[str], typer.Argument(metavar="PICTURE...", help="Pictures, or their URLs; - reads one from standard input.")
]
Labels = Annotated[str, typer.Argument(metavar="LABELS", help="What to look for, such as cat or 'cat ; dog'.")]
Threshold = Annotated[float, typer.Option(metavar="P", min=0.0, max=1.0, help="Leave out what has a lower score.")]
SaveDrawing = Annotated[
    Path | None, typer.Option("--save", metavar="PATH", help="Write the picture with drawings; of several, a folder.")
]
Coco = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all findings as COCO JSON.")]
Language = Annotated[str, typer.Option(metavar="CODE", help="Of the answer, such as en or de.")]
Images = Annotated[
    list[str] | None, typer.Option("--image", metavar="PATH", help="A picture, or its URL; repeat for several.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model is told beforehand.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Number format of the weights; auto: the checkpoint's, for GGUF as it is or bfloat16."),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 ...")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Length of an answer at most; default: the model's, or else 512."),
]
Temperature = Annotated[float | None, typer.Option(metavar="T", min=0.0, help="Draw tokens; 0 is --greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", min=0, help="Draw of the K most probable tokens.")]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Draw of the tokens that together have P."),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of the random numbers, for the same answer again.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the most probable token.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture, each on a line.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell times and numbers of tokens on standard error.")]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")]


def sampling(
    max_new_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    greedy: bool,
    stop: list[str] | None,
) -> Sampling:
    """The options of those names as one value.

    Raises:
        BadParameter: one is out of range, or they contradict each other.
    """
    try:
        return Sampling(max_new_tokens, temperature, top_k, top_p, seed, greedy, tuple(stop or ()))
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
