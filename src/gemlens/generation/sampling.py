"""One token per row: the rules of a call, applied to the logits of the next token, and the choice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.generation import logits as rules
from gemlens.generation import warpers
from gemlens.generation.config import Settings, ids_of
from gemlens.generation.logits import LogitsProcessor, LogitsProcessorList
from gemlens.models.outputs import Logits

AllowedTokens = Callable[[int, Tensor], list[int]]


@dataclass(frozen=True)
class Length:
    """Of the text of each row, in tokens, padding counted: that of the prompt, and the most there may be."""

    prompt: int
    most: int


def processors_for(
    settings: Settings,
    length: Length,
    custom: Sequence[LogitsProcessor] = (),
    allowed_tokens: AllowedTokens | None = None,
) -> LogitsProcessorList:
    """The processors that settings ask for, in the reference's order: what is allowed, the caller's, the warpers."""
    ends = settings.end_tokens
    made = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        made.append(rules.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty, settings.pad_token_id))
    if settings.no_repeat_ngram_size:
        made.append(rules.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.bad_words_ids:
        made.append(rules.NoBadWordsLogitsProcessor(settings.bad_words_ids, ends))
    if settings.min_length and ends and settings.min_new_tokens is None:
        made.append(rules.MinLengthLogitsProcessor(settings.min_length, ends))
    if settings.min_new_tokens and ends:
        made.append(rules.MinNewTokensLengthLogitsProcessor(length.prompt, settings.min_new_tokens, ends))
    if allowed_tokens is not None:
        rows = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
        made.append(rules.PrefixConstrainedLogitsProcessor(allowed_tokens, rows))
    if settings.forced_bos_token_id is not None:
        made.append(rules.ForcedBOSTokenLogitsProcessor(settings.forced_bos_token_id))
    if settings.forced_eos_token_id is not None:
        made.append(rules.ForcedEOSTokenLogitsProcessor(length.most, ids_of(settings.forced_eos_token_id)))
    if settings.suppress_tokens:
        made.append(rules.SuppressTokensLogitsProcessor(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        begin = length.prompt + (length.prompt == 1 and settings.forced_bos_token_id is not None)
        made.append(rules.SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, begin))
    made += custom
    if settings.draws:
        made += _warpers(settings)
    if settings.renormalize_logits:
        made.append(rules.LogitNormalization())
    return made


def _warpers(settings: Settings) -> list[LogitsProcessor]:
    # Beams need candidates that go on, even if all end tokens are among the kept ones.
    kept = 1 if settings.num_beams == 1 else max(2, len(settings.end_tokens) + 1)
    made: list[LogitsProcessor] = []
    if settings.temperature != 1.0:
        made.append(warpers.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        made.append(warpers.TopKLogitsWarper(settings.top_k, kept))
    if settings.top_p < 1.0:
        made.append(warpers.TopPLogitsWarper(settings.top_p, kept))
    if settings.min_p is not None:
        made.append(warpers.MinPLogitsWarper(settings.min_p, kept))
    if settings.typical_p < 1.0:
        made.append(warpers.TypicalLogitsWarper(settings.typical_p, kept))
    return made


def largest_needed(processors: Sequence[LogitsProcessor], draws: bool) -> int | None:
    """How many of the largest logits decide about the next token; None where all may."""
    if not draws:
        return None if processors else 1
    for processor in processors:
        if isinstance(processor, warpers.TopKLogitsWarper):
            return processor.top_k
        if not isinstance(processor, warpers.TemperatureLogitsWarper):
            return None
    return None


@dataclass(frozen=True)
class Chooser:
    """Chooses tokens.

    Args:
        processors: change the scores first.
        do_sample: draw; else take the most probable token.
        generator: draws; None for torch's own.
        of_possible: of one row, draws by numbers for the tokens that are possible, not for all as the reference does.
    """

    processors: LogitsProcessorList
    do_sample: bool = False
    generator: torch.Generator | None = None
    of_possible: bool = False

    def __call__(self, input_ids: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
        """(ids [B, S] so far, logits [B, V]) -> the next ids [B] and the scores [B, V] they were chosen by.

        Where the best token of each row is all that came, both are of it: [B], and scores [B, 1].

        Raises:
            InputError: logits that are not finite, or no token is allowed.
        """
        values, ids = logits
        if ids is not None:  # the best alone; there is nothing to change or to draw
            check_finite(values[:, 0], values)
            return ids[:, 0], values
        scores = self.processors(input_ids, values)
        best, token = best_of(scores)
        check_finite(best, values)
        if self.do_sample:
            token = self._drawn(scores)
        return token, scores

    def _drawn(self, scores: Tensor) -> Tensor:
        if not self.of_possible or len(scores) > 1:
            return torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(1)
        possible = warpers.possible_of(scores)
        return possible[torch.multinomial(scores[0, possible].softmax(-1), 1, generator=self.generator)]


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """`scores.max(-1)` of [B, V]; on a CPU by numpy, which takes a tenth of the time."""
    if scores.device.type != "cpu" or scores.dtype is not torch.float32 or scores.requires_grad:
        return scores.max(-1)
    places = torch.from_numpy(scores.numpy().argmax(-1))
    return scores.gather(-1, places.unsqueeze(-1)).squeeze(-1), places


def check_finite(best: Tensor, logits: Tensor) -> None:
    """The best scores [B] must be numbers.

    Raises:
        InputError: they are not, because the logits are not, or because everything is forbidden.
    """
    if all(map(math.isfinite, best.tolist())):
        return
    if bool(logits.amax(-1).isfinite().all()):
        raise InputError("No token is allowed: bad_words_ids, suppress_tokens and the other rules forbid all of them.")
    raise InputError(
        "The logits are not finite: the weights are damaged, or too large for the model's dtype (use bfloat16 or "
        "float32 instead of float16)."
    )
