"""The gradient of every parameter equals the reference's, in training mode, with the masks of training."""

import pytest
import torch
from pairs import CASES, Batch, Case, Pair, batch, build
from torch import Tensor, nn

# Adding the same number to all keys changes no softmax, so this gradient is zero but for rounding.
ZERO_BY_NATURE = "vision_model.encoder.layers.{}.self_attn.k_proj.bias"


def objective(model: nn.Module, case: Case, rows: Batch, arguments: dict[str, Tensor]) -> Tensor:
    """A loss, or a fixed weighting of the hidden states where there is no head."""
    output = model(**arguments)
    if output.get("loss") is not None:
        return output["loss"]
    states = output.last_hidden_state[rows.real]
    return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum() / len(states)


def arguments_of(case: Case, rows: Batch) -> dict[str, Tensor]:
    if case.model == "Gemma3ForSequenceClassification":
        return {"labels": torch.tensor([2, 0, 1])}
    return {"labels": rows.labels} if case.has_head or case.family == "paligemma" else {}


def assert_equal_gradients(pair: Pair, vision_layers: int = 3) -> None:
    ours = dict(pair.ours.named_parameters())
    zero = {f"{ZERO_BY_NATURE.format(layer)}" for layer in range(vision_layers)}
    for name, parameter in pair.reference.named_parameters():
        theirs, mine = parameter.grad, ours[name].grad
        assert theirs is not None, name
        assert mine is not None, name
        largest = theirs.abs().max().item()
        if not name.endswith(tuple(zero)):
            assert largest > 1e-6, name
        assert (theirs - mine).abs().max().item() < min(1e-4, 1e-3 * largest + 1e-6), name


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_parameters_gradient_is_the_references(case: Case, padding: str) -> None:
    pair = build(case)
    rows = batch(case, padding)
    extra = arguments_of(case, rows)
    pair.reference.train()
    pair.ours.train()
    theirs = objective(pair.reference, case, rows, rows.reference(**extra))
    ours = objective(pair.ours, case, rows, rows.ours(**extra))
    assert torch.allclose(theirs, ours, atol=1e-5)
    theirs.backward()
    ours.backward()
    assert_equal_gradients(pair)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_checkpointing_changes_no_gradient(case: Case) -> None:
    pair = build(case)
    rows = batch(case, "left")
    extra = arguments_of(case, rows)
    pair.ours.train()
    pair.ours.gradient_checkpointing_enable()
    objective(pair.reference, case, rows, rows.reference(**extra)).backward()
    objective(pair.ours, case, rows, rows.ours(**extra)).backward()
    assert_equal_gradients(pair)
