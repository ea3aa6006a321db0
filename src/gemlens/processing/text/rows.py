"""Rows of token ids: how long they may be, where they are cut and where they are padded. Plain lists.

A row is `<bos> first <eos> <bos> second <eos>`, each part of it only if there is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from gemlens.errors import InputError

T = TypeVar("T")
# What padding adds beside the pad token itself.
_FILL: Mapping[str, Any] = {
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
    "labels": -100,
}

PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
UNLIMITED = 10**20  # larger limits mean that the model has none


@dataclass(frozen=True)
class Part:
    """The tokens of one text; `offsets` are characters (start, end) of it, None if nobody asked."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None = None

    def cut(self, length: int, side: str) -> "Part":
        """What stays when the tokens at `side` are taken away."""
        if length >= len(self.ids):
            return self
        kept = slice(0, length) if side == "right" else slice(len(self.ids) - length, None)
        return Part(self.ids[kept], None if self.offsets is None else self.offsets[kept])


@dataclass(frozen=True)
class Row:
    """What a model gets for one text or pair: lists of one length."""

    ids: list[int]
    types: list[int]
    special: list[int]
    attention: list[int]
    offsets: list[tuple[int, int]] | None

    @classmethod
    def join(cls, parts: Sequence[Part], before: Sequence[int], after: Sequence[int]) -> "Row":
        """Tokens `before` and `after` each part; the parts are types 0 and 1."""
        ids: list[int] = []
        types: list[int] = []
        special: list[int] = []
        offsets: list[tuple[int, int]] = []
        for number, part in enumerate(parts):
            ids += [*before, *part.ids, *after]
            types += [number] * (len(before) + len(part.ids) + len(after))
            special += [1] * len(before) + [0] * len(part.ids) + [1] * len(after)
            offsets += [(0, 0)] * len(before) + (part.offsets or []) + [(0, 0)] * len(after)
        return cls(ids, types, special, [1] * len(ids), None if parts[0].offsets is None else offsets)

    def pad(self, length: int, side: str, pad_id: int) -> "Row":
        """The row with padding at `side`; as it is if it is that long."""
        count = length - len(self.ids)
        if count <= 0:
            return self
        return Row(
            ids=_padded(self.ids, pad_id, count, side),
            types=_padded(self.types, 0, count, side),
            special=_padded(self.special, 1, count, side),
            attention=_padded(self.attention, 0, count, side),
            offsets=None if self.offsets is None else _padded(self.offsets, (0, 0), count, side),
        )


@dataclass(frozen=True)
class Lengths:
    """How rows are cut and padded; `Lengths.of` reads the documented arguments."""

    padding: str
    truncation: str
    max_length: int | None
    multiple: int | None

    @classmethod
    def of(
        cls,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        multiple: int | None,
        model_max_length: int,
    ) -> "Lengths":
        """The documented arguments, checked.

        As in the reference, `max_length` without `padding` and `truncation` means truncation.

        Raises:
            InputError: values or combinations that nothing can be done with.
        """
        if truncation is None:
            truncation = max_length is not None and padding is False
        pad = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
        cut = ("longest_first" if truncation else "do_not_truncate") if isinstance(truncation, bool) else truncation
        if pad not in PADDINGS:
            raise InputError(f"padding={padding!r}: pass True, False or one of {', '.join(map(repr, PADDINGS))}.")
        if cut not in TRUNCATIONS:
            raise InputError(
                f"truncation={truncation!r}: pass True, False or one of {', '.join(map(repr, TRUNCATIONS))}."
            )
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", multiple)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InputError(f"{name}={value!r}: pass a number of tokens.")
        if multiple == 0:
            raise InputError("pad_to_multiple_of=0: pass a number of tokens, at least 1.")
        if max_length is None and model_max_length <= UNLIMITED:
            max_length = model_max_length if pad == "max_length" or cut != "do_not_truncate" else None
        if max_length is None and pad == "max_length":
            raise InputError("padding='max_length' needs max_length=..., since this tokenizer has no limit of its own.")
        uneven = multiple and max_length is not None and max_length % multiple
        if uneven and cut != "do_not_truncate" and pad != "do_not_pad":
            raise InputError(
                f"max_length={max_length} is not a multiple of pad_to_multiple_of={multiple}; change one of them."
            )
        return cls(str(pad), str(cut), max_length, multiple)

    def cut(self, parts: Sequence[Part], room_taken: int, side: str) -> Sequence[Part]:
        """The parts, short enough for `max_length` with `room_taken` tokens around them."""
        if self.truncation == "do_not_truncate" or self.max_length is None:
            return parts
        room = self.max_length - room_taken
        if room < 0:
            raise InputError(f"max_length={self.max_length} leaves no room beside {room_taken} special tokens.")
        if sum(len(part.ids) for part in parts) <= room:
            return parts
        lengths = _kept([len(part.ids) for part in parts], room, self.truncation)
        return [part.cut(length, side) for part, length in zip(parts, lengths, strict=True)]

    def padded(self, lengths: Sequence[int]) -> int:
        """The length that rows of these lengths are padded to; 0 if they stay as they are."""
        if self.padding == "do_not_pad":
            return 0
        length = (self.max_length or 0) if self.padding == "max_length" else max(lengths, default=0)
        return -(-length // self.multiple) * self.multiple if self.multiple else length


def columns_of(encoded: Any) -> dict[str, list[Any]]:
    """{name: rows} of that, or of one mapping per row; new lists.

    Raises:
        InputError: it is neither, or a single row.
    """
    if isinstance(encoded, (list, tuple)) and encoded and all(isinstance(row, Mapping) for row in encoded):
        if any(row.keys() != encoded[0].keys() for row in encoded):
            raise InputError("pad takes rows with the same names.")
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        raise InputError("pad takes rows by name, 'input_ids' among them, or a list of such mappings, one per row.")
    columns = {name: list(rows) for name, rows in encoded.items()}
    if not all(isinstance(row, (list, tuple, Tensor)) for row in columns["input_ids"]):
        raise InputError("pad takes several rows; pass a list of what the tokenizer gave for each text.")
    return columns


def pad_columns(columns: Mapping[str, list[Any]], length: int, side: str, pad_id: int) -> dict[str, list[Any]]:
    """The columns, with padding in those that have one value per token."""
    full = dict(columns)
    for name, value in {**_FILL, "input_ids": pad_id}.items():
        if name in full:
            rows = [row.tolist() if isinstance(row, Tensor) else list(row) for row in full[name]]
            full[name] = [_padded(row, value, length - len(row), side) for row in rows]
    return full


def _padded(values: list[T], value: T, count: int, side: str) -> list[T]:
    """The values with `count` times `value` at `side`; as they are if there is nothing to add."""
    return values + [value] * count if side == "right" else [value] * count + values


def _kept(lengths: Sequence[int], room: int, strategy: str) -> Sequence[int]:
    """How many tokens of each part stay, as the `tokenizers` library shares them out."""
    if strategy != "longest_first":
        chosen = 0 if strategy == "only_first" else 1
        if chosen >= len(lengths):
            raise InputError("truncation='only_second' needs a text_pair.")
        rest = room - (sum(lengths) - lengths[chosen])
        if rest <= 0:
            raise InputError(
                f"truncation={strategy!r} would leave nothing of a text of {lengths[chosen]} tokens; "
                "pass a larger max_length or truncation='longest_first'."
            )
        return [rest if number == chosen else length for number, length in enumerate(lengths)]
    if len(lengths) == 1:
        return [room]
    short, long = sorted(lengths)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (short, long) if lengths[0] <= lengths[1] else (long, short)
