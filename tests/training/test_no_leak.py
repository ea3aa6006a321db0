"""Training cannot cheat: the loss of a token depends on what stands before it and on nothing else.

Asked of autograd through the objective that training minimises, and compared with a float64 decoder whose masks are
written out here by the definition. test_future_is_hidden.py asks the same of the models' hidden states.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.models.layers import softcap
from gemlens.training.objective import Mean, Objective
from parity.oracle import causal, exact_embeds, exact_logits
from parity.pairs import IMAGE, WINDOW, Batch, Case, Pair, batch, build, case_named, gap

CASES = [
    case_named(name)
    for name in (
        "PaliGemmaForConditionalGeneration-Gemma",
        "PaliGemmaForConditionalGeneration-Gemma2",
        "Gemma3ForConditionalGeneration",
        "Gemma3ForCausalLM",
        "Gemma2ForCausalLM",
        "GemmaForCausalLM",
    )
]
PALIGEMMAS = CASES[:2]
PICTURES = CASES[:3]
# Those that have gradients on a CPU; sdpa refuses models whose scores are capped.
ATTENTIONS = [
    pytest.param(case, name, id=f"{case}-{name}")
    for case in CASES
    for name in ("eager", "sdpa", "blocked")
    if name != "sdpa" or case.kind != "Gemma2"
]
TOKENS = Objective("token", chunk=5)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def types(rows: Batch) -> dict[str, Tensor]:
    """What the processors say: 1 for PaliGemma's answer, or for Gemma 3's pictures."""
    if not rows.family:
        return {}
    return {"token_type_ids": (rows.answer if rows.family == "paligemma" else rows.ids == IMAGE).long()}


def by_embeddings(model: nn.Module, rows: Batch, told: str) -> dict[str, Any]:
    """A batch whose embeddings get a gradient, with labels, and with token types if these are `told`."""
    embeds = model.get_input_embeddings()(rows.ids).detach().requires_grad_()
    inputs = rows.ours(labels=rows.labels, inputs_embeds=embeds, **(types(rows) if "types" in told else {}))
    del inputs["input_ids"]
    return inputs


def losses_of_tokens(model: nn.Module, inputs: dict[str, Any], ids: Tensor) -> Tensor:
    """[B, S-1]: cross-entropy of every token but the first."""
    given = {name: each for name, each in inputs.items() if name != "labels" or hasattr(model, "vision_tower")}
    logits = softcap(model.lm_head(model.model(**given).last_hidden_state), model.text_model().config.softcaps[1])
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    weights = dict(model.named_parameters())
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), materialize_grads=True), strict=True))


def assert_near(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, gradient in first.items():
        assert gap(gradient, second[name]) <= 1e-5 * max(1.0, gradient.abs().max().item()), name


# -- the future --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "told"), [("left", "labels"), ("right", "labels and types")])
@pytest.mark.parametrize(("case", "attention"), ATTENTIONS)
def test_a_tokens_loss_has_a_gradient_at_all_earlier_words_and_none_later(
    case: Case, attention: str, padding: str, told: str
) -> None:
    model = build(case, implementation=attention).ours.train()
    rows = batch(case, padding, (1, 2, 0))
    inputs = by_embeddings(model, rows, told)
    losses = losses_of_tokens(model, inputs, rows.ids)
    words, summed = rows.real & (rows.ids != IMAGE), torch.zeros_like(inputs["inputs_embeds"])
    places = torch.arange(rows.ids.shape[1])
    for place in range(1, rows.ids.shape[1]):
        scored = rows.answer[:, place]
        loss = losses[:, place - 1][scored].sum()
        (gradient,) = torch.autograd.grad(loss, inputs["inputs_embeds"], retain_graph=True)
        depends = gradient.abs().sum(-1) > 0
        assert torch.equal(depends, words & (places < place) & scored.unsqueeze(1)), place
        summed += gradient
    # These are the losses that training adds up.
    whole = torch.autograd.grad(TOKENS(model, inputs), inputs["inputs_embeds"])[0]
    assert gap(whole, summed) < 1e-5 * max(1.0, summed.abs().max().item())


@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
def test_with_labels_alone_answers_see_their_future_there_and_not_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case, pictures=(1, 1, 1))
    first = rows.answer[0].nonzero()[0].item()
    later = {}
    for name, model in (("there", pair.reference), ("here", pair.ours)):
        inputs = by_embeddings(model, rows, "labels")
        loss = F.cross_entropy(model(**inputs).logits[:1, first - 1], rows.ids[:1, first])
        (gradient,) = torch.autograd.grad(loss, inputs["inputs_embeds"])
        later[name] = gradient[0, first:].abs().max().item()
    assert later["there"] > 1e-3
    assert later["here"] == 0


# -- the definition ----------------------------------------------------------------------------------------------------


def visible(case: Case, ids: Tensor, answer: Tensor) -> dict[str, Tensor]:
    """[S, S] bool per kind of layer, of one row without padding: written out from the papers."""
    size = len(ids)
    full, local = causal(size), causal(size, WINDOW)
    if case.family == "paligemma":
        for mask in (full, local := causal(size)):  # no layer has a window
            mask |= ~answer  # pictures and prompt are seen by all
    if case.family == "gemma3":
        numbers = torch.zeros(size, dtype=torch.long)  # of the picture that a token is part of
        for place in range(size):
            begins = place == 0 or ids[place - 1] != IMAGE
            if ids[place] == IMAGE:
                numbers[place] = numbers.max() + 1 if begins else numbers[place - 1]
        same = (numbers[:, None] == numbers) & (numbers > 0)
        full, local = full | same, local | same
    return {"full_attention": full, "sliding_attention": local}


def by_hand(case: Case, pair: Pair, rows: Batch) -> tuple[Tensor, list[Tensor]]:
    """The sum of losses, and its gradient at what the first layer reads of each row, in float64."""
    total, at_embeds = torch.zeros((), dtype=torch.float64), []
    for index in range(len(rows.ids)):
        row = rows.row(index)
        ids, answer = row.ids[0], row.answer[0]
        embeds = exact_embeds(pair.reference, ids, row.pixels, IMAGE).requires_grad_()
        masks = visible(case, ids, answer)
        logits = exact_logits(pair.reference, embeds, masks["full_attention"] if case.kind == "Gemma" else masks)
        loss = F.cross_entropy(logits[:-1], row.labels[0, 1:], reduction="sum")
        total = total + loss.detach()
        at_embeds.append(torch.autograd.grad(loss, embeds)[0])
    return total, at_embeds


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("case", "attention"), ATTENTIONS)
def test_token_types_labels_and_the_masks_by_hand_give_one_loss_and_gradient(
    case: Case, attention: str, padding: str
) -> None:
    pair = build(case, implementation=attention)
    rows = batch(case, padding, (1, 2, 0))
    expected, at_embeds = by_hand(case, pair, rows)
    found = []
    for told in ("labels", "labels and types"):
        inputs = by_embeddings(pair.ours, rows, told)
        loss = TOKENS(pair.ours, inputs)
        (gradient,) = torch.autograd.grad(loss, inputs["inputs_embeds"])
        found.append((loss, gradient))
        assert abs(loss.item() / expected.item() - 1) < 1e-6
        # Gemma 1 and 2 multiply what they are given.
        scale = 1.0 if case.kind == "Gemma3Text" else gradient.shape[-1] ** 0.5
        for row, exact in enumerate(at_embeds):
            real = rows.real[row]
            exact = exact * (rows.ids[row][real] != IMAGE).unsqueeze(1) * scale  # pictures replace their embeddings
            assert gap(exact, gradient[row][real].double()) < 1e-5 * max(1.0, exact.abs().max().item())
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_are_the_references_where_it_is_right(case: Case, padding: str) -> None:
    pair = build(case)
    rows = batch(case, padding)
    scored = TOKENS.weight(rows.labels, rows.real)
    theirs = pair.reference.train()(**rows.reference(labels=rows.labels)).loss
    ours = TOKENS(pair.ours.train(), rows.ours(labels=rows.labels)) / scored
    assert abs(ours.item() - theirs.item()) < 1e-5
    assert_near(gradients(theirs, pair.reference), gradients(ours, pair.ours))


# -- how examples stand together ---------------------------------------------------------------------------------------


def alone(model: nn.Module, rows: Batch, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over rows, each read by itself and without padding, and its gradients."""
    parts = [rows.row(index) for index in range(len(rows.ids))]
    loss = torch.stack([objective(model, part.ours(labels=part.labels, **types(part))) for part in parts]).sum()
    return loss, gradients(loss, model)


@pytest.mark.parametrize("mean", ["example", "token"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_and_batching_change_nothing(case: Case, padding: str, mean: Mean) -> None:
    model, objective = build(case).ours.train(), Objective(mean, chunk=5)
    rows = batch(case, padding, (1, 2, 0))
    expected, by_weights = alone(model, rows, objective)
    loss = objective(model, rows.ours(labels=rows.labels, **types(rows)))
    assert abs(loss / expected - 1) < 1e-6
    assert_near(by_weights, gradients(loss, model))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accumulation_changes_nothing(case: Case) -> None:
    """As the loop does it: parts are divided by the weight of the whole and their gradients add up."""
    model, objective = build(case).ours.train(), Objective(chunk=5)
    rows = batch(case, "right", (1, 2, 0))
    whole = rows.ours(labels=rows.labels)
    (objective(model, whole) / objective.weight(rows.labels, rows.real)).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    parts = [rows.row(index) for index in range(3)]
    weight = sum(objective.weight(part.labels) for part in parts)
    for part in parts:
        (objective(model, part.ours(labels=part.labels)) / weight).backward()
    assert_near(expected, {name: weight.grad for name, weight in model.named_parameters()})


def packed(rows: Batch) -> dict[str, Tensor]:
    """All rows behind each other in one, told apart by their positions, with labels on the first token of each."""
    parts = [rows.row(index) for index in range(len(rows.ids))]
    inputs = {"input_ids": torch.cat([part.ids for part in parts], dim=1)}
    inputs["labels"] = torch.cat([part.labels for part in parts], dim=1)
    inputs["position_ids"] = torch.cat([1 + torch.arange(part.ids.shape[1]) for part in parts]).unsqueeze(0)
    if rows.family:
        inputs["token_type_ids"] = torch.cat([types(part)["token_type_ids"] for part in parts], dim=1)
    else:
        begins = inputs["position_ids"] == 1
        inputs["labels"] = inputs["labels"].where(~begins, inputs["input_ids"])
    return inputs if rows.pixels is None else {**inputs, "pixel_values": rows.pixels}


@pytest.mark.parametrize("mean", ["example", "token"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_packing_changes_nothing(case: Case, mean: Mean) -> None:
    model, objective = build(case).ours.train(), Objective(mean, chunk=5)
    rows = batch(case, "right", (1, 2, 0))
    expected, by_weights = alone(model, rows, objective)
    inputs = packed(rows)
    loss = objective(model, inputs)
    assert abs(loss / expected - 1) < 1e-6
    assert_near(by_weights, gradients(loss, model))
    together = objective.weight(inputs["labels"], position_ids=inputs["position_ids"])
    assert together == objective.weight(rows.labels, rows.real)
    del inputs["position_ids"]
    assert abs(objective(model, inputs) / expected - 1) > 1e-3


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_the_pictures_of_an_example_learn_from_its_answer_alone(case: Case) -> None:
    model = build(case).ours.train()
    rows = batch(case, "right", (1, 2, 1))
    assert rows.pixels is not None
    pixels = rows.pixels.clone().requires_grad_()
    own = (range(1), range(1, 3), range(3, 4))
    for row, pictures in enumerate(own):
        labels = rows.labels.clone()
        labels[torch.arange(3) != row] = -100
        inputs = {**rows.ours(labels=labels, **types(rows)), "pixel_values": pixels}
        (gradient,) = torch.autograd.grad(TOKENS(model, inputs), pixels)
        learns = [index for index in range(4) if gradient[index].any()]
        assert learns == list(pictures)
