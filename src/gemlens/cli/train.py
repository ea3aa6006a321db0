"""`gemlens train`: a recipe in TOML, flags over it, progress on standard error.

The flags are the settings of gemlens.training.settings, one for one: `learning_rate` is --learning-rate, and `rank` in
the group `lora` is --lora-rank.
"""

import inspect as signatures
from collections.abc import Iterator, Mapping
from dataclasses import Field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from gemlens.cli.terminal import tell
from gemlens.training.settings import Settings, described, read_recipe, settings_of


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A TOML file with settings; flags win over it.")
    ] = None,
    **flags: Any,
) -> None:
    """Train a model or an adapter, or go on where the same training stopped.

    \b
    gemlens train recipe.toml
    gemlens train --model google/paligemma2-3b-pt-224 --data boxes.jsonl --output boxes --steps 500
    """
    from gemlens.cli.training_progress import Interruption, Progress
    from gemlens.training.train import train as run

    said = read_recipe(recipe) if recipe else {}
    settings = settings_of(_over(said, flags))
    with Progress() as progress, Interruption() as interruption:
        result = run(settings, watch=progress.step, say=progress.say, stop=interruption.came)
    tell(f"The result is in {result}.")


def _flags(schema: type, group: str = "") -> Iterator[tuple[str, Any, "Field[Any]"]]:
    """(name, type, field) of every setting, those of groups as `group.name`."""
    for name, kind, each in described(schema):
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _flags(kind, f"{name}.")
        else:
            yield group + name, kind, each


def _parameter(name: str, kind: Any, each: "Field[Any]") -> signatures.Parameter:
    shown = name.replace(".", "-").replace("_", "-")
    named = f"--{shown}/--no-{shown}" if kind is bool else f"--{shown}"
    many = get_origin(kind) is tuple
    metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else _METAVARS[str if many else kind]
    option = typer.Option(named, help=_help(each), metavar=metavar, show_default=False)
    wanted = Annotated[(list[str] if many else kind) | None, option]  # type: ignore[valid-type]
    return signatures.Parameter(
        name.replace(".", "__"), signatures.Parameter.KEYWORD_ONLY, default=None, annotation=wanted
    )


def _help(each: "Field[Any]") -> str:
    """What a setting is for, and what it is where neither recipe nor flag says."""
    default = ", ".join(each.default) if isinstance(each.default, tuple) else each.default
    shown = f" [{str(default).lower()}]" if default not in ("", None) else ""
    return f"{each.metadata['help']}{shown}"


_METAVARS: Mapping[Any, str | None] = {str: "TEXT", int: "N", float: "X", bool: None}


def _over(said: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe says, and over it the flags that were given."""
    merged = dict(said)
    for name, value in flags.items():
        if value is None or value == []:
            continue
        group, _, leaf = name.rpartition("__")
        if group:
            merged[group] = {**merged.get(group, {}), leaf: value}
        else:
            merged[leaf] = value
    return merged


def _with_flags(command: Any) -> Any:
    """Gives a command a flag for every setting, in the signature that typer reads."""
    signature = signatures.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not signatures.Parameter.VAR_KEYWORD]
    made = [_parameter(*flag) for flag in _flags(Settings)]
    command.__signature__ = signature.replace(parameters=[*own, *made])
    command.__annotations__ = {each.name: each.annotation for each in (*own, *made)}
    return command


train = _with_flags(train)
