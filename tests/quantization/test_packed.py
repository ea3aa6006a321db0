"""Packed models: the same numbers to the last bit, for inference only."""

from types import ModuleType

import pytest
import torch
from torch import nn

from gemlens import InputError, can_pack, pack
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.siglip import SiglipMLP
from gemlens.models.swap import swap
from gemlens.quantization.packed import PackedLinear, PackedPatchMlp, hasten, multiplies_bfloat16

pytestmark = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply bfloat16 by oneDNN")
FAMILIES = ("gemma", "gemma2", "gemma3", "paligemma", "paligemma2", "gemma3-pictures")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 37), (1, 1, 37), (2, 3, 37), (65, 37), (1, 0, 37)])
def test_a_packed_layer_gives_the_bits_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(37, 53, bias=bias).bfloat16()
    packed = PackedLinear(linear.weight, linear.bias)
    hidden = torch.randn(shape).bfloat16()
    with torch.no_grad():
        assert packed(hidden).equal(linear(hidden))
    assert packed.weight.equal(linear.weight)
    assert (packed.in_features, packed.out_features) == (37, 53)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_gives_the_logits_and_the_answer_of_the_model(tiny: ModuleType, family: str) -> None:
    prompt = tiny.prompt(family)
    model, packed = (tiny.fresh(family).to(torch.bfloat16).requires_grad_(False) for _ in range(2))
    linears = [name for name, module in packed.named_modules() if isinstance(module, nn.Linear)]
    assert pack(packed) == linears
    assert not [module for module in packed.modules() if isinstance(module, nn.Linear)]
    assert packed(**prompt).logits.equal(model(**prompt).logits)
    assert packed.generate(**prompt, max_new_tokens=6).equal(model.generate(**prompt, max_new_tokens=6))


def test_only_bfloat16_on_a_cpu_is_packed(tiny: ModuleType) -> None:
    model = tiny.fresh("gemma3")
    assert not can_pack(model)
    with pytest.raises(InputError, match=r"Only a model in bfloat16 on a CPU .* dtype=torch.bfloat16"):
        pack(model)
    assert can_pack(model.to(torch.bfloat16))


def test_a_packed_model_is_neither_saved_nor_resized(tiny: ModuleType, tmp_path: pytest.TempPathFactory) -> None:
    model = tiny.fresh("gemma3").to(torch.bfloat16)
    pack(model)
    with pytest.raises(InputError, match=r"cannot be saved; save it before pack"):
        model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="The head was replaced by one that cannot be resized"):
        model.resize_token_embeddings(120)


def test_a_packed_model_is_not_compiled(tiny: ModuleType) -> None:
    model = tiny.fresh("gemma3").to(torch.bfloat16)
    pack(model)
    with pytest.raises(InputError, match="compile=True does not go with a packed model"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, compile=True)


def test_gelu_of_a_packed_mlp_is_rounded_once() -> None:
    torch.manual_seed(0)
    mlp = SiglipMLP(SiglipVisionConfig(hidden_size=96, intermediate_size=176, hidden_act="gelu_pytorch_tanh"))
    hidden, holder = torch.randn(2, 30, 96).bfloat16(), nn.Sequential(mlp.bfloat16().requires_grad_(False))
    with torch.no_grad():
        exact, apart = mlp.float()(hidden.float()), mlp.bfloat16()(hidden)
        swap(holder, lambda _, module: PackedLinear(module.weight, module.bias) if type(module) is nn.Linear else None)
        together = PackedPatchMlp(mlp)(hidden)
    assert together.dtype is torch.bfloat16
    assert float((together - exact).norm()) <= float((apart - exact).norm())
    assert float((together - exact).norm()) <= 2**-7 * float(exact.norm())


def test_only_gelu_with_tanh_is_computed_with_the_product(tiny: ModuleType) -> None:
    model = tiny.fresh("paligemma").to(torch.bfloat16)
    layers = model.model.vision_tower.vision_model.encoder.layers
    layers[0].mlp.activation = nn.functional.relu
    hasten(model)
    assert [type(layer.mlp) for layer in layers] == [SiglipMLP, *[PackedPatchMlp] * (len(layers) - 1)]
