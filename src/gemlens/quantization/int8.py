"""int8 weights of torchao, the same on every device."""

from typing import Any

from torch import Tensor

from gemlens.quantization.config import Scheme


def quantize(weight: Tensor, scheme: Scheme) -> Tensor:
    """A weight [out, in] rounded to int8 by torchao."""
    from torchao.quantization import Int8Tensor, PerGroup, PerRow

    per = PerRow() if scheme.group_size is None else PerGroup(scheme.group_size)
    rounded: Tensor = Int8Tensor.from_hp(weight, granularity=per, act_quant_kwargs=activations(scheme))
    return rounded


def activations(scheme: Scheme) -> Any:
    """How inputs are rounded, one scale per token; None if they are not."""
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    return QuantizeTensorToInt8Kwargs(granularity=PerRow()) if scheme.dynamic else None
