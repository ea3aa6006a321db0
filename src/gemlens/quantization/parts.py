"""A rounded weight <-> the plain tensors that stand for it in a file, in torchao's own layout.

    mlp.up_proj.weight  <->  mlp.up_proj._weight_qdata, mlp.up_proj._weight_scale, mlp.up_proj._weight_zero_point

That is how `torchao.prototype.safetensors` flattens tensors, beside a description of each in the file's header. That is
written for other readers and not acted on: config.json tells the scheme, so every part has one shape that is right.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gemlens.quantization import int4, int8
from gemlens.quantization.config import Scheme

Kind = tuple[tuple[int, ...], str]  # shape and number format, as safetensors names it


def part_name(weight: str, part: str) -> str:
    """`a.weight` and `scale` -> `a._weight_scale`."""
    layer, _, leaf = weight.rpartition(".")
    return f"{layer}._{leaf}_{part}"


def whole_name(name: str) -> tuple[str, str] | None:
    """The reverse of `part_name`; None where a name is not that of a part."""
    layer, found, part = name.rpartition("._weight_")
    return (f"{layer}.weight", part) if found else None


def shape_of(kinds: Mapping[str, Kind], scheme: Scheme) -> tuple[int, int] | None:
    """The shape [out, in] of the weight that parts of these kinds stand for; None if they are not right."""
    numbers, _ = kinds.get("qdata", ((), ""))
    if len(numbers) != 2 or not all(numbers):
        return None
    shape = (numbers[0], numbers[1] * 8 // scheme.bits)
    right = _right(*shape, scheme)
    needed = right.keys() - ({"zero_point"} if scheme.bits == 8 else set())  # older files of torchao have none
    fine = needed <= kinds.keys() and all(kinds[part] in right.get(part, ()) for part in kinds)
    return shape if fine else None


def split(weight: Tensor) -> tuple[dict[str, Tensor], str]:
    """The parts of a rounded weight, the same whichever device it is on, and its description for a file's header."""
    from torchao.prototype.safetensors.safetensors_utils import TensorSubclassAttributeJSONEncoder
    from torchao.quantization import Int8Tensor

    stored: Any = weight if isinstance(weight, Int8Tensor) else int4.unpack(weight)
    parts, _ = stored.__tensor_flatten__()
    return {part: getattr(stored, part) for part in parts}, json.dumps(stored, cls=TensorSubclassAttributeJSONEncoder)


def join(parts: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """The reverse of `split`.

    Args:
        parts: by their names; `shape_of` found them right.
        shape: of the weight.
        scheme: of the weight.
        dtype: of the activations.
    """
    from torchao.quantization import Int4Tensor, Int8Tensor

    numbers, scale, block = parts["qdata"], parts["scale"], [1, scheme.group_size or shape[1]]
    weight: Tensor
    if scheme.bits == 4:
        weight = Int4Tensor(numbers, scale, parts["zero_point"], block, shape)
        return weight
    zeros = torch.zeros_like(scale, dtype=torch.int8)  # torchao has no kernel for others
    weight = Int8Tensor(numbers, scale, block, dtype, zero_point=zeros, act_quant_kwargs=int8.activations(scheme))
    return weight


def _right(rows: int, columns: int, scheme: Scheme) -> Mapping[str, list[Kind]]:
    """Every kind that each part of a weight may have."""
    if columns % (size := scheme.group_size or columns):
        return {}
    groups, floats = columns // size, ("F32", "BF16", "F16")
    if scheme.bits == 4:
        scales: list[Kind] = [((groups, rows), form) for form in floats]
        return {"qdata": [((rows, columns // 2), "I8")], "scale": scales, "zero_point": scales}
    right: dict[str, list[Kind]] = {"qdata": [((rows, columns), "I8")], "zero_point": [((rows, groups), "I8")]}
    return {**right, "scale": [((rows, groups), form) for form in floats]}
