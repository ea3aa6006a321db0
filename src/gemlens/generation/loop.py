"""Greedy search and sampling: read, choose a token per row, until all rows have ended."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gemlens.generation.outputs import Record
from gemlens.generation.reading import Reader
from gemlens.generation.sampling import Chooser
from gemlens.generation.stopping import StoppingCriteriaList
from gemlens.models.outputs import Logits


class Streamer(Protocol):
    """Takes tokens as they come."""

    def put(self, value: Tensor) -> None:
        """The prompt [B, S] first, then the next token of each row, [B]."""

    def end(self) -> None:
        """No more tokens come."""


@dataclass(frozen=True)
class Run:
    """What all loops need.

    Args:
        reader: of the model.
        ids: [B, S], the prompts.
        choose: the next tokens.
        has_ended: which rows.
        padding: fills rows that have ended.
        record: of what else is wanted.
        streamer: shown the tokens.
    """

    reader: Reader
    ids: Tensor
    choose: Chooser
    has_ended: StoppingCriteriaList
    padding: int
    record: Record
    streamer: Streamer | None = None


def continue_rows(run: Run, copies: int = 1) -> Tensor:
    """Continues each of B rows `copies` times: ids [B * copies, prompt + new]."""
    reading = run.reader.prefill()
    logits, ids = reading.logits.after(-1), run.ids
    if copies > 1:
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        run.reader.select(rows)
        logits, ids = Logits(logits.values[rows]), ids[rows]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while True:
        run.record.add(reading)
        tokens, scores = run.choose(ids, logits)
        run.record.add_choice(logits.values, scores)
        if len(ids) > 1:  # one row goes on until it has ended
            tokens = tokens.masked_fill(ended, run.padding)
        ids = torch.cat([ids, tokens.unsqueeze(1)], dim=1)
        if run.streamer is not None:
            run.streamer.put(tokens.cpu())
        filled, ended = ended, ended | run.has_ended(ids, run.record.scores)
        if all(ended.tolist()):
            return ids
        reading = run.reader.step(tokens.unsqueeze(1), filled)
        logits = reading.logits.after(-1)
