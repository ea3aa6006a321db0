"""What every part of processing gives: named values, as lists or as tensors, ready for `model(**batch)`.

Tokenizers give `input_ids` and `attention_mask` of [B, T], image processors `pixel_values` of [I, 3, height, width].
"""

from collections import UserDict
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, Self

import torch
from torch import Tensor

from gemlens.errors import InputError

_NO_TENSORS = {"tf": "TensorFlow", "jax": "JAX", "mlx": "MLX"}


class BatchFeature(UserDict[str, Any]):
    """A dict whose entries are attributes too: `batch["input_ids"] is batch.input_ids`; `model(**batch)` unpacks it.

    Building one copies the mapping it is given, so what a caller passed in never changes.
    """

    @classmethod
    def make(cls, data: Mapping[str, Any], return_tensors: str | None = None) -> Self:
        """The entries of `data` as they are (None), as torch tensors ("pt") or as numpy arrays ("np").

        Raises:
            InputError: `return_tensors` is something else, or an entry's rows have different lengths.
        """
        check_return_tensors(return_tensors)
        if return_tensors is None:
            return cls(data)
        tensors = {name: _tensor(name, value) for name, value in data.items()}
        if return_tensors == "pt":
            return cls(tensors)
        return cls({name: _array(name, tensor) for name, tensor in tensors.items()})

    def to(self, *targets: Any, non_blocking: bool = False, **named: Any) -> Self:
        """Moves the tensors to a device and casts the floating ones to a dtype, here and in lists; gives itself.

        Takes a device, a dtype or both, in any order or as `device=` and `dtype=`. Ids and masks keep their dtype.

        Raises:
            InputError: something else was passed.
        """
        device, dtype = _targets(targets, named)
        for name, value in self.items():
            self.data[name] = _moved(value, device, dtype, non_blocking)
        return self

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})  # absent while being unpickled
        if name in data:
            return data[name]
        raise AttributeError(f"This {type(self).__name__} has no '{name}'; it has {', '.join(data) or 'nothing'}.")


class BatchEncoding(BatchFeature):
    """What a tokenizer gives for one text or several."""


def check_return_tensors(return_tensors: str | None) -> None:
    """Refuses what `BatchFeature.make` cannot make, before the work is done.

    Raises:
        InputError: `return_tensors` is none of None, "pt" and "np".
    """
    if return_tensors in (None, "pt", "np"):
        return
    known = _NO_TENSORS.get(return_tensors or "")
    reason = f"gemlens makes no {known} tensors" if known else "no such kind of tensors is known"
    raise InputError(f"return_tensors={return_tensors!r}: {reason}; pass 'pt', 'np' or None.")


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return _stacked(value)
    except (TypeError, ValueError, RuntimeError) as error:
        lengths = sorted({len(row) for row in value if isinstance(row, Sequence)}) if isinstance(value, list) else []
        if len(lengths) > 1:
            raise InputError(
                f"'{name}' has rows of {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} values, which make no "
                "tensor; pass padding=True (and truncation=True with max_length=...), or return_tensors=None."
            ) from error
        raise InputError(f"'{name}' makes no tensor: its rows differ in shape or are not numbers.") from error


def _stacked(value: Any) -> Tensor:
    """Nested lists of numbers, arrays or tensors as one tensor; a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    leaf = value
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    if isinstance(value, (list, tuple)) and not isinstance(leaf, (Number, list, tuple)):
        return torch.stack([_stacked(each) for each in value])
    return torch.tensor(value)


def _array(name: str, tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise InputError(f"'{name}' is bfloat16, which numpy does not have; use return_tensors='pt' or another dtype.")
    return tensor.detach().cpu().numpy()  # through torch, so that numpy stays optional


def _targets(targets: Sequence[Any], named: Mapping[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    if unknown := named.keys() - {"device", "dtype"}:
        raise InputError(f".to() takes device= and dtype=, not {', '.join(sorted(unknown))}.")
    given = [target for target in (*targets, *named.values()) if target is not None]
    dtypes = [target for target in given if isinstance(target, torch.dtype)]
    devices = [target for target in given if isinstance(target, (str, int, torch.device))]
    if len(dtypes) > 1 or len(devices) > 1 or len(dtypes) + len(devices) < len(given):
        raise InputError(f".to() takes one device and one dtype, but {', '.join(map(repr, given))} came.")
    try:
        return (torch.device(devices[0]) if devices else None), (dtypes[0] if dtypes else None)
    except RuntimeError as error:
        raise InputError(f"{devices[0]!r} is no device; pass one like 'cpu' or 'cuda:0'.") from error


def _moved(value: Any, device: torch.device | None, dtype: torch.dtype | None, non_blocking: bool) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None, non_blocking=non_blocking)
    if isinstance(value, (list, tuple)) and any(isinstance(each, (Tensor, list, tuple)) for each in value):
        return type(value)(_moved(each, device, dtype, non_blocking) for each in value)
    return value
