"""What every config can do: hold the documented fields, keep what it does not know, go to a file and come back.

A config class lists its documented arguments as class attributes, in the documented order, with their defaults.
Keys that are no field survive a round trip in `extra` and are never acted on: a file of ours or of somebody else's
may name code, hosts or settings of other programs (CVE-2026-4372 was such a key).
"""

import copy
import difflib
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard, get_origin

from gemlens.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu", "silu", "swish", "relu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class PretrainedConfig:
    """Fields shared by all configs; the classes below it add the documented ones.

    Args:
        dtype: the number format of the checkpoint, `"bfloat16"` or `torch.bfloat16`; also read as `torch_dtype`.
        architectures: class names that the checkpoint was saved from.
        tie_word_embeddings: whether the head shares the embedding's weight.
        return_dict: False makes forward return plain tuples.
        output_attentions: default of the forward argument of that name.
        output_hidden_states: default of the forward argument of that name.
        problem_type: `"regression"`, `"single_label_classification"` or `"multi_label_classification"`.
        id2label: names of the classes of a classifier; `num_labels=n` makes `LABEL_0` to `LABEL_{n-1}`.
        label2id: the reverse of `id2label`.

    Raises:
        ConfigError: a value that describes no model, or a keyword that looks like a misspelt field.
    """

    model_type: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, str]] = {}
    fields: ClassVar[Mapping[str, Any]] = {}
    _positional: ClassVar[tuple[str, ...]] = ()

    dtype: str | None = None
    architectures: list[str] | None = None
    tie_word_embeddings: bool = True
    return_dict: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    problem_type: str | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    extra: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = _defaults(cls)
        cls._positional = tuple(own)
        cls.fields = {**own, **{name: value for name, value in _defaults(PretrainedConfig).items() if name not in own}}
        cls.aliases = {"torch_dtype": "dtype", **cls.aliases}
        keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
        arguments = [inspect.Parameter(name, keyword, default=default) for name, default in own.items()]
        # help() and editors show the documented arguments instead of *args.
        cls.__signature__ = inspect.Signature([*arguments, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self._positional):
            raise TypeError(f"{type(self).__name__} takes {len(self._positional)} arguments but {len(args)} were given")
        given = dict(zip(self._positional, args, strict=False))
        if twice := sorted(given.keys() & kwargs.keys()):
            raise TypeError(f"{type(self).__name__} got {twice[0]!r} twice, by place and by name")
        self._refuse_misspelt(kwargs)
        self._fill({**given, **kwargs})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **overrides: Any) -> Self:
        """A config from the content of a `config.json`; `overrides` win. The mapping is not changed.

        A text or vision config also reads the part that concerns it out of a multimodal checkpoint's config.

        Raises:
            ConfigError: the file describes another kind of model, or a value is wrong.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"A config must be a JSON object, but {type(data).__name__} came.")
        part = _part_for(cls.model_type, data)
        config = cls.__new__(cls)
        config._refuse_misspelt(overrides)
        config._fill({**copy.deepcopy(dict(part)), **overrides})
        return config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """The config of a folder or of a hub repository. Keyword arguments beyond the documented ones override fields.

        Raises:
            CheckpointError: there is no readable `config.json`.
            ConfigError: it describes another kind of model, or a value is wrong.
        """
        from gemlens.checkpoints.hub import Origin, read_json

        origin = Origin(pretrained_model_name_or_path, revision, subfolder, token, cache_dir, local_files_only)
        return cls.from_dict(read_json(origin.fetch("config.json")), **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Every field, `model_type` and every unknown key, as plain values that JSON can hold."""
        values = {name: getattr(self, name) for name in self.fields}
        plain = {
            name: value.to_dict() if isinstance(value, PretrainedConfig) else value for name, value in values.items()
        }
        return copy.deepcopy({**self.extra, **plain, "model_type": self.model_type})

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `config.json`, as this library and transformers read it."""
        from gemlens.checkpoints.save import write_json

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.to_dict())

    def get_text_config(self, decoder: bool = True) -> "PretrainedConfig":
        """The config of the text decoder: this one, or the part of a multimodal one.

        accelerate passes `decoder`; it changes nothing, since no other part reads text.
        """
        return getattr(self, "text_config", self)

    @property
    def num_labels(self) -> int:
        """How many classes a classification head has; 2 unless told."""
        return 2 if self.id2label is None else len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.check(type(count) is int and count > 0, "num_labels", count, "a positive integer")
        self.id2label = {label: f"LABEL_{label}" for label in range(count)}
        self.label2id = {name: label for label, name in self.id2label.items()}

    def validate(self) -> None:
        """Turns parts given as dicts into configs, fills what depends on other fields, refuses wrong values."""

    def check(self, holds: bool, name: str, value: object, expected: str) -> None:
        """Raises the one kind of sentence that all wrong values get, unless `holds`."""
        if not holds:
            raise ConfigError(f"{type(self).__name__}.{name} is {value!r}, but it must be {expected}.")

    def check_positive(self, *names: str) -> None:
        """Sizes and counts: whole numbers above zero (True is not a count)."""
        for name in names:
            value = getattr(self, name)
            self.check(type(value) is int and value > 0, name, value, "a positive integer")

    def check_positive_number(self, *names: str, optional: bool = False) -> None:
        """Finite real numbers above zero; None too where `optional`."""
        for name in names:
            value = getattr(self, name)
            fine = is_number(value) and 0 < value < float("inf")
            wanted = "a finite number above 0" + (" or None" if optional else "")
            self.check(fine or (optional and value is None), name, value, wanted)

    def check_between(self, name: str, low: float, high: float) -> None:
        """A real number within two bounds, both included."""
        value = getattr(self, name)
        self.check(is_number(value) and low <= value <= high, name, value, f"a number from {low:g} to {high:g}")

    def check_flags(self, *names: str) -> None:
        """True or False, and nothing that Python would take for them."""
        for name in names:
            self.check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")

    def check_name(self, name: str, known: Collection[str]) -> None:
        """One of the known names."""
        value = getattr(self, name)
        self.check(isinstance(value, str) and value in known, name, value, f"one of {', '.join(known)}")

    def check_token(self, *names: str, least: int = 0) -> None:
        """Ids of tokens."""
        for name in names:
            value = getattr(self, name)
            self.check(type(value) is int and value >= least, name, value, "a token id")

    def _refuse_misspelt(self, given: Mapping[str, Any]) -> None:
        known = {*self.fields, *self.aliases, "num_labels", "model_type"}
        for name in given.keys() - known:
            if name.startswith("_"):
                continue  # a private setting of another program
            if close := difflib.get_close_matches(name, known, n=1, cutoff=0.93):
                raise ConfigError(f"{type(self).__name__} has no argument {name!r}; did you mean {close[0]!r}?")

    def _fill(self, given: dict[str, Any]) -> None:
        object.__setattr__(self, "extra", {})
        given.pop("model_type", None)
        count = given.pop("num_labels", None)
        for name, default in self.fields.items():
            object.__setattr__(self, name, copy.deepcopy(default))
        for name, value in given.items():
            field = self.aliases.get(name, name)
            if field in self.fields:
                object.__setattr__(self, field, value)
            else:
                self.extra[name] = value
        if count is not None and (self.id2label is None or len(self.id2label) != count):
            self.num_labels = count
        self._validate_common()
        self.validate()

    def _validate_common(self) -> None:
        if self.dtype is not None:
            self.dtype = str(self.dtype).removeprefix("torch.")  # torch.bfloat16 and "bfloat16" alike
            self.check_name("dtype", DTYPES)
        if self.problem_type is not None:
            self.check_name("problem_type", PROBLEM_TYPES)
        if (names := self.id2label) is not None:
            fine = isinstance(names, dict) and all(_is_whole(key) and isinstance(names[key], str) for key in names)
            self.check(fine, "id2label", names, "a mapping of numbers to names")
            self.id2label = {int(label): name for label, name in names.items()}
        if (labels := self.label2id) is not None:
            self.check(isinstance(labels, dict), "label2id", labels, "a mapping of names to numbers")
        if (classes := self.architectures) is not None:
            self.check(isinstance(classes, list), "architectures", classes, "a list of class names")
        self.check_flags("tie_word_embeddings", "return_dict", "output_attentions", "output_hidden_states")

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.aliases.get(name, name)
        if name in self.fields or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            self.extra[name] = value

    if not TYPE_CHECKING:  # so that a misspelt attribute stays an error for the type checker

        def __getattr__(self, name: str) -> Any:
            if name in type(self).aliases:
                return getattr(self, type(self).aliases[name])
            if not name.startswith("__") and name in self.__dict__.get("extra", {}):
                return self.extra[name]
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    def __repr__(self) -> str:
        changed = {name: value for name, value in vars(self).items() if name != "extra" and value != self.fields[name]}
        shown = ", ".join(f"{name}={value!r}" for name, value in {**changed, **self.extra}.items())
        return f"{type(self).__name__}({shown})"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(key: object) -> bool:
    """Whether a key is a whole number, or one as JSON writes it."""
    return type(key) is int or (isinstance(key, str) and key.removeprefix("-").isdecimal())


def _defaults(cls: type) -> dict[str, Any]:
    annotations = vars(cls).get("__annotations__", {})
    kept = {name: kind for name, kind in annotations.items() if get_origin(kind) is not ClassVar and name != "extra"}
    return {name: vars(cls)[name] for name in kept}


def _part_for(model_type: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a file's content that describes `model_type`: all of it, or one of its sub-configs."""
    said = data.get("model_type", model_type)
    if said == model_type:
        return data
    for part in (data.get("text_config"), data.get("vision_config")):
        if isinstance(part, Mapping) and part.get("model_type") == model_type:
            return part
    raise ConfigError(f"The config describes a model of type {said!r}, but one of type {model_type!r} was asked for.")
