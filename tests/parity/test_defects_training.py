"""Losses and arguments: what the reference ignores, gives as NaN or mis-scores.

Model-facts section 6 and pitfalls 5, 10, 20, 21.
"""

from typing import Any

import pytest
import torch
from pairs import CASES, HEADS, Batch, Case, answers, batch, build, case_named, gap
from torch import Tensor, nn

import gemlens

GEMMA_3 = case_named("Gemma3ForConditionalGeneration")
CLASSIFIER = case_named("Gemma3ForSequenceClassification")


def accumulated(model: nn.Module, rows: list[dict[str, Any]], items: int | None) -> tuple[float, Tensor]:
    """The summed losses of micro-batches and the gradient of the embedding."""
    model.zero_grad()
    more = {} if items is None else {"num_items_in_batch": items}
    losses = []
    for part in rows:
        loss = model(**part, **more).loss
        loss.backward()
        losses.append(loss.item())
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    return sum(losses), gradient.clone()


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_accumulated_losses_and_gradients_are_those_of_the_big_batch_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case, "right")
    singles = [rows.row(index) for index in range(3)]
    parts = [row.ours(labels=row.labels) for row in singles]
    # What a trainer counts: labels that something before them can predict.
    items = sum(int((row.labels[:, 1:] != -100).sum()) for row in singles)
    whole = accumulated(pair.ours, [rows.ours(labels=rows.labels)], None)
    summed = accumulated(pair.ours, parts, items)
    assert abs(whole[0] - summed[0]) < 1e-5
    assert gap(whole[1], summed[1]) < 1e-5
    theirs = accumulated(pair.reference, [row.reference(labels=row.labels) for row in singles], items)
    if case.family == "gemma3":  # ignored there: the loss is inflated by the number of micro-batches
        assert theirs[0] > 2 * whole[0]
        assert theirs[1].norm() > 1.5 * whole[1].norm()
    else:
        assert abs(whole[0] - theirs[0]) < 1e-5


@torch.no_grad()
def test_multimodal_gemma_3_ignores_the_number_of_items_there_and_divides_by_it_here() -> None:
    rows = batch(GEMMA_3)
    pair = build(GEMMA_3)
    plain = answers(pair, rows, labels=rows.labels)
    counted = answers(pair, rows, labels=rows.labels, num_items_in_batch=7)
    scored = (rows.labels[:, 1:] != -100).sum()
    assert torch.equal(plain[0].loss, counted[0].loss)
    assert torch.allclose(counted[1].loss, plain[1].loss * scored / 7)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_nothing_to_score_is_nan_there_and_zero_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case)
    nothing = torch.full_like(rows.ids, -100)
    theirs = pair.reference(**rows.reference(labels=nothing)).loss
    ours = pair.ours(**rows.ours(labels=nothing)).loss
    assert theirs.isnan()
    assert ours == 0
    ours.backward()
    assert all(
        parameter.grad is None or not parameter.grad.any() or name.endswith("head.weight")
        for name, parameter in pair.ours.named_parameters()
    )


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_the_first_token_after_left_padding_is_scored_there_and_not_here(case: Case) -> None:
    """Padding comes before it, and padding sees the whole row: what it is scored by is no prediction.

    Labels are the ids except where padded, as common collators make them.
    """
    pair = build(case)
    rows = batch(case, "left", (0, 0, 0))
    scored = rows.real.clone() if case.family != "paligemma" else rows.answer
    rows = Batch(rows.ids, rows.real, rows.pixels, scored, case.family)
    alone = [rows.row(index) for index in range(3)]
    counts = torch.tensor([float((row.labels[:, 1:] != -100).sum()) for row in alone])
    with torch.no_grad():
        theirs, ours = answers(pair, rows, labels=rows.labels)
        losses = torch.stack([pair.reference(**row.reference(labels=row.labels)).loss for row in alone])
    right = (losses * counts).sum() / counts.sum()
    assert abs(ours.loss - right) < 1e-5
    assert (abs(theirs.loss - right) > 1e-4) == (case.family != "paligemma")


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_a_misspelt_argument_is_ignored_there_and_an_error_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case)
    usual = pair.reference(**rows.reference())[case.result]
    misspelt = pair.reference(**rows.reference(), atention_mask=torch.zeros_like(rows.ids))[case.result]
    assert torch.equal(usual, misspelt)
    with pytest.raises(TypeError, match="atention_mask"):
        pair.ours(**rows.ours(), atention_mask=torch.zeros_like(rows.ids))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_or_neither_of_ids_and_embeds_is_the_references_error(case: Case) -> None:
    pair = build(case)
    rows = batch(case, pictures=(0, 0, 0))
    for model in (pair.reference, pair.ours):
        embeds = model.get_input_embeddings()(rows.ids)
        for arguments in ({}, {"input_ids": rows.ids, "inputs_embeds": embeds}):
            with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
                model(**arguments)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_labels_that_do_not_fit_are_an_obscure_error_there_and_a_sentence_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case)
    for wrong, keep in ((rows.labels[:, 1:], 0), (rows.labels, 3)):
        more = {"labels": wrong, "logits_to_keep": keep}
        given = {**rows.reference(labels=rows.labels), **more}
        with pytest.raises((ValueError, IndexError)):
            pair.reference(**given)
        with pytest.raises(gemlens.InputError, match="labels have shape"):
            pair.ours(**rows.ours(**more))


@torch.no_grad()
def test_labels_change_the_dtype_of_logits_there_and_not_here() -> None:
    pair = build(GEMMA_3).to(torch.bfloat16)
    rows = batch(GEMMA_3)
    theirs, ours = answers(pair, rows, labels=rows.labels)
    assert theirs.logits.dtype == torch.float32
    assert answers(pair, rows)[0].logits.dtype == torch.bfloat16
    assert ours.logits.dtype == torch.bfloat16
    assert theirs.loss.dtype == ours.loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "PaliGemmaForConditionalGeneration-Gemma"])
@torch.no_grad()
def test_attention_weights_are_none_under_sdpa_there_and_given_here(name: str) -> None:
    case = case_named(name)
    rows = batch(case)
    fused = build(case, attention="sdpa").reference(**rows.reference(output_attentions=True)).attentions
    assert fused is None or all(weights is None for weights in fused)
    theirs, ours = answers(build(case, implementation="sdpa"), rows, output_attentions=True)
    assert max(map(gap, theirs.attentions, ours.attentions)) < 1e-4


@torch.no_grad()
def test_the_classified_token_is_told_by_its_id_there_and_by_the_mask_here() -> None:
    pair = build(CLASSIFIER)
    rows = batch(CLASSIFIER, "right")
    for index in range(3):  # every text ends with a real token that has the padding's id
        rows.ids[index, int(rows.real[index].sum()) - 1] = 0
    last = rows.real.sum(1) - 1
    states = pair.reference.model(**rows.reference()).last_hidden_state[torch.arange(3), last]
    theirs, ours = answers(pair, rows)
    assert gap(pair.reference.score(states), ours.logits) < 1e-4
    assert gap(theirs.logits, ours.logits) > 0.1


@torch.no_grad()
def test_embeds_are_classified_at_padding_there_and_at_the_last_token_here() -> None:
    pair = build(CLASSIFIER)
    rows = batch(CLASSIFIER, "right", (0, 0, 0))
    right = pair.reference(**rows.reference()).logits
    given = {"inputs_embeds": pair.ours.get_input_embeddings()(rows.ids), "attention_mask": rows.real.long()}
    assert gap(right, pair.reference(**given).logits) > 0.1
    assert gap(right, pair.ours(**given).logits) < 1e-4


@torch.no_grad()
def test_regression_and_several_classes_at_once_are_the_references_losses() -> None:
    rows = batch(CLASSIFIER)
    for labels in (torch.tensor([0, 2, 1]), torch.rand(3, 3).round()):
        theirs, ours = answers(build(CLASSIFIER), rows, labels=labels)
        assert gap(theirs.loss, ours.loss) < 1e-5
    pair = build(CLASSIFIER)
    pair.reference.config.problem_type = pair.ours.config.problem_type = "regression"
    theirs, ours = answers(pair, rows, labels=torch.randn(3, 3))
    assert gap(theirs.loss, ours.loss) < 1e-5
