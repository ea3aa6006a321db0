"""The picture encoder on kernels: what its layers gave before, to rounding, and features that stay where they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from gemlens import AutoModelForImageTextToText, AutoProcessor, can_pack
from gemlens.kernels import attention, machine, reference, tiles
from gemlens.kernels.formats import F16, Q8_0, Format
from gemlens.kernels.machine import Machine
from gemlens.models.attention import blocked
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.siglip import SiglipAttention, SiglipEncoderLayer, SiglipVisionModel
from gemlens.models.swap import swap
from gemlens.quantization import fused_patches
from gemlens.quantization.blocks import BlockLinear
from gemlens.quantization.fused_patches import FusedPatchLayer, PatchAttention, can_fuse
from gemlens.quantization.packed import hasten
from gemlens.scenes.scene import draw

NATIVE = machine._native()
needs_native = pytest.mark.skipif(NATIVE is None, reason="layers are native where kernels are compiled")
each_kernel = pytest.mark.parametrize("kernels", NATIVE.names() if NATIVE else ())
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "patch_size": 14}


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """Everything by these kernels, on two threads."""
    assert NATIVE
    NATIVE.use(kernels, 2)
    with pytest.MonkeyPatch.context() as patch:
        for place in (fused_patches, tiles, attention):
            patch.setattr(place, "machine", lambda: Machine(kernels, 2, NATIVE))
        yield


def block_layer(width: int, heads: int, wide: int, last: Format = Q8_0, bits: int = 8) -> SiglipEncoderLayer:
    """With numbers by chance, also in biases and norms, and weights in blocks; those of `fc2` as `last` says."""
    numbers = {"hidden_size": width, "intermediate_size": wide, "num_attention_heads": heads}
    layer = SiglipEncoderLayer(SiglipVisionConfig(**numbers, hidden_act="gelu_pytorch_tanh"))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.dim() == 1 else parameter.shape[1] ** -0.5)
        parameter.requires_grad_(False)

    def in_blocks(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear):
            return None
        weight, leaf = module.weight, BlockLinear(module, last if name.endswith("fc2") else Q8_0, bits)
        is_half = leaf.format is F16
        data = weight.half().view(torch.uint8) if is_half else reference.quantize(pad(weight, (0, leaf.padding)), Q8_0)
        leaf.weight = nn.Parameter(leaf.keep(data), requires_grad=False)
        return leaf

    swap(layer, in_blocks)
    return layer


@each_kernel
@pytest.mark.parametrize("patches", [1, 15, 64, 300])
@pytest.mark.parametrize("last", [Q8_0, F16], ids=lambda last: last.name)
@pytest.mark.parametrize(("width", "heads", "wide"), [(64, 4, 80), (96, 1, 96), (288, 4, 176)])
def test_one_call_gives_what_the_layer_gives(
    kernels: str, patches: int, width: int, heads: int, wide: int, last: Format
) -> None:
    """Also where a file keeps a matrix in halves, as its rows end within a block."""
    torch.manual_seed(patches + width)
    hidden = torch.randn(3, patches, width)
    with using(kernels), torch.no_grad():
        layer = block_layer(width, heads, wide, last)
        assert can_fuse(layer)
        wanted, _ = layer(hidden, False)
        said, weights = FusedPatchLayer(layer)(hidden, False)
    assert weights is None
    assert said.shape == wanted.shape
    is_coarse = kernels == "avx512" and patches >= 16 and last is Q8_0  # attention in eight bits, too
    assert float((said - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())
    assert float((said - wanted).norm()) <= (0.005 if is_coarse else 0.003) * float(wanted.norm())


@each_kernel
@settings(max_examples=25, deadline=None)
@given(
    patches=st.integers(1, 400), shape=st.sampled_from([(32, 32), (64, 2), (96, 3), (160, 2), (256, 1)]),
    pictures=st.integers(1, 2), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_heads_and_pictures_of_any_size(
    kernels: str, patches: int, shape: tuple[int, int], pictures: int, seed: int
) -> None:
    torch.manual_seed(seed)
    width, heads = shape
    hidden = torch.randn(pictures, patches, width)
    with using(kernels), torch.no_grad():
        layer = block_layer(width, heads, 32)
        wanted, said = layer(hidden, False)[0], FusedPatchLayer(layer)(hidden, False)[0]
    assert float((said - wanted).norm()) <= 0.006 * float(wanted.norm())


@each_kernel
def test_sixteen_bits_are_so_many_in_attention_too(kernels: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 300, 288)
    with using(kernels), torch.no_grad():
        layer = block_layer(288, 4, 176, bits=16)
        wanted, said = layer(hidden, False)[0], FusedPatchLayer(layer)(hidden, False)[0]
    assert float((said - wanted).norm()) <= 0.00018 * float(wanted.norm())


@each_kernel
def test_what_all_keys_have_in_common_costs_no_bits(kernels: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 200, 64)
    with using(kernels), torch.no_grad():
        layer = block_layer(64, 4, 80)
        layer.layer_norm1.bias += 10 * torch.randn(64)
        layer.self_attn.k_proj.bias += 100 * torch.randn(64)
        wanted, said = layer(hidden, False)[0], FusedPatchLayer(layer)(hidden, False)[0]
    assert float((said - wanted).norm()) <= 0.005 * float(wanted.norm())


@each_kernel
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_picture(kernels: str, number: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 200, 64)
    with using(kernels), torch.no_grad():
        layer = FusedPatchLayer(block_layer(64, 4, 80))
        wanted, _ = layer(hidden, False)
        hidden[0, 150, 3] = number
        said, _ = layer(hidden, False)
    assert bool(said[0].isnan().any(-1).all())
    assert torch.equal(said[1], wanted[1])


@needs_native
def test_pictures_do_not_depend_on_each_other() -> None:
    layer, hidden = FusedPatchLayer(block_layer(64, 4, 80)), torch.randn(3, 300, 64)
    with torch.no_grad():
        together, _ = layer(hidden, False)
        for number in range(3):
            assert torch.equal(layer(hidden[number : number + 1], False)[0][0], together[number])


@needs_native
def test_weights_of_attention_and_gradients_come_from_the_layer_inside() -> None:
    inside, hidden = block_layer(64, 4, 80), torch.randn(2, 20, 64)
    layer = FusedPatchLayer(inside)
    with torch.no_grad():
        for one, other in zip(layer(hidden, True), inside(hidden, True), strict=True):
            assert torch.equal(one, other)


@needs_native
def test_only_what_the_call_does_is_replaced() -> None:
    assert not can_fuse(block_layer(72, 4, 80))  # rows of 72 do not end where blocks do
    plain = block_layer(64, 4, 80)
    plain.mlp.activation = nn.ReLU()
    assert not can_fuse(plain)
    assert not can_fuse(nn.Linear(2, 2))


@pytest.mark.parametrize("quantize", ["q8", "q4"])
def test_features_in_eight_bits_point_where_those_of_numbers_point(quantize: str, tmp_path: Path) -> None:
    """Every patch of the published shape: 1,152 wide, 4,304 in its MLP, which is no multiple of a block."""
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**SO400M, num_hidden_layers=3, image_size=112, vision_use_head=False))
    model.eval().save_pretrained(tmp_path)
    rounded = SiglipVisionModel.from_pretrained(tmp_path, quantize=quantize)
    layers = rounded.vision_model.encoder.layers
    assert all(isinstance(layer, FusedPatchLayer) for layer in layers) or NATIVE is None
    pixels = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        exact, said = model(pixels).last_hidden_state, rounded(pixels).last_hidden_state
    assert float(cosine_similarity(exact, said, dim=-1).min()) >= 0.999


def test_features_of_a_trained_encoder_point_where_those_of_numbers_point(pictures_of_scenes: Tensor) -> None:
    exact, rounded = (
        AutoModelForImageTextToText.from_pretrained("gemlens-tiny", **said) for said in ({}, {"quantize": "q8"})
    )
    with torch.no_grad():
        one, other = (model.vision_tower(pictures_of_scenes).last_hidden_state for model in (exact, rounded))
    assert float(cosine_similarity(one, other, dim=-1).mean()) >= 0.999


@pytest.fixture
def pictures_of_scenes() -> Tensor:
    """[4, 3, side, side], as the embedded model takes them."""
    processor = AutoProcessor.from_pretrained("gemlens-tiny")
    pictures = [draw(number).picture for number in range(4)]
    return processor(images=pictures, text=["caption en"] * 4, return_tensors="pt", padding=True)["pixel_values"]


@needs_native
def test_attention_by_a_kernel_gives_what_torch_gives() -> None:
    torch.manual_seed(0)
    own = SiglipAttention(SiglipVisionConfig(hidden_size=144, num_attention_heads=2)).requires_grad_(False)
    own.attend = blocked
    hidden = torch.randn(2, 300, 144)
    with torch.no_grad():
        wanted, said = own(hidden, False)[0], PatchAttention(own)(hidden, False)[0]
        assert float((said - wanted).abs().max()) <= 2**-7 * float(wanted.abs().max())
        assert torch.equal(PatchAttention(own)(hidden, True)[1], own(hidden, True)[1])
    hidden.requires_grad_()
    PatchAttention(own)(hidden, False)[0].sum().backward()
    assert hidden.grad is not None


@needs_native
def test_a_hastened_model_answers_as_it_did(tiny: ModuleType) -> None:
    model, prompt = tiny.fresh("paligemma").requires_grad_(False), tiny.prompt("paligemma")
    exact = model(**prompt).logits
    model.to(torch.bfloat16)
    if not can_pack(model):
        pytest.skip("this processor does not multiply bfloat16 by oneDNN")
    half = model(**prompt).logits.float()
    hasten(model)
    said = model(**prompt).logits.float()
    assert any(isinstance(module, PatchAttention) for module in model.modules())
    assert float((said - exact).norm()) <= 2 * float((half - exact).norm())  # rounding, where it falls otherwise


@needs_native
def test_a_hastened_model_can_be_told_otherwise(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> None:
    model, prompt = tiny.fresh("paligemma").to(torch.bfloat16).requires_grad_(False), tiny.prompt("paligemma")
    if not can_pack(model):
        pytest.skip("this processor does not multiply bfloat16 by oneDNN")
    hasten(model)
    model.set_attn_implementation("eager")
    monkeypatch.setattr(fused_patches, "attend", None)
    model(**prompt)


def test_a_model_that_was_told_how_to_attend_keeps_to_it(tiny: ModuleType) -> None:
    model = tiny.fresh("paligemma").to(torch.bfloat16)
    model.set_attn_implementation("eager")
    hasten(model)
    assert not any(isinstance(module, PatchAttention) for module in model.modules())
    assert model.attn_implementation == "eager"
