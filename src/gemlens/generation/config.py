"""How text is continued: `Settings`, complete and checked, and `GenerationConfig`, the documented class around them.

What a call says wins over what its generation_config says, that over the model's, that over the defaults below. A
GenerationConfig remembers what was said, so that saying the default also counts.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from gemlens.errors import ConfigError, InputError

CACHES = ("dynamic", "dynamic_full", "quantized", "offloaded", "static", "hybrid", "offloaded_static")
FILE = "generation_config.json"
_ABOUT_THE_FILE = ("transformers_version", "_from_model_config", "_commit_hash")


@dataclass(frozen=True)
class Settings:
    """One way to continue text, with the reference's names and defaults.

    Args:
        max_length: tokens of prompt and answer together; without it and `max_new_tokens`, 20 new tokens.
        max_new_tokens: tokens of the answer; wins over `max_length`.
        min_length, min_new_tokens: before so many tokens no end token is allowed.
        max_time: seconds after which no further token is begun.
        stop_strings: texts at which the answer ends, themselves included; need `tokenizer=`.
        do_sample: draw tokens instead of taking the most probable one.
        num_beams: beams per row; 1 for none.
        early_stopping: of beams: True stops when there are `num_beams` finished ones, False when a better one is
            unlikely, "never" when none can come.
        length_penalty: a finished beam's log-probability is divided by its length to this power.
        num_return_sequences: answers per row.
        temperature, top_k, top_p, min_p, typical_p: see gemlens.generation.warpers; only with `do_sample`.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens, begin_suppress_tokens,
        forced_bos_token_id, forced_eos_token_id: see gemlens.generation.logits.
        renormalize_logits: make scores log-probabilities after all of these.
        use_cache: False reads the whole text again for every token.
        cache_implementation: one of CACHES; None for dynamic. "quantized" holds eight bits for each number.
        prefill_chunk_size: read the prompt in pieces of about this many tokens.
        prompt_lookup_num_tokens: guess so many tokens by what followed the last words before.
        max_matching_ngram_size: so many last words at most; 2 by default.
        num_assistant_tokens: guess so many tokens with `assistant_model=`.
        num_assistant_tokens_schedule: "constant", or "heuristic": 2 more after a full success, else 1 less.
        assistant_confidence_threshold: the assistant stops guessing at a token less probable than this.
        pad_token_id: fills rows that have ended; by default the model's, else the first end token.
        bos_token_id: only kept.
        eos_token_id: tokens that end an answer, one or several.
        return_dict_in_generate: give more than the ids; with output_scores, output_logits, output_attentions,
            output_hidden_states also these, per step.
        disable_compile: do not compile, whatever `compile=` says.

    Raises:
        InputError: a value out of range.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool = False
    num_beams: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    renormalize_logits: bool = False
    use_cache: bool = True
    cache_implementation: str | None = None
    prefill_chunk_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int = 20
    num_assistant_tokens_schedule: str = "constant"
    assistant_confidence_threshold: float = 0.4
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    disable_compile: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            expected, holds = _RULES[field.name]
            if not holds(value):
                raise InputError(f"{field.name} is {value!r}, but it must be {expected}.")

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids of `eos_token_id`."""
        return ids_of(self.eos_token_id)

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; at temperature 0 the most probable one is all there is."""
        return self.do_sample and self.temperature > 0


class GenerationConfig:
    """Settings of which only some need be said; see `Settings` for them, and the module for what wins over what.

    Raises:
        TypeError: an unknown name.
        InputError: a value out of range.
    """

    def __init__(self, **settings: Any) -> None:
        self._said: dict[str, Any] = {}
        self.update(**settings)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in DEFAULTS:
            raise AttributeError(f"GenerationConfig has no setting {name!r}")
        return self._said.get(name, DEFAULTS[name])

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.update(**{name: value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self._said == other._said

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self._said.items())})"

    __hash__ = None  # type: ignore[assignment]  # it can change

    def update(self, **settings: Any) -> None:
        """Says more.

        Raises:
            TypeError: an unknown name; nothing is changed.
            InputError: a value out of range; nothing is changed.
        """
        if unknown := sorted(settings.keys() - DEFAULTS.keys()):
            raise TypeError(f"There is no generation setting {', '.join(map(repr, unknown))}.")
        said = {**self._said, **settings}
        Settings(**said)
        self._said = said

    def settings(self) -> Settings:
        """All of them, defaults included."""
        return Settings(**self._said)

    def over(self, other: "GenerationConfig") -> "GenerationConfig":
        """What is said here, and what only the other says; a length that is said here is not outdone by the other's."""
        said = {**other._said, **self._said}
        if "max_length" in self._said and "max_new_tokens" not in self._said:
            said.pop("max_new_tokens", None)
        return GenerationConfig(**said)

    def to_dict(self) -> dict[str, Any]:
        """What is said, as plain values."""
        return dict(self._said)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads the content of a `generation_config.json`. What says nothing about the text it describes is left out.

        Raises:
            ConfigError: a value out of range, or a setting that would change the text and that gemlens does not have.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{FILE} must be a JSON object, but a {type(data).__name__} came.")
        unknown = {name: value for name, value in data.items() if name not in {*DEFAULTS, *_ABOUT_THE_FILE}}
        if changing := sorted(name for name, value in unknown.items() if not _is_neutral(name, value)):
            raise ConfigError(f"{FILE} sets {', '.join(map(repr, changing))}, which gemlens does not know.")
        said = {name: data[name] for name in DEFAULTS if data.get(name) is not None}
        # Published files say "hybrid", an older name of what is chosen anyway; a length of 20 is the reference's own
        # default, by which it means 20 new tokens.
        for name, unsaid in (("cache_implementation", "hybrid"), ("max_length", 20)):
            if said.get(name) == unsaid:
                del said[name]
        try:
            return cls(**said)
        except InputError as error:
            raise ConfigError(f"{FILE}: {error}") from None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | Path,
        *,
        revision: str = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Reads the `generation_config.json` of a folder or of a hub repository.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
            ConfigError: see `from_dict`.
        """
        from gemlens.checkpoints.hub import Origin, read_json

        origin = Origin(pretrained_model_name, revision, subfolder, token, cache_dir, local_files_only)
        return cls.from_dict(read_json(origin.fetch(FILE)))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `generation_config.json`, which transformers opens."""
        from gemlens.checkpoints.save import write_json

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, self.to_dict())


DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Settings)}

# Settings of the reference that gemlens does not have, and the values at which they do nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,), "diversity_penalty": (0,), "encoder_repetition_penalty": (1,), "epsilon_cutoff": (0,),
    "encoder_no_repeat_ngram_size": (0,), "eta_cutoff": (0,), "guidance_scale": (1,), "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
}  # fmt: skip


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value is False or value in _NEUTRAL.get(name, ())


def ids_of(given: int | Collection[int] | None) -> tuple[int, ...]:
    """One token id, several or none, as a tuple."""
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


_Rule = tuple[str, Callable[[Any], bool]]


def _whole(least: int) -> _Rule:
    return f"a whole number of at least {least}", lambda value: type(value) is int and value >= least


def _number(description: str, holds: Callable[[float], bool]) -> _Rule:
    return description, lambda value: type(value) in (int, float) and math.isfinite(value) and holds(value)


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(_is_id, value))


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(text, str) and text for text in texts)


_FLAG: _Rule = ("True or False", lambda value: type(value) is bool)
_PROBABILITY = _number("a number above 0 and up to 1", lambda value: 0 < value <= 1)
_POSITIVE = _number("a number above 0", lambda value: value > 0)
_TOKENS: _Rule = ("a list of token ids", _are_ids)
_TOKEN: _Rule = ("a token id", _is_id)
_END_TOKENS: _Rule = ("a token id or a list of them", lambda value: _is_id(value) or _are_ids(value))

_RULES: Mapping[str, _Rule] = {
    "max_length": _whole(1),
    "max_new_tokens": _whole(1),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "max_time": _POSITIVE,
    "stop_strings": ("a text or a list of texts of at least one character", _are_texts),
    "do_sample": _FLAG,
    "num_beams": _whole(1),
    "early_stopping": ("True, False or 'never'", lambda value: type(value) is bool or value == "never"),
    "length_penalty": _number("a number", lambda value: True),
    "num_return_sequences": _whole(1),
    "temperature": _number("a number of at least 0 (0 takes the most probable token)", lambda value: value >= 0),
    "top_k": _whole(0),
    "top_p": _PROBABILITY,
    "min_p": _number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "typical_p": _PROBABILITY,
    "repetition_penalty": _POSITIVE,
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": (
        "a list of words, each a list of token ids",
        lambda value: isinstance(value, list | tuple) and all(_are_ids(word) and word for word in value),
    ),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "forced_bos_token_id": _TOKEN,
    "forced_eos_token_id": _END_TOKENS,
    "renormalize_logits": _FLAG,
    "use_cache": _FLAG,
    "cache_implementation": (f"one of {', '.join(CACHES)}", lambda value: value in CACHES),
    "prefill_chunk_size": _whole(1),
    "prompt_lookup_num_tokens": _whole(1),
    "max_matching_ngram_size": _whole(1),
    "num_assistant_tokens": _whole(1),
    "num_assistant_tokens_schedule": ("'constant' or 'heuristic'", lambda value: value in ("constant", "heuristic")),
    "assistant_confidence_threshold": _number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": _END_TOKENS,
    "return_dict_in_generate": _FLAG,
    "output_scores": _FLAG,
    "output_logits": _FLAG,
    "output_attentions": _FLAG,
    "output_hidden_states": _FLAG,
    "disable_compile": _FLAG,
}
