"""Products in float32 of layers in bfloat16, for processors that have none of their own."""

from types import ModuleType

import pytest
import torch
from torch import nn

from gemlens import AutoModelForImageTextToText
from gemlens.quantization import packed
from gemlens.quantization.packed import WidenedConvolution, WidenedLinear, hasten


@pytest.fixture(autouse=True)
def without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without products of bfloat16."""
    monkeypatch.setattr(packed, "can_pack", lambda model: False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 37), (2, 3, 37), (8, 37), (5, 13, 37), (1, 0, 37)])
def test_products_are_those_of_float32_rounded_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool
) -> None:
    monkeypatch.setattr(packed, "_WIDENED", 10 * 37)  # 53 rows: five parts and a rest
    torch.manual_seed(0)
    linear = nn.Linear(37, 53, bias=bias).bfloat16()
    hidden = torch.randn(shape).bfloat16()
    with torch.no_grad():
        found = WidenedLinear(linear)(hidden)
        exact = nn.functional.linear(hidden.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert found.dtype is torch.bfloat16
    assert found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all())


def test_gradients_and_other_dtypes_are_left_to_torch() -> None:
    layer = WidenedLinear(nn.Linear(37, 53).bfloat16())
    layer(torch.randn(20, 37).bfloat16()).sum().backward()
    assert layer.weight.grad is not None
    assert layer.float()(torch.randn(20, 37)).dtype is torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_that_of_float32_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 10, kernel_size=4, stride=4, bias=bias).bfloat16()
    pixels = torch.randn(2, 3, 13, 8).bfloat16()
    with torch.no_grad():
        found, exact = WidenedConvolution(layer)(pixels), layer.double()(pixels.double())
    assert found.dtype is torch.bfloat16
    assert bool(((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all())


def test_a_hastened_model_answers_as_it_did(tiny: ModuleType) -> None:
    model, prompt = tiny.fresh("paligemma").requires_grad_(False), tiny.prompt("paligemma")
    exact = model(**prompt).logits
    half = model.to(torch.bfloat16)(**prompt).logits.float()
    hasten(model)
    assert not [module for module in model.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    said = model(**prompt).logits.float()
    assert float((said - exact).norm()) <= 2 * float((half - exact).norm())  # rounding, where it falls otherwise


def test_a_hastened_model_can_still_be_saved(tiny: ModuleType, tmp_path: pytest.TempPathFactory) -> None:
    model, prompt = tiny.fresh("paligemma").to(torch.bfloat16).requires_grad_(False), tiny.prompt("paligemma")
    hasten(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    hasten(again)
    assert again(**prompt).logits.equal(model(**prompt).logits)
    assert again.lm_head.weight is again.get_input_embeddings().weight
