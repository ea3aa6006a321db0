"""Training cannot cheat: which embeddings an output depends on, asked of autograd, is exactly what the mask allows.

An output depends on a token iff there is a path through the layers, each step seen by the layer's mask; every other
gradient is exactly zero. The masks are written out here as loops, independent of gemlens.spans.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import GEMMA3_CASES, IMAGE, PALIGEMMA_CASES, Batch, Case, batch, build, case_named
from torch import Tensor, nn

Sees = Callable[[int, int], bool]  # (query, key), counted in real tokens
FULL, SLIDING = "full_attention", "sliding_attention"
TEXTS = ["GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3TextModel"]
LAYERS = {"local": [SLIDING] * 2, "global": [FULL] * 2, "both": [SLIDING, FULL, SLIDING]}
WINDOW = 3


def influence(model: nn.Module, arguments: dict[str, Any], embeds: Tensor) -> Tensor:
    """[B, S, S] bool: whether the output at a place depends on the embedding at another."""
    embeds = embeds.detach().requires_grad_()
    output = model(**arguments, inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1]
    weighting = torch.randn(output.shape[-1])
    places = []
    for place in range(output.shape[1]):
        (gradient,) = torch.autograd.grad((output[:, place] @ weighting).sum(), embeds, retain_graph=True)
        places.append(gradient.abs().sum(-1) > 0)
    return torch.stack(places, dim=1)


def reachable(count: int, layers: list[Sees]) -> Tensor:
    """[n, n] bool: paths from query to key through all layers."""
    reach = torch.eye(count)
    for sees in layers:
        seen = torch.tensor([[float(sees(query, key)) for key in range(count)] for query in range(count)])
        reach = ((torch.eye(count) + seen) @ reach > 0).float()
    return reach.bool()


def causal(window: int | None) -> Sees:
    return lambda query, key: key <= query and (window is None or query - key < window)


def expected_of(real: Tensor, layers_of: Callable[[int], list[Sees]]) -> Tensor:
    """[B, S, S] bool: the paths of every row, at their places."""
    expected = torch.zeros(*real.shape, real.shape[1], dtype=torch.bool)
    for row in range(len(real)):
        kept = real[row].nonzero().flatten()
        expected[row][kept[:, None], kept] = reachable(len(kept), layers_of(row))
    return expected


def real_outputs(rows: Batch) -> Tensor:
    """[B, S, 1] bool."""
    return rows.real.unsqueeze(2)


def text_layers(kinds: list[str]) -> list[Sees]:
    return [causal(WINDOW if kind == SLIDING else None) for kind in kinds]


@pytest.mark.parametrize("implementation", [None, "eager"])
@pytest.mark.parametrize("padding", ["no mask", "none", "left", "right"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", TEXTS)
def test_text_depends_on_what_stands_before_it(
    name: str, layers: str, padding: str, implementation: str | None
) -> None:
    case = case_named(name)
    windows = {} if name == "GemmaForCausalLM" else {"layer_types": LAYERS[layers], "sliding_window": WINDOW}
    kinds = LAYERS[layers] if windows else [FULL] * len(LAYERS[layers])
    model = build(case, implementation=implementation, num_hidden_layers=len(kinds), **windows).ours.train()
    rows = batch(case, padding.replace("no mask", "none"), text=14)
    mask = {} if padding == "no mask" else {"attention_mask": rows.real.long()}
    found = influence(model, mask, model.get_input_embeddings()(rows.ids))
    expected = expected_of(rows.real, lambda _: text_layers(kinds))
    assert torch.equal(found & real_outputs(rows), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # torch's, on a CPU
@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_a_later_token_changes_nothing_before_it_under_flex_attention(name: str) -> None:
    """torch's FlexAttention has no gradient on a CPU."""
    case = case_named(name)
    model = build(case, implementation="flex_attention").ours
    ids = batch(case, text=20).ids
    result = model(ids)[case.result]
    for place in (1, WINDOW, 12, 19):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 5) % 80 + 3
        assert torch.equal(model(changed)[case.result][:, :place], result[:, :place])


@pytest.mark.parametrize("name", TEXTS)
def test_checkpointed_layers_depend_on_the_same_tokens(name: str) -> None:
    case = case_named(name)
    model = build(case).ours.train()
    rows = batch(case, "left", text=20)
    arguments = {"attention_mask": rows.real.long()}
    embeds = model.get_input_embeddings()(rows.ids)
    plain = influence(model, arguments, embeds)
    model.gradient_checkpointing_enable()
    assert torch.equal(plain, influence(model, arguments, embeds))


@pytest.mark.parametrize("name", TEXTS)
def test_packed_texts_depend_on_nothing_of_each_other(name: str) -> None:
    case = case_named(name)
    model = build(case).ours.train()
    lengths = [4, 7, 5]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    ids = torch.randint(3, 80, positions.shape)
    found = influence(model, {"position_ids": positions}, model.get_input_embeddings()(ids))[0]
    blocks = torch.block_diag(*[torch.ones(length, length).tril() for length in lengths]).bool()
    assert torch.equal(found, blocks)


def prompt_rows(case: Case, padding: str) -> tuple[Batch, Tensor]:
    rows = batch(case, padding, (1, 2, 0) if padding != "none" else (1, 1, 1), text=9)
    return rows, rows.real & ~rows.answer


@pytest.mark.parametrize("told", ["labels", "types", "labels and types", "labels without a mask"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", PALIGEMMA_CASES, ids=str)
def test_paligemmas_prompt_never_sees_the_answer_nor_the_answer_its_future(case: Case, padding: str, told: str) -> None:
    model = build(case).ours.train()
    rows, prompt = prompt_rows(case, padding)
    arguments: dict[str, Any] = {} if rows.pixels is None else {"pixel_values": rows.pixels}
    if "labels" in told:
        arguments["labels"] = rows.labels
    if "types" in told:
        arguments["token_type_ids"] = rows.answer.long()
    if "without" not in told:
        arguments["attention_mask"] = rows.real.long()
    elif padding != "none":
        rows = rows.row(1)
        prompt = ~rows.answer
        arguments = {"labels": rows.labels, "pixel_values": rows.pixels}
    found = influence(model, arguments, model.get_input_embeddings()(rows.ids))

    def layers_of(row: int) -> list[Sees]:
        asked = prompt[row][rows.real[row]].tolist()
        return [lambda query, key: asked[key] or key <= query] * model.text_model().config.num_hidden_layers

    # The embedding of a picture token is replaced by the picture, so nothing depends on it.
    words = (rows.ids != IMAGE)[:, None, :]
    assert torch.equal(found & real_outputs(rows), expected_of(rows.real, layers_of) & words)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", GEMMA3_CASES, ids=str)
def test_gemma_3_sees_the_future_only_inside_a_picture(case: Case, padding: str) -> None:
    model = build(case, sliding_window=WINDOW, layer_types=LAYERS["both"], num_hidden_layers=3).ours.train()
    rows = batch(case, padding, (1, 2, 0) if padding != "none" else (2, 2, 2), text=7)
    arguments = {"attention_mask": rows.real.long(), "token_type_ids": (rows.ids == IMAGE).long()}
    embeds = torch.randn(*rows.ids.shape, 32)  # pictures already in place
    found = influence(model, arguments, embeds)

    def layers_of(row: int) -> list[Sees]:
        pictures = numbered((rows.ids[row] == IMAGE)[rows.real[row]].tolist())
        return [
            lambda query, key, step=step: step(query, key) or (pictures[query] == pictures[key] > 0)
            for step in text_layers(LAYERS["both"])
        ]

    assert torch.equal(found & real_outputs(rows), expected_of(rows.real, layers_of))


def numbered(marked: list[bool]) -> list[int]:
    """For each token the number of its picture, 0 for text."""
    numbers, last = [], 0
    for index, mark in enumerate(marked):
        last += mark and (index == 0 or not marked[index - 1])
        numbers.append(last if mark else 0)
    return numbers


@pytest.mark.parametrize("case", GEMMA3_CASES[:2], ids=str)
def test_no_text_depends_on_the_pixels_of_a_later_picture(case: Case) -> None:
    model = build(case).ours.train()
    rows = batch(case, "left", (2, 2, 2))
    assert rows.pixels is not None
    pixels = rows.pixels.clone().requires_grad_()
    output = model(**{**rows.ours(), "pixel_values": pixels}, output_hidden_states=True).hidden_states[-1]
    numbers = [numbered((ids == IMAGE).tolist()) for ids in rows.ids]
    for row in range(3):
        starts = [numbers[row].index(picture) for picture in (1, 2)]
        for place in rows.real[row].nonzero().flatten().tolist():
            (gradient,) = torch.autograd.grad(output[row, place].square().sum(), pixels, retain_graph=True)
            depends = gradient.abs().flatten(1).sum(1) > 0
            expected = [index // 2 == row and starts[index % 2] <= place for index in range(6)]
            assert depends.tolist() == expected


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_the_loss_of_labels_on_real_tokens_teaches_padding_nothing(name: str, padding: str) -> None:
    case = case_named(name)
    model = build(case).ours.train()
    rows = batch(case, padding, text=12)
    embeds = model.get_input_embeddings()(rows.ids).detach().requires_grad_()
    labels = rows.ids.masked_fill(~rows.real, -100)
    model(inputs_embeds=embeds, attention_mask=rows.real.long(), labels=labels).loss.backward()
    assert embeds.grad is not None
    assert embeds.grad[rows.real].any()
    assert not embeds.grad[~rows.real].any()
