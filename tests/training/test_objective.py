"""The objective: the loss of the models, of any batch and of any parts of it, without their logits."""

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens import InputError
from gemlens.models.loss import next_token_loss
from gemlens.training.objective import Mean, Objective

MEANS: list[Mean] = ["example", "token"]
LEFT, RIGHT = "left", "right"


def batch(family: str, side: str = RIGHT) -> dict[str, Tensor]:
    """Three rows whose answers have 5, 2 and 3 tokens, of which the last two are padded; of texts, all is scored."""
    inputs = tiny.prompt(family, rows=3, length=14)
    ids = inputs["input_ids"]
    labels = ids.masked_fill(ids == tiny.PICTURE, -100)
    if family in tiny.PICTURE_FAMILIES:
        for row, answer in enumerate((5, 4, 7)):
            labels[row, :-answer] = -100
    mask = torch.ones_like(ids)
    for row, padding in ((1, 2), (2, 4)):
        mask[row, 14 - padding :] = 0
    if side == LEFT:
        order = torch.stack([torch.argsort(row, stable=True) for row in mask])
        ids, labels, mask = (each.gather(1, order) for each in (ids, labels, mask))
    return {**inputs, "input_ids": ids, "labels": labels, "attention_mask": mask}


def slow(model: nn.Module, rows: dict[str, Tensor], mean: Mean, smoothing: float = 0.0) -> Tensor:
    """The definition, row by row, on all logits."""
    logits = model(**rows).logits.float()
    losses = []
    for row, labels in enumerate(rows["labels"]):
        real = rows["attention_mask"][row].bool()
        targets = labels[1:].masked_fill(~(real[1:] & real[:-1]), -100)
        counted = (targets != -100).sum()
        total = F.cross_entropy(logits[row, :-1], targets, reduction="sum", label_smoothing=smoothing)
        losses.append(total if mean == "token" else total / counted)
    return torch.stack(losses).sum()


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], most: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert (gradient - second[name]).abs().max() <= most * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_sum_and_its_gradients_are_those_of_all_logits(
    family: str, side: str, mean: Mean, smoothing: float
) -> None:
    model = tiny.fresh(family).train()
    rows = batch(family, side)
    expected = slow(model, rows, mean, smoothing)
    given = Objective(mean, smoothing, chunk=4)(model, rows)
    assert abs(given / expected - 1) < 1e-6
    assert_same(gradients(expected, model), gradients(given, model))


@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_the_mean_of_tokens_is_the_models_own_loss(family: str, side: str) -> None:
    model, rows, objective = tiny.model(family), batch(family, side), Objective("token")
    output = model(**rows)
    mean = objective(model, rows) / objective.weight(rows["labels"], rows["attention_mask"])
    assert abs(mean / output.loss - 1) < 1e-6
    assert abs(mean / next_token_loss(output.logits, rows["labels"], rows["attention_mask"]) - 1) < 1e-6


def test_the_weight_is_what_is_scored() -> None:
    labels = torch.full((4, 6), -100)
    labels[0, 3:] = 7
    labels[1, 5] = 7
    labels[2, :2] = 7  # the first of a row is predicted by nothing
    assert Objective("token").weight(labels) == 5
    assert Objective("example").weight(labels) == 3
    mask = torch.ones_like(labels)
    mask[0, :3] = 0  # padding predicts nothing
    mask[1, 5] = 0
    assert Objective("token").weight(labels, mask) == 3
    assert Objective("example").weight(labels, mask) == 2


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parts_of_a_batch_add_up_to_it(family: str, mean: Mean) -> None:
    model = tiny.fresh(family).train()
    rows, objective = batch(family), Objective(mean, chunk=3)
    cut = [{name: each[part] for name, each in rows.items()} for part in (slice(0, 2), slice(2, 3))]
    weights = [objective.weight(part["labels"]) for part in cut]
    assert sum(weights) == objective.weight(rows["labels"])
    whole = objective(model, rows)
    parts = [objective(model, part) for part in cut]
    assert abs(sum(parts) / whole - 1) < 1e-6
    assert_same(gradients(whole, model), gradients(torch.stack(parts).sum(), model))


@pytest.mark.parametrize("mean", MEANS)
def test_a_row_without_an_answer_changes_nothing(mean: Mean) -> None:
    model, rows, objective = tiny.model("paligemma"), batch("paligemma"), Objective(mean)
    labels = rows["labels"].clone()
    labels[1] = -100
    others = {name: each[[0, 2]] for name, each in rows.items()}
    given = objective(model, {**rows, "labels": labels})
    assert objective.weight(labels) == objective.weight(others["labels"])
    assert abs(given / objective(model, others) - 1) < 1e-6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_to_score_gives_zero_and_zero_gradients(family: str) -> None:
    model = tiny.fresh(family).train()
    rows = batch(family)
    rows["labels"] = torch.full_like(rows["labels"], -100)
    objective = Objective()
    loss = objective(model, rows)
    assert (loss, objective.weight(rows["labels"])) == (0, 0)
    assert not any(gradient.any() for gradient in gradients(loss, model).values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpointed_layers_give_the_same_gradients(family: str) -> None:
    model = tiny.fresh(family).train()
    rows, objective = batch(family), Objective(chunk=4)
    plain = gradients(objective(model, rows), model)
    model.gradient_checkpointing_enable()
    assert_same(plain, gradients(objective(model, rows), model), 0.0)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "paligemma"])
def test_autocast_keeps_the_loss_in_float32_and_near(family: str) -> None:
    model = tiny.fresh(family).train()
    rows, objective = batch(family), Objective()
    exact = objective(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = objective(model, rows)
    assert rounded.dtype == torch.float32
    assert 0 < abs(rounded / exact - 1) < 0.05
    assert all(gradient.dtype == torch.float32 for gradient in gradients(rounded, model).values())


@pytest.mark.parametrize("family", ["gemma2", "paligemma2"])
def test_the_soft_cap_of_logits_is_learned_through(family: str) -> None:
    cap = tiny.model(family).text_model().config.softcaps[1]
    assert cap == 5.0
    rows = batch(family)
    capped = Objective()(tiny.model(family), rows)
    uncapped = Objective()(tiny.fresh(family, final_logit_softcapping=None), rows)
    assert abs(capped - uncapped) > 0.1


@pytest.mark.parametrize("family", ["gemma", "gemma3-pictures"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a head of its own"])
def test_a_head_learns_with_or_without_its_embedding(family: str, tied: bool) -> None:
    model = tiny.fresh(family, tie_word_embeddings=tied).train()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    rows = batch(family)
    expected = gradients(slow(model, rows, "example"), model)
    given = gradients(Objective(chunk=4)(model, rows), model)
    assert ("lm_head.weight" in given) != tied
    assert_same(expected, given)


class Adapted(nn.Module):
    """A head with an adapter."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head.requires_grad_(False)
        self.down, self.up = nn.Linear(head.in_features, 2), nn.Linear(2, head.out_features)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden) + self.up(self.down(hidden))


@pytest.mark.parametrize("family", ["gemma2", "paligemma"])
def test_a_head_with_an_adapter_learns(family: str) -> None:
    torch.manual_seed(0)
    model = tiny.fresh(family, tie_word_embeddings=False).train()
    model.lm_head = Adapted(model.lm_head)
    rows = batch(family)
    expected = gradients(slow(model, rows, "example"), model)
    given = gradients(Objective(chunk=4)(model, rows), model)
    assert {"lm_head.up.weight", "lm_head.down.weight"} < given.keys()
    assert_same(expected, given)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mean", "examples"), ("label_smoothing", 1.0), ("label_smoothing", -0.1), ("chunk", 0), ("chunk", 2.5)],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{setting} is .*{value}"):
        Objective(**{setting: value})


def test_what_cannot_be_learned_from_is_refused() -> None:
    model, rows = tiny.model("paligemma"), batch("paligemma")
    with pytest.raises(InputError, match="A PaliGemmaModel has no head"):
        Objective()(model.model, rows)
    del rows["labels"]
    with pytest.raises(InputError, match="no labels"):
        Objective()(model, rows)


@pytest.mark.parametrize("family", ["gemma3", "gemma3-pictures"])
def test_labels_that_do_not_fit_are_refused(family: str) -> None:
    model, rows = tiny.model(family), batch(family)
    with pytest.raises(InputError, match=r"labels have shape \(3, 13\)"):
        Objective()(model, {**rows, "labels": rows["labels"][:, 1:]})
    with pytest.raises(InputError, match="labels hold 40"):
        Objective()(model, {**rows, "labels": rows["labels"].where(rows["labels"] < 0, tiny.VOCABULARY)})
