"""The loop: one prefill, then a step per token.

ids [1, S] -> prefill -> logits -> next id -> step -> logits -> next id ...
"""

from collections.abc import Collection, Iterator
from typing import Protocol

import torch
from torch import Tensor

from gemlens.caches.cache import Cache
from gemlens.errors import InputError


class Predicts(Protocol):
    """A model with a head, as far as the loop needs it."""

    def __call__(
        self, *, input_ids: Tensor, past_key_values: Cache | None, use_cache: bool, logits_to_keep: int
    ) -> "Prediction":
        """Reads new tokens and predicts the next one."""


class Prediction(Protocol):
    """What it gives."""

    logits: Tensor
    past_key_values: Cache


def greedy_tokens(
    model: Predicts, input_ids: Tensor, max_new_tokens: int, eos_token_ids: Collection[int] = ()
) -> Iterator[int]:
    """The most probable continuation of one text, token by token, as it comes.

    Args:
        model: in eval mode.
        input_ids: [1, S].
        max_new_tokens: at most this many; it ends earlier at a token of `eos_token_ids`, which is not given.

    Raises:
        InputError: several rows, or logits that are not finite.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise InputError(f"input_ids have shape {tuple(input_ids.shape)}, but one text is continued: [1, tokens].")
    cache: Cache | None = None
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            score, token = output.logits[0, -1].max(dim=-1)
        if not bool(score.isfinite()):
            raise InputError("The logits are not finite: the weights are damaged, or too large for the model's dtype.")
        if int(token) in eos_token_ids:
            return
        yield int(token)
        input_ids, cache = token.view(1, 1), output.past_key_values
