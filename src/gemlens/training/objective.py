"""What training minimises: the cross-entropy of the answer's tokens, in a sum that batches of any size add up to.

    model.model(batch) -> hidden [B, S, D] -> those that predict a scored token [N, D] -> chunked_loss -> a number

What is scored is what gemlens.models.loss scores: labels that are not -100, one place later, but neither padding nor
what padding would predict. Of several texts packed into a row, none is scored by another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.models.loss import IGNORED, check_labels
from gemlens.models.multimodal import MultimodalForConditionalGeneration
from gemlens.models.text import CausalLM
from gemlens.training.chunked_loss import CHUNK, Rule, chunked_cross_entropy

Mean = Literal["example", "token"]


class Goal(Protocol):
    """What can be minimised: a sum over a micro-batch, and how much that sum counts."""

    def weight(self, labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, /) -> float:
        """What the sums of micro-batches are divided by, added up."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], /) -> Tensor:
        """The sum, a number that has a gradient."""


@dataclass(frozen=True)
class Objective:
    """Called with a model and a micro-batch, gives the sum of its losses; `weight` says how many these are.

    The sums of micro-batches, divided by the sum of their weights, are the loss of the whole, however it is cut.

    Args:
        mean: "example": the mean of each example's tokens counts once, as in big_vision; "token": every token does.
        label_smoothing: the part of each target that is spread over the whole vocabulary.
        chunk: how many tokens' logits exist at once.

    Raises:
        InputError: a value out of range.
    """

    mean: Mean = "example"
    label_smoothing: float = 0.0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        if self.mean not in ("example", "token"):
            raise InputError(f"mean is {self.mean!r}, but it must be 'example' or 'token'.")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}, but it must be at least 0 and below 1.")
        if type(self.chunk) is not int or self.chunk < 1:
            raise InputError(f"chunk is {self.chunk!r}, but it must be a number of tokens, at least 1.")

    def weight(self, labels: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> float:
        """How many examples or tokens of a micro-batch count: those of which something is scored.

        Args:
            labels: [B, S], as in the batch; so are `attention_mask` and `position_ids`.
            attention_mask: needed where labels score the first token after padding on the left.
            position_ids: needed where several texts are packed into a row.
        """
        targets, owners = _scored(labels, attention_mask, position_ids)
        counted = owners[targets != IGNORED]
        return float(len(counted) if self.mean == "token" else counted.bincount().count_nonzero())

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The sum of a micro-batch's losses, a number that has a gradient.

        Args:
            model: one with a head over the vocabulary, `lm_head`.
            batch: what `model(**batch)` takes, `labels` [B, S] among it.

        Raises:
            InputError: another kind of model, no labels, or a batch that the model refuses.
        """
        if not isinstance(model, CausalLM | MultimodalForConditionalGeneration):
            raise InputError(f"A {type(model).__name__} has no head over a vocabulary, so there is nothing to learn.")
        labels = batch.get("labels")
        if labels is None:
            raise InputError("The batch has no labels; a Collator makes them.")
        hidden = _hidden(model, batch)
        targets, owners = _scored(labels, batch.get("attention_mask"), batch.get("position_ids"))
        scored = targets != IGNORED
        weights = None
        if self.mean == "example":
            owners = owners[scored]
            weights = owners.bincount().to(torch.promote_types(hidden.dtype, torch.float32)).reciprocal()[owners]
        rule = Rule(model.text_model().config.softcaps[1], self.label_smoothing, self.chunk)
        return chunked_cross_entropy(hidden[:, :-1][scored], targets[scored], model.lm_head, rule, weights)


def _hidden(model: CausalLM | MultimodalForConditionalGeneration, batch: Mapping[str, Any]) -> Tensor:
    """[B, S, D] of the model below its head."""
    inputs = dict(batch)
    if isinstance(model, CausalLM):
        ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
        labels = inputs.pop("labels")  # they say nothing about who sees whom in a text
        if ids is not None:
            check_labels(labels, ids.shape[:2], model.config.vocab_size)
    hidden: Tensor = model.model(**inputs, use_cache=False).last_hidden_state
    return hidden


def _scored(labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """The targets [B, S-1] of all tokens but the last, -100 where nothing is scored, and the number of their example.

    Without a mask, positions that do not go up by one begin another text of the row, as the models see it.
    """
    targets = labels[:, 1:].long()
    rows = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    owners = rows.expand(targets.shape)
    if attention_mask is not None:
        real = attention_mask.to(labels.device) != 0
        targets = targets.masked_fill(~(real[:, 1:] & real[:, :-1]), IGNORED)
    elif position_ids is not None:
        begins = position_ids.to(labels.device).expand(labels.shape).diff() != 1
        targets = targets.masked_fill(begins, IGNORED)
        owners = rows * labels.shape[1] + begins.cumsum(1)
    return targets, owners
