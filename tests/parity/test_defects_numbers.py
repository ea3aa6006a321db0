"""Numbers that the reference loses in half precision: float16 overflow, divided pictures, rounded frequencies.

Model-facts 2.1, 3.3 and pitfalls 1, 2, 19.
"""

from typing import Any

import pytest
import torch
from pairs import IMAGE, Case, Pair, answers, batch, build, case_named, gap
from torch import nn

from gemlens.models.rope import rotations

FLOAT16_ENDS_AT = 65504
PALIGEMMAS = [case_named(f"PaliGemmaForConditionalGeneration-{kind}") for kind in ("Gemma", "Gemma2")]


def with_large_norms(case: Case, size: float) -> Pair:
    """Both models with norms after attention and MLP as large as trained Gemma 3 models have them."""
    pair = build(case)
    for model in (pair.reference, pair.ours):
        for name, parameter in model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                nn.init.normal_(parameter, mean=size, std=size / 10, generator=torch.Generator().manual_seed(3))
    return pair


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma2ForCausalLM"])
@torch.no_grad()
def test_a_residual_stream_beyond_float16_is_nan_there_and_close_to_float32_here(name: str) -> None:
    case = case_named(name)
    pair = with_large_norms(case, 25_000)
    rows = batch(case)
    theirs, exact = answers(pair, rows, output_hidden_states=True)
    assert gap(theirs.logits, exact.logits) < 1e-4
    largest = max(state.abs().max() for state in exact.hidden_states[:-1])
    assert largest > 1.5 * FLOAT16_ENDS_AT
    pair.to(torch.float16)
    theirs, ours = answers(pair, rows)
    assert not theirs.logits.isfinite().any()
    assert ours.logits.isfinite().all()
    assert ours.logits.dtype == torch.float16
    assert gap(exact.logits, ours.logits.float()) < 0.05
    agreement = (exact.logits.argmax(-1) == ours.logits.argmax(-1)).float().mean()
    assert agreement > 0.98


@torch.no_grad()
def test_an_mlp_product_beyond_float16_is_nan_there_and_close_to_float32_here() -> None:
    case = case_named("Gemma3ForCausalLM")
    pair = build(case)
    for model in (pair.reference, pair.ours):
        for name, parameter in model.named_parameters():
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                parameter.mul_(300)
    rows = batch(case)
    _, exact = answers(pair, rows)
    pair.to(torch.float16)
    theirs, ours = answers(pair, rows)
    assert not theirs.logits.isfinite().all()
    assert gap(exact.logits, ours.logits.float()) < 0.05


@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"])
@torch.no_grad()
def test_float16_within_its_range_is_at_least_as_close_to_float32_as_the_reference(name: str) -> None:
    case = case_named(name)
    pair = build(case)
    rows = batch(case, text=40)
    exact = pair.ours(**rows.ours()).logits
    theirs, ours = answers(pair.to(torch.float16), rows)
    errors = [(output.logits.float() - exact).abs().mean() for output in (theirs, ours)]
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
@torch.no_grad()
def test_picture_vectors_are_divided_and_multiplied_there_and_left_alone_here(case: Case) -> None:
    """sqrt(40) is 6.3246 and 6.3125 in bfloat16: more roundings and a wrong factor; the original scales none."""
    pair = build(case, hidden_size=40).to(torch.bfloat16)
    rows = batch(case, pictures=(1, 1, 1))
    theirs, ours = answers(pair, rows, output_hidden_states=True)
    projector = pair.ours.multi_modal_projector.linear
    read = []
    for model, output in ((pair.reference, theirs), (pair.ours, ours)):
        patches = model.vision_tower(rows.pixels).last_hidden_state.double()
        exact = patches @ projector.weight.double().T + projector.bias.double()
        error = (output.hidden_states[0][rows.ids == IMAGE].double() - exact.flatten(0, 1)).abs()
        read.append(error / exact.flatten(0, 1).abs())
    assert read[1].max() < 2**-8  # one rounding
    assert read[0].mean() > 1.25 * read[1].mean()
    # What people see is divided in both: rows for inputs_embeds, which the decoder multiplies.
    features = [model.get_image_features(rows.pixels).double() for model in (pair.reference, pair.ours)]
    assert gap(*features) < 0.01
    assert torch.allclose(features[1], exact / 40**0.5, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_changing_a_models_dtype_rounds_its_frequencies_there_and_not_here() -> None:
    """Loading in bfloat16 does not: the reference keeps frequencies in a buffer, which `.to` converts like a weight."""
    pair = build(case_named("GemmaForCausalLM"), head_dim=64)
    positions = torch.arange(4000, 4100).unsqueeze(0)
    half = torch.zeros(1, dtype=torch.bfloat16)
    exact = pair.reference.model.rotary_emb(half, positions)
    assert all(map(torch.equal, exact, rotations(pair.ours.config.ropes[0], positions, torch.bfloat16)))
    pair.reference.to(torch.bfloat16)
    pair.ours.to(torch.bfloat16)
    rounded = pair.reference.model.rotary_emb(half, positions)
    assert gap(exact[0].float(), rounded[0].float()) > 1  # half a turn and more
    assert not [name for name, _ in pair.ours.named_buffers()]


WIDTHS = [640, 1152, 2048, 2304, 2560, 3072, 3584, 3840, 4608, 5376]  # of the published models


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma3ForCausalLM"])
@torch.no_grad()
def test_embeddings_of_published_widths_are_multiplied_as_in_the_reference(
    name: str, width: int, dtype: torch.dtype
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "vocab_size": 80,
        "intermediate_size": 4,
        "head_dim": 2,
        "num_hidden_layers": 1,
    }
    pair = build(case_named(name), **sizes).to(dtype)
    theirs, ours = (
        model(torch.arange(80).unsqueeze(0), output_hidden_states=True).hidden_states[0]
        for model in (pair.reference, pair.ours)
    )
    assert theirs.dtype == dtype
    assert torch.equal(theirs.float(), ours.float())
