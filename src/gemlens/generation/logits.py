"""What may come next: functions on the scores of the next token, applied before it is chosen.

(ids [B, S] so far, scores [B, V]) -> scores [B, V]. The names are the reference's, and so are the numbers; a token that
is not allowed has the score -inf. Those for sampling only are in gemlens.generation.warpers.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gemlens.errors import InputError


class LogitsProcessor(Protocol):
    """Changes the scores of the next token; any function with these arguments will do."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""


class LogitsProcessorList(list[LogitsProcessor]):
    """Several of them, one after the other."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class RepetitionPenaltyLogitsProcessor:
    """Makes tokens that are in the text less probable (arXiv 1909.05858, section 4.1).

    Args:
        penalty: positive scores are divided by it, negative ones multiplied; below 1 it encourages.
        padding: a token that fills the beginning of rows; there it does not count, so that a padded row gets the scores
            that it has alone.
    """

    def __init__(self, penalty: float, padding: int | None = None) -> None:
        self.penalty, self.padding = penalty, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        if self.padding is not None:
            fills = (input_ids == self.padding).long().cumprod(1).bool()
            input_ids = torch.where(fills, input_ids[:, -1:], input_ids)  # the last token counts anyway
        present = scores.gather(1, input_ids)
        penalised = torch.where(present < 0, present * self.penalty, present / self.penalty)
        return scores.scatter(1, input_ids, penalised)


class NoRepeatNGramLogitsProcessor:
    """No run of `ngram_size` tokens comes twice in a row."""

    def __init__(self, ngram_size: int) -> None:
        self.size = ngram_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        if input_ids.shape[1] < self.size:
            return scores
        runs = input_ids.unfold(1, self.size, 1)  # [B, S - size + 1, size]
        begun = input_ids[:, input_ids.shape[1] - self.size + 1 :]  # what the next token would complete
        rows, places = (runs[:, :, :-1] == begun.unsqueeze(1)).all(-1).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, runs[rows, places, -1]] = -torch.inf
        return scores


class NoBadWordsLogitsProcessor:
    """No word of a list is completed; a word of one token never comes. An end token is no bad word."""

    def __init__(self, bad_words_ids: Iterable[Sequence[int]], eos_token_id: Collection[int] = ()) -> None:
        self.words = [list(word) for word in bad_words_ids if not (len(word) == 1 and word[0] in eos_token_id)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        scores = scores.clone()
        for *begin, end in self.words:
            if len(begin) >= input_ids.shape[1]:
                continue
            last = input_ids[:, input_ids.shape[1] - len(begin) :]
            complete = (last == torch.tensor(begin, dtype=last.dtype, device=last.device)).all(1)
            scores[complete, end] = -torch.inf
        return scores


class SuppressTokensLogitsProcessor:
    """Some tokens never come."""

    def __init__(self, suppress_tokens: Iterable[int]) -> None:
        self.tokens = list(suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        scores = scores.clone()
        scores[:, self.tokens] = -torch.inf
        return scores


class SuppressTokensAtBeginLogitsProcessor(SuppressTokensLogitsProcessor):
    """Some tokens do not come first, after `begin_index` others."""

    def __init__(self, begin_suppress_tokens: Iterable[int], begin_index: int) -> None:
        super().__init__(begin_suppress_tokens)
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return super().__call__(input_ids, scores) if input_ids.shape[1] == self.begin_index else scores


class MinLengthLogitsProcessor(SuppressTokensLogitsProcessor):
    """No end token before there are `min_length` tokens, the prompt counted."""

    def __init__(self, min_length: int, eos_token_id: Iterable[int]) -> None:
        super().__init__(eos_token_id)
        self.min_length = min_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return super().__call__(input_ids, scores) if input_ids.shape[1] < self.min_length else scores


class MinNewTokensLengthLogitsProcessor(MinLengthLogitsProcessor):
    """No end token before there are `min_new_tokens` after the prompt."""

    def __init__(self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: Iterable[int]) -> None:
        super().__init__(prompt_length_to_skip + min_new_tokens, eos_token_id)


class ForcedTokensLogitsProcessor:
    """Only some tokens can come after `length` others.

    Args:
        length: of the text so far, prompt counted.
        tokens: these.
    """

    def __init__(self, length: int, tokens: Iterable[int]) -> None:
        self.length, self.tokens = length, list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        if input_ids.shape[1] != self.length:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens] = 0
        return forced


class ForcedBOSTokenLogitsProcessor(ForcedTokensLogitsProcessor):
    """After a single token, this one comes."""

    def __init__(self, bos_token_id: int) -> None:
        super().__init__(1, [bos_token_id])


class ForcedEOSTokenLogitsProcessor(ForcedTokensLogitsProcessor):
    """The last of `max_length` tokens is an end token."""

    def __init__(self, max_length: int, eos_token_id: int | Iterable[int]) -> None:
        super().__init__(max_length - 1, [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


class PrefixConstrainedLogitsProcessor:
    """Only tokens that a function allows can come.

    Args:
        prefix_allowed_tokens_fn: (number of the prompt, ids [S] so far) -> allowed token ids.
        num_beams: rows per prompt.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]], num_beams: int) -> None:
        self.allowed, self.num_beams = prefix_allowed_tokens_fn, num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V].

        Raises:
            InputError: the function allows nothing.
        """
        kept = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids):
            tokens = list(self.allowed(row // self.num_beams, ids))
            if not tokens:
                raise InputError(f"prefix_allowed_tokens_fn allows no token after {ids.tolist()[-5:]}; give some.")
            kept[row, tokens] = scores[row, tokens]
        return kept


class LogitNormalization:
    """Scores become log-probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return scores.log_softmax(-1)
