"""The app: its commands, the options before them, and how every error ends.

    what went wrong                          standard error         exit code
    the command line itself                  usage, one sentence    2
    a GemlensError, OSError, anything else   one sentence           1
    Ctrl-C                                   a line break           130

torch and the models are imported inside the commands, so that --help comes at once.
"""

import sys
import traceback
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import gemlens
from gemlens.cli.ask import ask
from gemlens.cli.caption import caption
from gemlens.cli.chat import chat
from gemlens.cli.convert import convert
from gemlens.cli.data import data
from gemlens.cli.demo import demo
from gemlens.cli.detect import detect
from gemlens.cli.evaluate import evaluate
from gemlens.cli.inspect import inspect
from gemlens.cli.mask import mask
from gemlens.cli.merge import merge
from gemlens.cli.quantize import quantize
from gemlens.cli.run import run
from gemlens.cli.segment import segment
from gemlens.cli.terminal import tell
from gemlens.cli.train import train
from gemlens.errors import GemlensError


class Commands(TyperGroup):
    """The commands; what one of them raises becomes a sentence and an exit code here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes --debug wherever it stands before `--`: people think of it after the command failed."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(each for each in args[:end] if each != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command.

        Raises:
            Exit: it failed or was interrupted; what there is to say was said.
        """
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort, BrokenPipeError):
            raise  # typer's own, and a reader such as `head` that has enough
        except KeyboardInterrupt:
            tell("")
            raise typer.Exit(130) from None
        except Exception as error:  # the end of the program, where anything must become a sentence
            if ctx.params["debug"]:
                traceback.print_exc()
            tell(f"gemlens: {sentence(error)}")
            raise typer.Exit(1) from None


def sentence(error: Exception) -> str:
    """What an error means to the person at the terminal."""
    if isinstance(error, GemlensError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    what = type(error).__name__ + (f": {lines[0]}" if lines else "")
    return f"Something unforeseen happened ({what}); --debug shows where."


def main() -> None:
    """The program `gemlens`, and `python -m gemlens`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a character shows a question mark
            stream.reconfigure(errors="replace")
    warnings.formatwarning = lambda message, *_, **__: f"gemlens: {message}\n"
    sys.exit(app(prog_name="gemlens"))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"gemlens {gemlens.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to import than all else
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; also after COMMAND.")] = False,
) -> None:
    """PaliGemma, PaliGemma 2 and Gemma 3 at the command line.

    Answers, tables and JSON are on standard output, everything else on standard error. Exit codes: 0 done, 1 an error,
    2 a mistake in the command line, 130 interrupted.
    """


for command in (
    demo,
    caption,
    ask,
    detect,
    segment,
    run,
    chat,
    inspect,
    mask,
    convert,
    quantize,
    train,
    merge,
    evaluate,
):
    app.command()(command)
app.add_typer(data, name="data")
