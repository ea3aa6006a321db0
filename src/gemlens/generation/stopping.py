"""When a row has ended: functions (ids [B, S] so far, scores) -> [B] bool, asked after every token."""

import time
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor

from gemlens.errors import InputError


class StoppingCriteria(Protocol):
    """Tells which rows have ended; any function with these arguments will do."""

    def __call__(self, input_ids: Tensor, scores: Any) -> Tensor | bool:
        """(ids [B, S], scores of all steps if they are recorded) -> [B] bool, or one bool for all rows."""


class StoppingCriteriaList(list[StoppingCriteria]):
    """A row has ended as soon as one of them says so."""

    def __call__(self, input_ids: Tensor, scores: Any = None) -> Tensor:
        """(ids [B, S], scores) -> [B] bool.

        Raises:
            InputError: a criterion gives another shape.
        """
        rows, device = len(input_ids), input_ids.device
        all_ended, ended = False, None
        for criterion in self:
            said = criterion(input_ids, scores)
            if isinstance(said, bool):
                all_ended |= said
                continue
            said = torch.as_tensor(said, device=device).bool()
            if said.shape not in ((), (rows,)):
                raise InputError(
                    f"{type(criterion).__name__} gave shape {tuple(said.shape)}, but a stopping criterion gives one "
                    f"bool per row: [{rows}]."
                )
            ended = said.expand(rows) if ended is None else ended | said
        return torch.full((rows,), all_ended, device=device) if ended is None else ended | all_ended


class MaxLengthCriteria:
    """Rows end at `max_length` tokens, the prompt counted."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Any = None) -> bool:
        """All rows at once."""
        return input_ids.shape[1] >= self.max_length


class MaxTimeCriteria:
    """Rows end when `max_time` seconds have passed since this was made."""

    def __init__(self, max_time: float) -> None:
        self.until = time.monotonic() + max_time

    def __call__(self, input_ids: Tensor, scores: Any = None) -> bool:
        """All rows at once."""
        return time.monotonic() > self.until


class EosTokenCriteria:
    """A row ends at one of the end tokens."""

    def __init__(self, eos_token_id: int | Iterable[int]) -> None:
        self.tokens = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))

    def __call__(self, input_ids: Tensor, scores: Any = None) -> Tensor:
        """[B] bool."""
        self.tokens = self.tokens.to(input_ids.device)
        return torch.isin(input_ids[:, -1], self.tokens)


class Decodes(Protocol):
    """A tokenizer, as far as stop strings need it."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        """Ids -> text."""


class StopStringCriteria:
    """A row ends when its last token completes one of the texts.

    Args:
        tokenizer: makes text of ids.
        stop_strings: these.
        prompt_length: tokens that were there before; a text that begins in them does not count.
    """

    def __init__(self, tokenizer: Decodes, stop_strings: str | Sequence[str], prompt_length: int = 0) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        self.prompt_length = prompt_length
        # Every token but a byte has a character, and a character has at most four bytes. One more, so that the text
        # before the last token can be told from it.
        self.reach = 4 * max(map(len, self.stop_strings)) + 1

    def __call__(self, input_ids: Tensor, scores: Any = None) -> Tensor:
        """[B] bool."""
        tail = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.reach) :].tolist()
        return torch.tensor([self._is_complete(row) for row in tail], device=input_ids.device)

    def _is_complete(self, tail: list[int]) -> bool:
        before, text = (self.tokenizer.decode(ids, skip_special_tokens=False) for ids in (tail[:-1], tail))
        # The last token may turn bytes before it into a character.
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False)))
        return any(stop in text[max(0, known - len(stop) + 1) :] for stop in self.stop_strings)
