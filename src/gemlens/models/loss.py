"""Losses: cross-entropy of the next token, and of classes. Always in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gemlens.errors import InputError

IGNORED = -100  # the label of tokens that are not scored


def check_labels(labels: Tensor | None, shape: torch.Size, vocabulary: int) -> None:
    """Refuses labels before anything is computed or cached.

    Args:
        labels: [B, S] ids, or -100 where nothing is scored; None for no loss.
        shape: [B, S] of the tokens.
        vocabulary: V.

    Raises:
        InputError: labels of another shape, or outside the vocabulary.
    """
    if labels is None:
        return
    if not isinstance(labels, Tensor) or labels.shape != shape:
        came = f"have shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"are a {type(labels).__name__}"
        raise InputError(f"labels {came}, but there are {tuple(shape)} tokens.")
    _check_range(labels[labels != IGNORED], vocabulary)


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy of [B, S, V] logits against the labels [B, S] one place later.

    Padding (0 in `attention_mask` [B, S]) neither is scored nor predicts, so that it changes nothing.

    With `num_items_in_batch` the sum is divided by that number instead of this call's own count, so that the losses of
    accumulated batches add up to that of the whole batch. Nothing to score gives 0 (a plain mean would give NaN).

    Args:
        labels: what `check_labels` let through.

    Raises:
        InputError: there are not logits for all tokens.
    """
    if labels.shape != logits.shape[:2]:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}, but there are logits for {tuple(logits.shape[:2])} tokens; "
            "labels need every token's logits, so leave logits_to_keep at 0."
        )
    targets = labels[:, 1:].to(logits.device)
    if attention_mask is not None:
        real = attention_mask[:, -labels.shape[1] :].to(targets.device) != 0
        targets = targets.masked_fill(~(real[:, 1:] & real[:, :-1]), IGNORED)
    scored = targets != IGNORED
    total = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten().long(), ignore_index=IGNORED, reduction="sum"
    )
    count = scored.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> tuple[Tensor, str]:
    """Loss of [B, C] logits and the kind of problem, which the labels tell if the config does not.

    One class: regression, mean squared error. Integer labels: one class each, cross-entropy. Else: several at once.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        whole = not labels.is_floating_point()
        problem_type = (
            "regression"
            if logits.shape[-1] == 1
            else "single_label_classification"
            if whole
            else "multi_label_classification"
        )
    scores = logits.float()
    if len(labels) != len(logits):
        raise InputError(f"labels are for {len(labels)} rows, but {len(logits)} came.")
    if problem_type == "regression":
        return F.mse_loss(scores.squeeze(), labels.squeeze().float()), problem_type
    if problem_type == "single_label_classification":
        _check_range(labels, logits.shape[-1])
        return F.cross_entropy(scores, labels.flatten()), problem_type
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(scores, labels.float()), problem_type
    raise InputError(
        f"config.problem_type is {problem_type!r}; known are 'regression', 'single_label_classification' and "
        "'multi_label_classification'."
    )


def _check_range(labels: Tensor, classes: int) -> None:
    """On an accelerator a label out of range would end the process."""
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels hold {low if low < 0 else high}, but they must be 0 to {classes - 1}, or {IGNORED} for tokens "
            "that are not scored."
        )
