"""Written prompts -> rows of token ids, cut and padded where they may be.

    Prompt (text with marks) -> `tokens_of` -> Tokens -> a processor puts rows together -> `entries` -> lists or tensors

Only here do the marks of chat_template.py leave the text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemlens.errors import InputError
from gemlens.processing.arguments import TextArguments
from gemlens.processing.chat.chat_template import Prompt
from gemlens.processing.text.rows import Lengths

Span = tuple[int, int]


class Encoder(Protocol):
    """What processors need of a tokenizer; `GemmaTokenizerFast` has it."""

    padding_side: str
    truncation_side: str
    model_max_length: int

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """{id: token} of what is found in a text before it is split."""

    @property
    def bos_token_id(self) -> int | None:
        """The id of `<bos>`."""

    @property
    def eos_token_id(self) -> int | None:
        """The id of `<eos>`."""

    @property
    def pad_token_id(self) -> int | None:
        """The id of padding."""

    def __call__(self, text: Any, **arguments: Any) -> Mapping[str, Any]:
        """Ids of a text."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text: ids, where each stands in the text, and 1 for those that the assistant says."""

    ids: list[int] = field(default_factory=list)
    offsets: list[Span] = field(default_factory=list)
    said: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.ids + other.ids, self.offsets + other.offsets, self.said + other.said)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.offsets[part], self.said[part])

    @classmethod
    def added(cls, ids: Sequence[int]) -> "Tokens":
        """Tokens that stand for no text."""
        return cls(list(ids), [(0, 0)] * len(ids), [0] * len(ids))


@dataclass(frozen=True)
class FinishedRow:
    """One row: its tokens, their types, labels if there are any, and how many tokens the tokenizer added around it."""

    tokens: Tokens
    types: list[int]
    labels: list[int] | None = None
    around: tuple[int, int] = (0, 0)


def control_tokens(tokenizer: Encoder) -> list[str]:
    """The texts that a tokenizer turns into control tokens wherever they stand; not `<loc0000>` and the like."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def tokens_of(tokenizer: Encoder, prompt: Prompt, split: bool = False) -> Tokens:
    """The tokens of a prompt, without `<bos>` besides its own.

    Between two control tokens of the template, a text with guards is encoded as text alone; everything else as usual.

    Args:
        tokenizer: gives the ids.
        prompt: a text with its marks.
        split: whether every control token stays text.
    """
    text, spans = _spans(prompt)
    if not prompt.guard or prompt.guard not in text:
        return _said(_encode(tokenizer, text, split, 0), spans)
    tokens, begin = Tokens(), 0
    for chunk, literal in _chunks(text, prompt.guard, control_tokens(tokenizer)):
        plain = chunk.replace(prompt.guard, "")
        tokens += _encode(tokenizer, plain, split or literal, begin)
        begin += len(plain)
    return _said(tokens, spans)


def around(tokenizer: Encoder, tokens: Tokens, add_special_tokens: bool) -> tuple[Tokens, Tokens]:
    """What the tokenizer puts before and behind a text: usually one `<bos>`, and nothing where the text has it."""
    if not add_special_tokens:
        return Tokens(), Tokens()
    added = list(tokenizer("", add_special_tokens=True)["input_ids"])
    before = added[:1] if added[:1] == [tokenizer.bos_token_id] else []
    after = added[len(before) :]
    return Tokens.added(before if before != tokens.ids[:1] else []), Tokens.added(after)


def lengths_of(tokenizer: Encoder, asked: TextArguments) -> Lengths:
    """How rows are cut and padded in this call."""
    limit = tokenizer.model_max_length
    return Lengths.of(asked.padding, asked.truncation, asked.max_length, asked.pad_to_multiple_of, limit)


def room_of(lengths: Lengths) -> int | None:
    """The most tokens of a row, None without truncation."""
    return None if lengths.truncation == "do_not_truncate" else lengths.max_length


def cut(tokens: Tokens, room: int, side: str) -> Tokens:
    """What stays of a text when the tokens at `side` that find no room are taken away."""
    if len(tokens) <= room:
        return tokens
    return tokens[: max(room, 0)] if side == "right" else tokens[len(tokens) - max(room, 0) :]


def entries(
    tokenizer: Encoder, rows: Sequence[FinishedRow], asked: TextArguments, image_token_id: int, masks: bool = False
) -> dict[str, Any]:
    """The documented entries of a batch, as lists: ids, masks, types, labels, padded.

    Raises:
        InputError: padding is asked for and there is no padding token.
    """
    lengths, pad = lengths_of(tokenizer, asked), tokenizer.pad_token_id
    columns: dict[str, tuple[list[list[Any]], Any]] = {"input_ids": ([row.tokens.ids for row in rows], pad)}
    if asked.return_token_type_ids is not False:
        columns["token_type_ids"] = ([row.types for row in rows], 0)
    if asked.return_attention_mask is not False:
        columns["attention_mask"] = ([[1] * len(row.tokens) for row in rows], 0)
    if any(row.labels is not None for row in rows):
        columns["labels"] = ([row.labels or [] for row in rows], -100)
    if asked.return_mm_token_type_ids:
        pictures = [[int(token == image_token_id) for token in row.tokens.ids] for row in rows]
        columns["mm_token_type_ids"] = (pictures, 0)
    if asked.return_special_tokens_mask:
        columns["special_tokens_mask"] = ([_added(row) for row in rows], 1)
    if asked.return_offsets_mapping:
        columns["offset_mapping"] = ([row.tokens.offsets for row in rows], (0, 0))
    if masks:
        columns["assistant_masks"] = ([row.tokens.said for row in rows], 0)
    side = asked.padding_side or tokenizer.padding_side
    length = _padded_length(lengths, [len(row.tokens) for row in rows], pad)
    found: dict[str, Any] = {
        name: [_pad(row, length, side, fill) for row in column] for name, (column, fill) in columns.items()
    }
    if asked.return_length:
        found["length"] = [len(row) for row in found["input_ids"]]
    return found


def _padded_length(lengths: Lengths, found: Sequence[int], pad: int | None) -> int:
    if lengths.padding == "do_not_pad":
        return 0
    if pad is None:
        raise InputError("Padding needs a pad_token; set one, for example tokenizer.pad_token = tokenizer.eos_token.")
    length = (lengths.max_length or 0) if lengths.padding == "max_length" else max(found, default=0)
    return -(-length // lengths.multiple) * lengths.multiple if lengths.multiple else length


def _pad(row: list[Any], length: int, side: str, fill: Any) -> list[Any]:
    missing = [fill] * (length - len(row))
    return row + missing if side == "right" else missing + row


def _added(row: FinishedRow) -> list[int]:
    before, after = row.around
    return [1] * before + [0] * (len(row.tokens) - before - after) + [1] * after


def _spans(prompt: Prompt) -> tuple[str, list[Span]]:
    """The text without the marks of who speaks, and the assistant's spans in the text without any mark."""
    if not prompt.start or prompt.start not in prompt.text:
        return prompt.text, []
    spans, text, length, begin = [], [], 0, 0
    for piece in re.split(f"([{prompt.start}{prompt.end}])", prompt.text):
        if piece == prompt.start:
            begin = length
        elif piece == prompt.end:
            spans.append((begin, length))
        else:
            text.append(piece)
            length += len(piece) - (piece.count(prompt.guard) if prompt.guard else 0)
    return "".join(text), spans


def _chunks(text: str, guard: str, controls: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The text in order, in chunks that no piece of a vocabulary reaches over; True: a person's text with guards."""
    pattern = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True))
    usual = ""
    for piece in re.split(f"({pattern})", text) if pattern else [text]:
        if guard not in piece:
            usual += piece
            continue
        if usual:
            yield usual, False
        yield piece, True
        usual = ""
    if usual:
        yield usual, False


def _encode(tokenizer: Encoder, text: str, split: bool, begin: int) -> Tokens:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=split)
    ids = list(found["input_ids"])
    return Tokens(ids, [(begin + start, begin + end) for start, end in found["offset_mapping"]], [0] * len(ids))


def _said(tokens: Tokens, spans: Sequence[Span]) -> Tokens:
    """The same with the tokens that begin inside a span marked."""
    if not spans:
        return tokens
    said, spans = [], sorted(spans)
    place = 0
    for start, _ in tokens.offsets:
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        said.append(int(place < len(spans) and spans[place][0] <= start))
    return Tokens(tokens.ids, tokens.offsets, said)
