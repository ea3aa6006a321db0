"""SiglipVisionModel, with and without its pooling head, equals the reference's."""

from typing import Any

import pytest
import torch
import transformers
from pairs import Pair, gap, paired, vision_config

import gemlens

EXACT = 1e-4


def encoders(attention: str = "eager", implementation: str | None = None, **changes: Any) -> Pair:
    configs = [vision_config(library, **changes) for library in (transformers, gemlens)]
    return paired("SiglipVisionModel", *configs, attention=attention, attn_implementation=implementation)


@pytest.mark.parametrize("implementation", [None, "eager", "sdpa"])
@pytest.mark.parametrize("has_head", [True, False])
@torch.no_grad()
def test_outputs_are_the_references(has_head: bool, implementation: str | None) -> None:
    pair = encoders(vision_use_head=has_head, implementation=implementation)
    pixels = torch.randn(3, 3, 20, 20)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    theirs, ours = pair.reference(pixels, **wanted), pair.ours(pixels, **wanted)
    assert theirs.last_hidden_state.std() > 0.1
    assert gap(theirs.last_hidden_state, ours.last_hidden_state) < EXACT
    assert gap(pair.ours(pixels).last_hidden_state, theirs.last_hidden_state) < EXACT
    assert (ours.pooler_output is not None) == has_head == (theirs.pooler_output is not None)
    if has_head:
        assert gap(theirs.pooler_output, ours.pooler_output) < EXACT
    assert len(theirs.hidden_states) == len(ours.hidden_states) == 4
    assert len(theirs.attentions) == len(ours.attentions) == 3
    for name in ("hidden_states", "attentions"):
        assert max(map(gap, theirs[name], ours[name])) < EXACT


@torch.no_grad()
def test_sdpa_of_the_reference_is_ours_too() -> None:
    pair = encoders(attention="sdpa")
    pixels = torch.randn(2, 3, 20, 20)
    assert gap(pair.reference(pixels).last_hidden_state, pair.ours(pixels).last_hidden_state) < EXACT


@pytest.mark.parametrize("size", [(20, 20), (30, 40), (10, 25), (22, 24)])
@torch.no_grad()
def test_interpolated_places_are_the_references(size: tuple[int, int]) -> None:
    pair = encoders()
    pixels = torch.randn(2, 3, *size)
    theirs = pair.reference(pixels, interpolate_pos_encoding=True)[0]
    ours = pair.ours(pixels, interpolate_pos_encoding=True)[0]
    assert gap(theirs, ours) < EXACT


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu_new", "gelu", "silu", "swish", "relu"])
@torch.no_grad()
def test_every_activation_is_the_references(activation: str) -> None:
    pair = encoders(hidden_act=activation, vision_use_head=True)
    pixels = torch.randn(2, 3, 20, 20)
    assert gap(pair.reference(pixels).pooler_output, pair.ours(pixels).pooler_output) < EXACT


@pytest.mark.parametrize("changes", [{"num_channels": 1}, {"num_attention_heads": 1}, {"layer_norm_eps": 0.1}])
@torch.no_grad()
def test_other_shapes_are_the_references(changes: dict[str, Any]) -> None:
    pair = encoders(**changes)
    pixels = torch.randn(2, changes.get("num_channels", 3), 20, 20)
    assert gap(pair.reference(pixels)[0], pair.ours(pixels)[0]) < EXACT


@pytest.mark.parametrize("has_head", [True, False])
def test_gradients_are_the_references(has_head: bool) -> None:
    pair = encoders(vision_use_head=has_head)
    pixels = torch.randn(2, 3, 20, 20)
    inputs = [pixels.clone().requires_grad_() for _ in range(2)]
    for model, given in zip((pair.reference, pair.ours), inputs, strict=True):
        output = model.train()(given)
        (output.pooler_output if has_head else output.last_hidden_state).square().mean().backward()
    assert inputs[0].grad is not None
    assert inputs[0].grad.abs().max() > 1e-4
    assert gap(inputs[0].grad, inputs[1].grad) < 1e-5
    ours = dict(pair.ours.named_parameters())
    for name, parameter in pair.reference.named_parameters():
        assert parameter.grad is not None
        assert gap(parameter.grad, ours[name].grad) < 1e-5, name
        assert parameter.grad.abs().max() > 1e-5 or name.endswith("k_proj.bias"), name


@torch.no_grad()
def test_tuples_are_the_references() -> None:
    pair = encoders(vision_use_head=True)
    pixels = torch.randn(1, 3, 20, 20)
    ours = pair.ours(pixels, output_hidden_states=True, return_dict=False)
    theirs = pair.reference(pixels, output_hidden_states=True).to_tuple()
    assert type(ours) is tuple
    assert len(ours) == len(theirs) == 3
    assert gap(theirs[1], ours[1]) < EXACT


@torch.no_grad()
def test_pixels_of_another_dtype_are_taken_as_the_reference_takes_them() -> None:
    pair = encoders().to(torch.bfloat16)
    pixels = torch.randn(2, 3, 20, 20)
    theirs, ours = pair.reference(pixels)[0], pair.ours(pixels)[0]
    assert theirs.dtype == ours.dtype == torch.bfloat16
    assert gap(theirs.float(), ours.float()) < 0.1


@torch.no_grad()
def test_a_wrong_size_is_an_unclear_error_there_and_a_clear_one_here() -> None:
    pair = encoders()
    with pytest.raises(RuntimeError):
        pair.reference(torch.randn(1, 3, 25, 25))
    with pytest.raises(gemlens.InputError, match="interpolate_pos_encoding"):
        pair.ours(torch.randn(1, 3, 25, 25))
    # The reference drops what is left over behind the last whole patch, without a word.
    assert pair.reference(torch.randn(1, 3, 24, 23))[0].shape == (1, 16, 24)
    with pytest.raises(gemlens.InputError, match="pixel_values"):
        pair.ours(torch.randn(1, 3, 24, 23))
