"""Linear layers whose weights torchao has rounded to integers, and which layers of a model become such.

    model on the meta device -> chosen() -> replace(): leaves swapped -> keep(weight), each right after it was read

A model's code never sees it: the leaves are still `nn.Linear`, whose weight is a tensor of torchao. int8 runs on every
device, int4 on CPU and CUDA, each with a kernel and an order of the numbers of its own.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens.errors import InputError
from gemlens.models.swap import swap
from gemlens.quantization import int4, int8
from gemlens.quantization.config import Scheme, TorchAoConfig


class QuantizedLinear(nn.Linear):
    """Takes the place of an `nn.Linear` and has its parameters until `keep` has made a rounded weight.

    Args:
        linear: the layer.
        scheme: how its weight will be stored.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        self.scheme = scheme

    def keep(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """What the layer computes with.

        Args:
            weight: of floating point, or rounded as in files (`parts.join`); on the device where it will stay.
            dtype: of the activations.

        Raises:
            InputError: the device cannot compute with such weights.
        """
        rounded = is_traceable_wrapper_subclass(weight)
        if self.scheme.bits == 8:
            return weight if rounded else int8.quantize(weight, self.scheme)
        if rounded:
            return int4.pack(weight, dtype)
        return int4.quantize(weight, self.scheme.group_size or self.in_features)

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{super().extra_repr()}, weight={self.scheme}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """`model.to(...)`: int4 numbers lie in the order of a device's kernel; their scales have its inputs' dtype."""
        if self.scheme.bits == 4 and is_traceable_wrapper_subclass(self.weight):
            there = fn(torch.empty(0, dtype=self.weight.dtype, device=self.weight.device))
            if there.dtype != self.weight.dtype:
                raise InputError(
                    f"int4 weights that were read for {self.weight.dtype} cannot become {there.dtype}; "
                    f"load the model with dtype={there.dtype}."
                )
            if there.device.type != self.weight.device.type:
                moved = int4.unpack(self.weight).to(there.device)
                self.weight = nn.Parameter(self.keep(moved, there.dtype), requires_grad=False)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def chosen(model: nn.Module, config: TorchAoConfig) -> list[str]:
    """Names of the linear layers that a config asks to be rounded.

    As in the reference, the last layer of a model (its head) is none of them unless the config names others, and layers
    whose width is no multiple of the group size are left as they are; a warning tells of those.

    Raises:
        InputError: there is none.
    """
    left_out, size = config.modules_to_not_convert, config.scheme.group_size or 1
    if left_out is None:
        left_out = [name.rpartition(".")[0] for name, _ in [*model.named_parameters()][-1:]]
    shared = _shared(model)
    widths = {
        name: module.in_features
        for name, module in model.named_modules()
        if type(module) is nn.Linear  # not the one inside nn.MultiheadAttention, which is never called
        and id(module.weight) not in shared
        and not any(f"{part}." in f"{name}." for part in left_out)
    }
    fitting = [name for name, width in widths.items() if width % size == 0]
    if not fitting:
        raise InputError(
            f"No linear layer can be quantized: {len(widths)} were asked for, and none is a multiple of {size} wide; "
            "choose another group_size, or fewer modules_to_not_convert."
        )
    if odd := [name for name in widths if name not in fitting]:
        warnings.warn(
            f"{len(odd)} of {len(widths)} linear layers stay as they are, since their width is no multiple of "
            f"group_size={size}, such as '{odd[0]}' with a width of {widths[odd[0]]}.",
            stacklevel=2,
        )
    return fitting


def replace(model: nn.Module, names: Collection[str], scheme: Scheme) -> Mapping[str, QuantizedLinear]:
    """Puts a QuantizedLinear in the place of each named layer.

    Raises:
        InputError: a name is not that of a linear layer with a weight of its own, or torchao is missing.
    """
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise InputError("quantization_config needs the torchao package: pip install 'gemlens[quantized]'.") from error
    shared = _shared(model)
    leaves: dict[str, QuantizedLinear] = {}
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear) or id(layer.weight) in shared:
            raise InputError(f"'{name}' cannot be quantized: it is no linear layer with a weight of its own.")
        leaves[name] = QuantizedLinear(layer, scheme)
    swap(model, lambda name, _: leaves.get(name))
    return leaves


def _shared(model: nn.Module) -> set[int]:
    """Ids of the parameters that have more than one name."""
    count = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, names in count.items() if names > 1}
