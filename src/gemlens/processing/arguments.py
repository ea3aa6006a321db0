"""What a call of a processor asks for: documented keywords in, one value for texts and one dict for pictures out.

    defaults <- what the tokenizer and the image processor have stored <- keywords of the call

A keyword is passed flat (`padding=True`) or in the dict of its kind (`text_kwargs={"padding": True}`), not both. The
caller's dicts stay as they are.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gemlens.errors import InputError

_KINDS = ("text_kwargs", "images_kwargs", "common_kwargs")
_ELSEWHERE = ("audio_kwargs", "videos_kwargs")  # of the documented interface, but not for these models
_COMMON = ("return_tensors",)
IMAGE_NAMES = tuple(
    name
    for names in (
        "do_resize size resample do_rescale rescale_factor do_normalize image_mean image_std do_convert_rgb",
        "data_format input_data_format limits allow_urls",
    )
    for name in names.split()
)
FAST_IMAGE_NAMES = ("default_to_square", "do_center_crop", "crop_size", "device", "disable_grouping")
# Stored by a tokenizer's file or constructor, and then a default of every call.
_STORED = ("padding", "truncation", "max_length", "pad_to_multiple_of")


@dataclass(frozen=True)
class TextArguments:
    """How texts become rows.

    Args:
        suffix: the answers, one per text (PaliGemma).
        add_special_tokens: whether `<bos>` and `<eos>` are added where the tokenizer wants them.
        padding: False, True or "longest", or "max_length".
        truncation: False, True, or which part may be cut: "only_first", "only_second", "longest_first".
        max_length: the number of tokens for both.
        pad_to_multiple_of: rounds the padded length up.
        padding_side: "left" or "right"; None: the tokenizer's.
        truncation_side: where texts are cut; None: the tokenizer's.
        split_special_tokens: whether control tokens that are written out stay text; None: where people write
            (messages of a chat, suffixes), not where prompts are passed as texts.
        return_tensors: "pt", "np", or None for lists.
        return_attention_mask: whether to give it.
        return_token_type_ids: whether to give them.
        return_mm_token_type_ids: whether to give 1 for each picture token, 0 for others, as an entry of its own.
        return_special_tokens_mask: whether to give 1 for each token that the tokenizer added.
        return_offsets_mapping: whether to give (start, end) of each token in the text that was encoded.
        return_length: whether to give the number of tokens of each row, padding included.
        verbose: accepted for callers of the reference; nothing is printed either way.
    """

    suffix: Any = None
    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    split_special_tokens: bool | None = None
    return_tensors: str | None = None
    return_attention_mask: bool | None = True
    return_token_type_ids: bool | None = True
    return_mm_token_type_ids: bool | None = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in (None, "left", "right"):
                raise InputError(f"{name}={getattr(self, name)!r}: pass 'left' or 'right'.")


TEXT_NAMES = tuple(each.name for each in fields(TextArguments))


def merged(
    keywords: Mapping[str, Any], stored: Mapping[str, Any], images: Collection[str], without: Collection[str] = ()
) -> tuple[TextArguments, dict[str, Any]]:
    """The two halves of a call's keywords.

    Args:
        keywords: of the call, flat or in dicts.
        stored: what the tokenizer was made with.
        images: names that the image processor takes.
        without: names of `TextArguments` that this processor does not take.

    Raises:
        InputError: a name is unknown, or came twice.
    """
    text_names = [name for name in TEXT_NAMES if name not in without]
    known = {"text_kwargs": text_names, "images_kwargs": images, "common_kwargs": _COMMON}
    given: dict[str, dict[str, Any]] = {kind: _dict(kind, keywords.get(kind)) for kind in _KINDS}
    for kind in _ELSEWHERE:
        if keywords.get(kind):
            raise InputError(f"{kind} came, but these models take text and pictures only.")
    flat = {name: value for name, value in keywords.items() if name not in (*_KINDS, *_ELSEWHERE)}
    for kind, names in known.items():
        for name in given[kind]:
            _check_known(name, names, kind)
            if name in flat:
                raise InputError(f"'{name}' came twice, in {kind} and as a keyword of its own; pass it once.")
    everything = {*text_names, *images, *_COMMON}
    for name in flat:
        _check_known(name, everything, "This processor")
    text = {name: stored[name] for name in _STORED if stored.get(name) is not None}
    text |= given["common_kwargs"] | given["text_kwargs"] | {name: flat[name] for name in flat if name in text_names}
    pictures = given["images_kwargs"] | {name: flat[name] for name in flat if name in images}
    return TextArguments(**text), pictures


def _dict(kind: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{kind} is a {type(value).__name__}, but must be a dict of keywords.")
    return dict(value)


def _check_known(name: str, names: Collection[str], taker: str) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(sorted(names))}."
    raise InputError(f"{taker} takes no argument '{name}'; {hint}")
