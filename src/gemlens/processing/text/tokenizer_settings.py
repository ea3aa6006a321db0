"""The settings of a tokenizer: their names, what they are when nobody says, and what they may be."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from gemlens.errors import InputError
from gemlens.processing.text.special_tokens import PICTURES, STANDARD, as_token

VERY_LARGE = 10**30  # `model_max_length` of a model without a limit
DEFAULTS: Mapping[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "padding_side": "left",
    "truncation_side": "right",
    "model_max_length": VERY_LARGE,
    "model_input_names": ("input_ids", "attention_mask"),
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": False,
    "chat_template": None,
    "name_or_path": "",
}
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


def names_a_token(name: str) -> bool:
    """Whether a setting of this name is a token: `image_token`, but not `add_bos_token`."""
    return name in STANDARD or (name.endswith("_token") and not name.startswith("add_"))


def check_names(settings: Mapping[str, Any]) -> None:
    """Refuses misspelt settings.

    Raises:
        InputError: a setting that no tokenizer has.
    """
    known = {*DEFAULTS, *STANDARD, *PICTURES, EXTRA, ADDITIONAL}
    if wrong := sorted(settings.keys() - known):
        close = get_close_matches(wrong[0], known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(known))}."
        raise InputError(f"A tokenizer has no setting {wrong[0]!r}; {hint}")


def check_values(settings: Mapping[str, Any]) -> None:
    """Refuses values that mean nothing; None means the default, and names that nobody knows pass.

    Raises:
        InputError: such a value.
    """
    for name, value in settings.items():
        if value is None:
            continue
        if names_a_token(name):
            as_token(value, name)
        elif name in _MAY_BE and not _MAY_BE[name][0](value):
            raise InputError(f"{name}={value!r}: pass {_MAY_BE[name][1]}.")
    for name, token in (settings.get(EXTRA) or {}).items():
        as_token(token, name)
    for token in settings.get(ADDITIONAL) or ():
        as_token(token, ADDITIONAL)


def check_side(name: str, side: object) -> str:
    """The side, if it is one.

    Raises:
        InputError: it is not.
    """
    if side not in ("left", "right"):
        raise InputError(f"{name}={side!r}: pass 'left' or 'right'.")
    return str(side)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return value in ("left", "right")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_template(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(part, str) for pair in value.items() for part in pair)
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and names_a_token(name) for name in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


_MAY_BE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "add_bos_token": (_is_bool, "True or False"),
    "add_eos_token": (_is_bool, "True or False"),
    "padding_side": (_is_side, "'left' or 'right'"),
    "truncation_side": (_is_side, "'left' or 'right'"),
    "model_max_length": (_is_length, "a number of tokens"),
    "model_input_names": (_are_names, "a list of names"),
    "clean_up_tokenization_spaces": (_is_bool, "True or False"),
    "split_special_tokens": (_is_bool, "True or False"),
    "chat_template": (_is_template, "a text, or {name: text}"),
    "name_or_path": (_is_text, "a text"),
    EXTRA: (_is_table, "{name: token} with names like 'image_token'"),
    ADDITIONAL: (_is_list, "a list of tokens"),
}
