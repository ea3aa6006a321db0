"""One schema for everything a training run can be told: in a TOML file, as flags, and in Python.

    recipe.toml -> read_recipe -> {name: value} -+
    flags of `gemlens train` --------------------+-> settings_of -> Settings, complete and checked

A nested group is a table in the file (`[lora] rank = 8`) and a dotted name elsewhere (`lora.rank`).
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gemlens.errors import InputError
from gemlens.training.lora_settings import LoraSettings


def _said(
    default: Any,
    help: str,  # noqa: A002 - the name that typer, argparse and click have for it
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True)
class Settings:
    """One training run.

    Raises:
        InputError: a value of another type or out of range, or values that contradict each other.
    """

    model: str = _said("", "What to start from: a folder or a hub id.")
    data: tuple[str, ...] = _said((), "What to learn from; see gemlens.data.sources.")
    output: str = _said("", "The folder for checkpoints, metrics and the result.")
    validation: str = _said("", "What to be scored on; empty for nothing.")

    method: Literal["full", "lora"] = _said("lora", "Train weights themselves, or low-rank additions to them.")
    train: tuple[str, ...] = _said((), "Parts that learn; none named: what the method is for.")
    lora: LoraSettings = field(default_factory=LoraSettings)

    steps: int = _said(0, "Updates of the weights; 0: as many as `epochs` need.", least=0)
    epochs: float = _said(1.0, "Passes over the data.", least=0)
    batch_size: int = _said(8, "Examples that are computed at once.", least=1)
    accumulate: int = _said(1, "Batches whose gradients are added up for one step.", least=1)
    max_length: int = _said(0, "Tokens of an example at most; 0: no limit.", least=0)
    workers: int = _said(0, "Processes that read data besides this one.", least=0)
    on_error: Literal["stop", "skip"] = _said("stop", "What an unreadable example does.")

    optimizer: Literal["adamw", "muon"] = _said("adamw", "What changes weights; muon: the matrices of layers by Muon.")
    learning_rate: float = _said(2e-4, "At its highest.", least=0)
    warmup: float = _said(0.05, "Share of the steps in which the rate rises from 0.", least=0, most=1)
    schedule: Literal["cosine", "constant"] = _said("cosine", "How it falls afterwards.")
    final_rate: float = _said(0.0, "Where the cosine ends, as a share of the highest.", least=0, most=1)
    weight_decay: float = _said(0.0, "Of matrices, per step and rate.", least=0)
    beta1: float = _said(0.9, "AdamW's memory of gradients.", least=0, most=1)
    beta2: float = _said(0.999, "AdamW's memory of their squares.", least=0, most=1)
    clip: float = _said(1.0, "The largest norm of a gradient; 0: no limit.", least=0)

    mean: Literal["example", "token"] = _said("example", "What counts alike in the loss.")
    label_smoothing: float = _said(0.0, "Probability that is spread over the vocabulary.", least=0, most=1)
    precision: Literal["auto", "bf16", "fp32"] = _said("auto", "Numbers to compute in; auto: bf16 where it is fast.")
    attention: str = _said("", "Implementation of attention; empty: the model's own choice.")
    gradient_checkpointing: bool = _said(False, "Compute activations again instead of keeping them.")
    compile: bool = _said(False, "Compile the decoder's layers first; on a CPU that needs a C++ compiler.")
    seed: int = _said(0, "Of order, dropout and new weights.", least=0)

    log_every: int = _said(10, "Steps between two lines of metrics.", least=1)
    save_every: int = _said(500, "Steps between two checkpoints.", least=1)
    keep: int = _said(2, "Checkpoints that are kept.", least=1)
    evaluate_every: int = _said(500, "Steps between two evaluations.", least=1)
    evaluate_limit: int = _said(200, "Examples of an evaluation at most; 0: all.", least=0)
    metric: str = _said("loss", "What the best checkpoint is chosen by: loss, or a metric of gemlens.evals.")
    tensorboard: bool = _said(False, "Write metrics for TensorBoard too.")

    def __post_init__(self) -> None:
        for name, kind, each in described(type(self)):
            if not is_dataclass(kind):
                _check(name, getattr(self, name), kind, each)
        for name, meaning in {"model": "what to start from", "output": "a folder for the result"}.items():
            if not getattr(self, name):
                raise InputError(f"The training says no {name}; give {meaning}.")
        if not self.data or not all(self.data):
            raise InputError("The training says no data; give what to learn from, such as a JSONL file.")

    @property
    def examples_per_step(self) -> int:
        """How many examples an update of the weights sees."""
        return self.batch_size * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        """As plain values, nested groups as dicts: what `settings_of` takes."""
        return {name: _plain(getattr(self, name)) for name, _, _ in described(type(self))}


def described(schema: type) -> list[tuple[str, Any, "Field[Any]"]]:
    """(name, type, field) of every setting of a schema."""
    types = get_type_hints(schema)
    return [(each.name, types[each.name], each) for each in fields(schema)]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"The recipe '{path}' cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe '{path}' is no TOML ({error}).") from error


def settings_of(said: Mapping[str, Any], schema: type = Settings) -> Any:
    """The settings of a schema, out of plain values; nested groups are mappings.

    Raises:
        InputError: an unknown name, a value of another type or out of range.
    """
    known = {name: kind for name, kind, _ in described(schema)}
    if unknown := sorted(said.keys() - known.keys()):
        raise InputError(f"There is no training setting {unknown[0]!r}; there are {', '.join(known)}.")
    values = {}
    for name, value in said.items():
        if is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is {value!r}, but it is a group of settings: [{name}] in a file.")
            value = settings_of(value, known[name])
        elif get_origin(known[name]) is tuple and isinstance(value, list | str):
            value = (value,) if isinstance(value, str) else tuple(value)
        elif known[name] is float and type(value) is int:
            value = float(value)
        values[name] = value
    return schema(**values)


def _check(name: str, value: Any, kind: Any, each: "Field[Any]") -> None:
    expected = _expected(kind, each)
    if get_origin(kind) is Literal:
        holds = value in get_args(kind)
    elif get_origin(kind) is tuple:
        holds = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    elif kind in (int, float):
        holds = type(value) in (int, kind) and each.metadata["least"] <= value <= each.metadata["most"]
    else:
        holds = type(value) is kind
    if not holds:
        raise InputError(f"{name} is {value!r}, but it must be {expected}.")


def _expected(kind: Any, each: "Field[Any]") -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind not in (int, float):
        return {str: "a text", bool: "true or false"}.get(kind, "a list of texts")
    least, most = each.metadata["least"], each.metadata["most"]
    number = "a whole number" if kind is int else "a number"
    return f"{number} of at least {least:g}" if most == math.inf else f"{number} from {least:g} to {most:g}"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name, _, _ in described(type(value))}
    return list(value) if isinstance(value, tuple) else value
