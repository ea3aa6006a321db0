"""What `generate` gives besides ids, where `return_dict_in_generate` asks for it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from gemlens.caches.cache import Cache
from gemlens.generation.config import Settings
from gemlens.models.outputs import ModelOutput

if TYPE_CHECKING:
    from gemlens.generation.reading import Reading

PerStep = tuple[Tensor, ...]
PerStepAndLayer = tuple[tuple[Tensor, ...], ...]


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Of greedy search, sampling and assisted decoding. N steps.

    Args:
        sequences: [B, prompt + N] ids.
        scores: N of [B, V], what the token was chosen by, after all processors.
        logits: N of [B, V], as the model gave them.
        attentions, hidden_states: N of what the model's forward gives; the first is that of the prompt.
        past_key_values: the cache; it holds all tokens but the last.
    """

    sequences: Tensor | None = None
    scores: PerStep | None = None
    logits: PerStep | None = None
    attentions: PerStepAndLayer | None = None
    hidden_states: PerStepAndLayer | None = None
    past_key_values: Cache | None = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Of beam search: `sequences_scores` [B], log-probabilities after the length penalty, and `beam_indices` [B, N].

    `beam_indices` say which row of a step's `scores` each token came from, -1 after the end; the rest is as in
    `GenerateDecoderOnlyOutput`, with scores in log-probabilities.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: PerStep | None = None
    logits: PerStep | None = None
    beam_indices: Tensor | None = None
    attentions: PerStepAndLayer | None = None
    hidden_states: PerStepAndLayer | None = None
    past_key_values: Cache | None = None


@dataclass
class Record:
    """Keeps of every step what the settings ask for."""

    settings: Settings
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    attentions: list[tuple[Tensor, ...]] = field(default_factory=list)
    hidden_states: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, reading: "Reading", place: int | None = None) -> None:
        """Keeps what the model gave besides logits, of all tokens that it read or of the one at `place`."""
        one = slice(None) if place is None else slice(place, place + 1)
        if reading.attentions is not None:
            later = 0 if place is None else reading.attentions[0].shape[2] - place - 1  # guesses that it does not see
            self.attentions.append(tuple(seen[:, :, one, : seen.shape[3] - later] for seen in reading.attentions))
        if reading.hidden_states is not None:
            self.hidden_states.append(tuple(states[:, one] for states in reading.hidden_states))

    def add_choice(self, logits: Tensor, scores: Tensor) -> None:
        """Keeps the logits [B, V] of a step and the scores that were made of them."""
        said = self.settings
        if said.return_dict_in_generate and said.output_logits:
            self.logits.append(logits)
        if said.return_dict_in_generate and said.output_scores:
            self.scores.append(scores)

    def scores_and_logits(self) -> tuple[PerStep | None, PerStep | None]:
        """Of every step; None where nothing was asked for."""
        said = self.settings
        return tuple(self.scores) if said.output_scores else None, tuple(self.logits) if said.output_logits else None

    def inside(self) -> tuple[PerStepAndLayer | None, PerStepAndLayer | None]:
        """Attentions and hidden states of every step; None where nothing was asked for."""
        said = self.settings
        attentions = tuple(self.attentions) if said.output_attentions else None
        return attentions, tuple(self.hidden_states) if said.output_hidden_states else None
