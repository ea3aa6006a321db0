"""Sharper or flatter: functions on the scores of the next token that are used when it is drawn.

As in gemlens.generation.logits; each keeps at least `min_tokens_to_keep` tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class TemperatureLogitsWarper:
    """Divides by the temperature: below 1 sharper, above 1 flatter."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return scores / self.temperature


class TopKLogitsWarper:
    """Keeps the `top_k` most probable tokens, and those as probable as the last of them."""

    def __init__(self, top_k: int, min_tokens_to_keep: int = 1) -> None:
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return _of_possible(self._warped, scores)

    def _warped(self, scores: Tensor) -> Tensor:
        least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
        return scores.masked_fill(scores < least, -torch.inf)


class TopPLogitsWarper:
    """Keeps the fewest of the most probable tokens that have a probability of `top_p` together (arXiv 1904.09751)."""

    def __init__(self, top_p: float, min_tokens_to_keep: int = 1) -> None:
        self.top_p, self.kept = top_p, min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return _of_possible(self._warped, scores)

    def _warped(self, scores: Tensor) -> Tensor:
        ordered, order = scores.sort(descending=False)
        removed = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
        removed[:, -self.kept :] = False
        return scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)


class MinPLogitsWarper:
    """Keeps tokens at least `min_p` times as probable as the most probable one (arXiv 2407.01082)."""

    def __init__(self, min_p: float, min_tokens_to_keep: int = 1) -> None:
        self.min_p, self.kept = min_p, min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        probabilities = scores.softmax(-1)
        removed = probabilities < self.min_p * probabilities.amax(-1, keepdim=True)
        best = probabilities.topk(min(self.kept, scores.shape[-1])).indices
        return scores.masked_fill(removed.scatter(1, best, False), -torch.inf)


class TypicalLogitsWarper:
    """Keeps tokens whose information is close to the expected one, with a probability of `mass` (arXiv 2202.00666)."""

    def __init__(self, mass: float, min_tokens_to_keep: int = 1) -> None:
        self.mass, self.kept = mass, min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> scores [B, V]."""
        return _of_possible(self._warped, scores)

    def _warped(self, scores: Tensor) -> Tensor:
        logs = scores.log_softmax(-1)
        entropy = -(logs * logs.exp()).nansum(-1, keepdim=True)
        distance, order = (-logs - entropy).abs().sort()
        together = scores.gather(1, order).softmax(-1).cumsum(-1)
        last = (together < self.mass).sum(1, keepdim=True).clamp(max=scores.shape[1] - 1)
        removed = distance > distance.gather(1, last)
        removed[:, : self.kept] = False
        return scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def _of_possible(warped: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """`warped(scores)` by way of the tokens that are not forbidden, as to sort a vocabulary takes milliseconds.

    For one row on a CPU; by numpy, since torch's threads would be in the way of those of kernels.
    """
    if len(scores) > 1 or scores.device.type != "cpu" or scores.dtype is not torch.float32 or scores.requires_grad:
        return warped(scores)
    possible = possible_of(scores)
    if not 0 < len(possible) < scores.shape[1]:
        return warped(scores)
    result = torch.empty_like(scores)
    result.numpy().fill(-torch.inf)
    return result.index_copy_(1, possible, warped(scores[:, possible]))


def possible_of(scores: Tensor) -> Tensor:
    """Ids of the tokens of one row [1, V] on a CPU that are not forbidden."""
    return torch.from_numpy((scores[0].numpy() != -torch.inf).nonzero()[0])
