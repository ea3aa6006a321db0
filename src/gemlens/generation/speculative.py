"""Guess several tokens cheaply, read them in one call of the model, keep those that it would have chosen itself.

The tokens are those of the plain loop, drawn ones included: each is chosen from the model's own scores, by the same
draw; a guess only decides whether the scores of the next one are there already.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.generation.config import Settings
from gemlens.generation.loop import Run
from gemlens.generation.reading import Reader

Guesser = Callable[[Tensor, int], Tensor]  # (ids [1, S], at most so many) -> [1, n] tokens, n may be 0


def continue_with_guesses(run: Run, guess: Guesser, most: int) -> Tensor:
    """Continues one row: ids [1, prompt + new].

    Args:
        run: of one row, whose cache can forget.
        guess: what may come next.
        most: tokens that the text may have, prompt counted.
    """
    ids = run.ids
    reading = run.reader.prefill()
    guessed = ids[:, :0]
    while True:
        for place in range(guessed.shape[1] + 1):
            run.record.add(reading, None if ids.shape == run.ids.shape else place)  # of the prompt, all
            logits = reading.logits.after(place)
            token, scores = run.choose(ids, logits)
            run.record.add_choice(logits.values, scores)
            ids = torch.cat([ids, token.unsqueeze(1)], dim=1)
            if run.streamer is not None:
                run.streamer.put(token.cpu())
            if bool(run.has_ended(ids, run.record.scores).all()):
                run.reader.forget(guessed.shape[1] - place)
                return ids
            if place < guessed.shape[1] and int(guessed[0, place]) != int(token):
                break
        run.reader.forget(guessed.shape[1] - place)
        tokens = torch.cat([ids[:, -1:], guess(ids, most - ids.shape[1] - 1)], dim=1)
        tokens = tokens[:, : _readable(tokens, run.reader.model.picture_tokens)]
        guessed = tokens[:, 1:]
        reading = run.reader.step(tokens)


def _readable(tokens: Tensor, picture_tokens: tuple[int, int] | None) -> int:
    """How many of [1, n] tokens can be read at once, at least one: a guessed picture token has no picture."""
    if picture_tokens is None:
        return tokens.shape[1]
    return max(1, int((tokens != picture_tokens[0]).long().cumprod(1).sum()))


@dataclass(frozen=True)
class PromptLookup:
    """Guesses that what followed the last words the first time follows again.

    Args:
        count: tokens to guess.
        longest: of the last words that must have been there before; fewer are tried after it.
    """

    count: int
    longest: int = 2

    def __call__(self, ids: Tensor, most: int) -> Tensor:
        """(ids [1, S], at most so many) -> [1, n] tokens."""
        count = min(self.count, most)
        for size in range(min(self.longest, ids.shape[1] - 1), 0, -1):
            runs = ids[0].unfold(0, size, 1)[:-1]  # the last one is what is looked for
            found = (runs == ids[0, -size:]).all(1).nonzero().flatten()
            if len(found) and count > 0:
                start = int(found[0]) + size
                return ids[:, start : start + count]
        return ids[:, :0]


class Assistant:
    """Guesses what a smaller model finds most probable, as long as it is sure.

    Args:
        reader: of the smaller model, with a cache that can forget; its prompt is the beginning of the text.
        settings: how many tokens, and how sure.
    """

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self.reader = reader
        self.threshold = settings.assistant_confidence_threshold
        self.adapts = settings.num_assistant_tokens_schedule == "heuristic"
        self.count = settings.num_assistant_tokens
        self._read: Tensor | None = None  # [1, S] what the smaller model has read
        self._guessed = 0

    def __call__(self, ids: Tensor, most: int) -> Tensor:
        """(ids [1, S], at most so many) -> [1, n] tokens."""
        logits = self._catch_up(ids)
        guessed: list[Tensor] = []
        while len(guessed) < min(self.count, most):
            probability, token = logits.softmax(-1).max(-1)
            guessed.append(token.view(1, 1))
            if float(probability) < self.threshold or len(guessed) == min(self.count, most):
                break
            logits = self.reader.step(guessed[-1]).logits.values[:, -1]
        self._read = torch.cat([ids, *guessed[:-1]], dim=1)
        self._guessed = len(guessed)
        return torch.cat([ids[:, :0], *guessed], dim=1)

    def _catch_up(self, ids: Tensor) -> Tensor:
        """Reads what was chosen since; gives the logits [1, V] of what follows."""
        if self._read is None:
            logits = self.reader.prefill().logits.values[:, -1]
            new = ids[:, len(self.reader.prompt) :]
            return self.reader.step(new).logits.values[:, -1] if new.shape[1] else logits
        alike = min(self._read.shape[1], ids.shape[1])
        agreed = int((self._read[:, :alike] == ids[:, :alike]).long().cumprod(1).sum())
        agreed = min(agreed, ids.shape[1] - 1)  # one token must be read to know what follows
        if self.adapts:
            self.count = self.count + 2 if agreed == self._read.shape[1] else max(1, self.count - 1)
        self.reader.forget(self._read.shape[1] - agreed)
        return self.reader.step(ids[:, agreed:]).logits.values[:, -1]
