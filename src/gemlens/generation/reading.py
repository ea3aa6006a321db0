"""A model and what it has read: the prompt once, then token by token. The only place that calls the model.

    Prompt -> Reader.prefill -> logits [B, 1, V] -> (a token is chosen) -> Reader.step -> logits [B, 1, V] ...

Pictures are encoded in the prefill, before rows are multiplied for beams and samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemlens.caches.cache import Cache
from gemlens.caches.dynamic import DynamicCache
from gemlens.errors import InputError
from gemlens.models.outputs import Logits
from gemlens.spans import PADDING, Span

if TYPE_CHECKING:
    from gemlens.models.generative import GenerativeModel


@dataclass(frozen=True)
class Prompt:
    """What the model reads first.

    Args:
        ids: [B, S]; [B, 0] where only embeddings came.
        mask: [B, S], 0 for padding, which stands on the left; None without padding.
        types: [B, S] token types, or None.
        pixels: [I, C, height, width], the pictures of all rows in order, or None.
        embeds: [B, S, D] instead of ids, or None.
    """

    ids: Tensor
    mask: Tensor | None = None
    types: Tensor | None = None
    pixels: Tensor | None = None
    embeds: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[1] if self.embeds is None else self.embeds.shape[1]


@dataclass(frozen=True)
class Reading:
    """What the model gave for the last tokens of a call.

    Args:
        logits: [B, n, V] in float32, or the largest of them.
        attentions, hidden_states: of all its tokens, where they are recorded.
    """

    logits: Logits
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Reader:
    """Reads for the loops.

    Args:
        model: in eval mode.
        prompt: what comes first; a cache may hold its beginning.
        cache: what is read is kept there; None to read everything again for every token.
        chunk: tokens of the prompt to read at once, about; None for all.
        recorded: arguments of the model's forward that ask for more than logits.
        compiled: read single tokens by a compiled step; needs a cache of fixed shapes.
        largest: how many of the largest logits are needed after the prompt; None for all.
    """

    def __init__(
        self,
        model: "GenerativeModel",
        prompt: Prompt,
        cache: Cache | None,
        chunk: int | None,
        recorded: dict[str, bool],
        compiled: bool = False,
        largest: int | None = None,
    ) -> None:
        self.model, self.prompt, self.cache = model, prompt, cache
        self.chunk, self.recorded, self.compiled, self.largest = chunk, recorded, compiled, largest

    def prefill(self) -> Reading:
        """Reads the prompt; gives the logits of what follows it."""
        reading = None
        for start, stop in self._pieces():
            reading = self._call(**self._part(start, stop))
        assert reading is not None
        return reading

    def step(self, tokens: Tensor, filled: Tensor | None = None) -> Reading:
        """Reads n more tokens per row, [B, n]; gives the logits of what follows each.

        Args:
            tokens: these.
            filled: [B] bool, rows that ended earlier: their tokens are padding, which a later turn must not see.
        """
        real = None
        if filled is not None and len(filled) > 1 and bool(filled.any()):
            real = filled.logical_not().long().unsqueeze(1).expand_as(tokens)
        if self.cache is None:
            self.prompt = _with_answer(self.prompt, tokens, real, self.model.answer_type)
            return self._call(**self._part(0, len(self.prompt)), logits_to_keep=tokens.shape[1])
        mask = None
        if real is not None:  # of what is cached the cache knows what was padding
            mask = torch.cat([real.new_ones(len(tokens), self.cache.get_seq_length()), real], 1)
        if self.compiled or self.largest is not None:
            values, ids = self.model.step(tokens, self.cache, mask, self.compiled, self.largest)
            return Reading(Logits(values.float(), ids))
        return self._call(input_ids=tokens, attention_mask=mask, logits_to_keep=tokens.shape[1])

    def select(self, rows: Tensor) -> None:
        """Goes on with row `rows[b]` as row b; rows may come several times, or not at all."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        else:
            self.prompt = _rows(self.prompt, rows, self.model.picture_tokens)

    def forget(self, count: int) -> None:
        """Forgets the last `count` tokens of each row."""
        if not count:
            return
        if self.cache is None:
            self.prompt = _cut(self.prompt, 0, len(self.prompt) - count)
        elif isinstance(self.cache, DynamicCache):
            self.cache.crop(-count)
        else:
            raise InputError(f"A {type(self.cache).__name__} cannot forget guesses; use a DynamicCache.")

    def _call(self, logits_to_keep: int = 1, **arguments: Any) -> Reading:
        output = self.model(
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **self.recorded,
            **arguments,
        )
        return Reading(Logits(output.logits.float()), output.attentions, output.hidden_states)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each part of the prompt to read at once."""
        start = 0 if self.cache is None else self.cache.get_seq_length()
        length = len(self.prompt)
        if start >= length:
            raise InputError(
                f"The cache holds {start} tokens and the prompt has {length}: pass the whole text, what is cached and "
                "what is new."
            )
        if self.chunk is None or self.cache is None or length - start <= self.chunk:
            yield start, length
            return
        ends = [*_ends_of_blocks(self._span()), length]
        while start < length:
            later = [end for end in ends if end > start]
            stop = max((end for end in later if end <= start + self.chunk), default=later[0])
            yield start, stop
            start = stop

    def _span(self) -> Span:
        if self.prompt.embeds is not None:
            raise InputError("prefill_chunk_size needs input_ids: where embeddings may be cut is not known.")
        return self.model.span(self.prompt.ids, self.prompt.mask, self.prompt.types)

    def _part(self, start: int, stop: int) -> dict[str, Any]:
        """The model's arguments for some of the prompt's tokens; what comes before them is cached."""
        prompt, part = self.prompt, _cut(self.prompt, start, stop)
        pixels = prompt.pixels
        if pixels is not None and len(part) < len(prompt):
            pixels = pixels[_pictures_between(prompt, start, stop, self.model.picture_tokens)]
        arguments = {
            "input_ids": part.ids if part.embeds is None else None,
            "inputs_embeds": part.embeds,
            "attention_mask": None if prompt.mask is None else prompt.mask[:, :stop],
            "token_type_ids": part.types,
            "pixel_values": None if pixels is None or len(pixels) == 0 else pixels,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def _ends_of_blocks(span: Span) -> list[int]:
    """Slots at which every row begins another block: a prompt may be cut before them."""
    block = span.block
    apart = (block[:, 1:] != block[:, :-1]) | (block[:, 1:] == PADDING)  # padding sees nobody, so it may be cut
    return [slot + 1 for slot in apart.all(0).nonzero().flatten().tolist()]


def _pictures_between(prompt: Prompt, start: int, stop: int, picture_tokens: tuple[int, int] | None) -> list[int]:
    """Which pictures' tokens stand in the slots from start to stop of any row.

    Raises:
        InputError: pictures and their tokens do not match, or a picture is cut.
    """
    if picture_tokens is None or prompt.pixels is None:
        return []
    token, each = picture_tokens
    found = prompt.ids == token
    before, until, whole = ((found[:, :end].sum(1)).tolist() for end in (start, stop, len(prompt)))
    if any(count % each for count in (*before, *until)) or sum(whole) != each * len(prompt.pixels):
        raise InputError(
            f"The rows hold {whole} picture tokens of id {token}, {before} of them cached, but {len(prompt.pixels)} "
            f"pictures came; each needs {each} in a row, and a cache holds whole pictures."
        )
    chosen: list[int] = []
    first = 0
    for row_before, row_until, row_whole in zip(before, until, whole, strict=True):
        chosen += range(first + row_before // each, first + row_until // each)
        first += row_whole // each
    return chosen


def _cut(prompt: Prompt, start: int, stop: int) -> Prompt:
    """Some of the slots, with all pictures."""

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[:, start:stop]

    return replace(
        prompt, ids=prompt.ids[:, start:stop], mask=part(prompt.mask), types=part(prompt.types),
        embeds=part(prompt.embeds),
    )  # fmt: skip


def _rows(prompt: Prompt, rows: Tensor, picture_tokens: tuple[int, int] | None) -> Prompt:
    """Some of the rows, with their pictures."""

    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    pixels = prompt.pixels
    if pixels is not None and picture_tokens is not None:
        token, each = picture_tokens
        counts = ((prompt.ids == token).sum(1) // each).tolist()
        own = torch.split(pixels, counts)
        pixels = torch.cat([own[row] for row in rows.tolist()])
    return Prompt(prompt.ids[rows], chosen(prompt.mask), chosen(prompt.types), pixels, chosen(prompt.embeds))


def _with_answer(prompt: Prompt, tokens: Tensor, real: Tensor | None, answer_type: int | None) -> Prompt:
    """The prompt and tokens [B, n] after it, as text that is no prompt any more; `real` [B, n] is 0 for padding."""
    if prompt.embeds is not None:
        raise InputError("use_cache=False needs input_ids: tokens cannot be put behind embeddings.")
    types = prompt.types
    if answer_type is not None:
        before = torch.zeros_like(prompt.ids) if types is None and answer_type else types
        types = None if before is None else torch.cat([before, torch.full_like(tokens, answer_type)], 1)
    mask = prompt.mask
    if mask is not None or real is not None:
        before = torch.ones_like(prompt.ids) if mask is None else mask
        mask = torch.cat([before, torch.ones_like(tokens) if real is None else real], 1)
    return replace(prompt, ids=torch.cat([prompt.ids, tokens], 1), mask=mask, types=types)
