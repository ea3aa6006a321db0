"""Beam search: per row, the `num_beams` most probable unfinished texts go on, and the best finished ones are kept.

A text's score is the sum of its tokens' log-probabilities; a finished one's is divided by length ** length_penalty.
B rows, K beams, C candidates per row and step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gemlens.generation.config import Settings
from gemlens.generation.loop import Run
from gemlens.generation.sampling import check_finite

_NEVER = -1e9  # a score that no text has


@dataclass
class _Beams:
    """Texts with their scores, the best first.

    Args:
        ids: [B, K, S].
        scores: [B, K].
        origins: [B, K, N] which row of a step's scores each new token came from; -1 after the end.
        finished: [B, K] bool.
    """

    ids: Tensor
    scores: Tensor
    origins: Tensor
    finished: Tensor

    def best(self, count: int, scores: Tensor) -> "_Beams":
        """The `count` texts with the highest of these scores [B, K], which become theirs."""
        chosen_scores, order = scores.topk(count)
        return _Beams(_taken(self.ids, order), chosen_scores, _taken(self.origins, order), _taken(self.finished, order))

    def joined(self, other: "_Beams") -> "_Beams":
        """Those of both; the shorter ones are filled up by the caller's padding, so both have the same length."""
        pairs = ((self.ids, other.ids), (self.scores, other.scores), (self.origins, other.origins))
        ids, scores, origins = (torch.cat(pair, dim=1) for pair in pairs)
        return _Beams(ids, scores, origins, torch.cat([self.finished, other.finished], dim=1))

    def padded(self, padding: int) -> "_Beams":
        """One slot longer."""
        ids = torch.nn.functional.pad(self.ids, (0, 1), value=padding)
        return _Beams(ids, self.scores, torch.nn.functional.pad(self.origins, (0, 1), value=-1), self.finished)


def _taken(values: Tensor, order: Tensor) -> Tensor:
    """[B, K, ...] in the order [B, K']."""
    order = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, order)


def search(run: Run, settings: Settings, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best texts of each row.

    Args:
        run: of B rows.
        settings: of beams.
        most: tokens that a text may have, prompt counted.

    Returns:
        ids [B * num_return_sequences, prompt + N], scores [B * num_return_sequences] and which row of each step's
        scores the tokens came from, [B * num_return_sequences, N].
    """
    batch, prompt = run.ids.shape
    beams = settings.num_beams
    reading = run.reader.prefill()
    spread = torch.arange(batch, device=run.ids.device).repeat_interleave(beams)
    run.reader.select(spread)
    logits = reading.logits.values[:, -1][spread]
    running = _start(run.ids, beams, first=0.0)
    finished = _start(run.ids, beams, first=_NEVER)
    improvable = torch.ones(batch, 1, dtype=torch.bool, device=run.ids.device)
    while True:
        run.record.add(reading)
        candidates = _candidates(run, settings, running, logits)
        ended = run.has_ended(candidates.ids.flatten(0, 1), run.record.scores).view(batch, -1)
        running = candidates.best(beams, candidates.scores + _NEVER * ended)
        finished = _update(finished.padded(run.padding), candidates, ended, improvable, settings, prompt)
        rows = running.origins[:, :, -1].flatten()
        length = running.ids.shape[2]
        improvable = improvable & _can_improve(running, finished, settings, length - prompt, most - prompt)
        all_found = settings.early_stopping is True and bool(finished.finished.all())
        if not bool(improvable.any()) or all_found or bool(ended.all()):
            break
        run.reader.select(rows)
        reading = run.reader.step(running.ids[:, :, -1].reshape(-1, 1))
        logits = reading.logits.values[:, -1]
    best = finished.best(settings.num_return_sequences, finished.scores)
    origins = best.origins.flatten(0, 1)
    used = int((origins >= 0).sum(1).max())
    return best.ids.flatten(0, 1)[:, : prompt + used], best.scores.flatten(), origins[:, :used]


def _start(ids: Tensor, beams: int, first: float) -> _Beams:
    """K copies of each prompt, of which only the first counts: else all beams would be alike."""
    batch = len(ids)
    scores = torch.full((batch, beams), _NEVER, device=ids.device)
    scores[:, 0] = first
    origins = torch.empty(batch, beams, 0, dtype=torch.int64, device=ids.device)
    finished = torch.zeros(batch, beams, dtype=torch.bool, device=ids.device)
    return _Beams(ids.unsqueeze(1).repeat(1, beams, 1), scores, origins, finished)


def _candidates(run: Run, settings: Settings, running: _Beams, logits: Tensor) -> _Beams:
    """The best continuations by one token, so many that `num_beams` of them go on whatever end tokens there are."""
    batch, beams = running.scores.shape
    rows = running.ids.flatten(0, 1)
    scores = run.choose.processors(rows, logits.log_softmax(-1))
    check_finite(scores.amax(-1), logits)
    run.record.add_choice(logits, scores)
    vocabulary = scores.shape[-1]
    together = (scores.view(batch, beams, vocabulary) + running.scores.unsqueeze(-1)).flatten(1)
    count = max(2, 1 + len(settings.end_tokens)) * beams
    if settings.draws:
        picked = torch.multinomial(together.softmax(-1), count, generator=run.choose.generator)
        best = together.gather(1, picked)
    else:
        best, picked = together.topk(count)
    beam, token = picked // vocabulary, picked % vocabulary
    ids = torch.cat([_taken(running.ids, beam), token.unsqueeze(-1)], dim=-1)
    row = beam + torch.arange(batch, device=beam.device).unsqueeze(1) * beams
    origins = torch.cat([_taken(running.origins, beam), row.unsqueeze(-1)], dim=-1)
    return _Beams(ids, best, origins, torch.zeros_like(best, dtype=torch.bool))


def _update(
    finished: _Beams, candidates: _Beams, ended: Tensor, improvable: Tensor, settings: Settings, prompt: int
) -> _Beams:
    """The best finished texts, after candidates [B, C] of which some have just ended.

    Only the `num_beams` best candidates may end a text; the others are there to go on.
    """
    beams = settings.num_beams
    among_best = torch.arange(ended.shape[1], device=ended.device) < beams
    counts = ended & among_best & improvable
    if settings.early_stopping is True:
        counts = counts & ~finished.finished.all(1, keepdim=True)
    length = candidates.ids.shape[2] - prompt
    scores = candidates.scores / length**settings.length_penalty + _NEVER * ~counts
    new = _Beams(candidates.ids, scores, candidates.origins, ended & among_best)
    together = finished.joined(new)
    return together.best(beams, together.scores)


def _can_improve(running: _Beams, finished: _Beams, settings: Settings, length: int, longest: int) -> Tensor:
    """[B, 1] bool: whether a running text may still become better than the worst finished one.

    Scores only fall as texts grow, so dividing by a greater length flatters. "never" takes the greatest length, which
    is sure; False takes the present one, which usually is right and stops earlier (reference, pull request 20901).
    """
    hopeful = settings.early_stopping == "never" and settings.length_penalty > 0
    attainable = running.scores[:, :1] / (longest if hopeful else length) ** settings.length_penalty
    worst = finished.scores.amin(1, keepdim=True).masked_fill(~finished.finished, _NEVER)
    return (attainable > worst).any(1, keepdim=True)
