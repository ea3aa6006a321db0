"""Quantized models <-> files: which leaves are rounded, and safetensors files that hold rounded weights.

floating point in any file -> fill(convert=...) -> each weight rounded right after it was read
rounded weights of a model -> parts and their description -> file -> QuantizedSource -> fill(convert=...)
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens.checkpoints.gguf_names import GGUFSource
from gemlens.checkpoints.load import WeightSource
from gemlens.checkpoints.names import Layout, match, quoted
from gemlens.checkpoints.safetensors import SafetensorsSource
from gemlens.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel
    from gemlens.quantization.config import Scheme, TorchAoConfig


def read_config(given: Any, stored: Mapping[str, Any]) -> "TorchAoConfig | None":
    """What the argument `quantization_config` asks for, or the key of that name in a config.json; None for neither.

    Raises:
        InputError: neither a TorchAoConfig nor such a dict, or it contradicts the file.
        CheckpointError: the file was quantized by another program.
    """
    from gemlens.quantization.config import TorchAoConfig

    if given is not None and not isinstance(given, TorchAoConfig | Mapping):
        raise InputError(f"quantization_config is a {type(given).__name__}, but it must be a TorchAoConfig or a dict.")
    asked = TorchAoConfig.from_dict(given) if isinstance(given, Mapping) else given
    if (said := stored.get("quantization_config")) is None:
        return asked
    if not isinstance(said, Mapping):
        raise CheckpointError(f"config.json has the quantization_config {said!r}, but it must be an object.")
    try:
        found = TorchAoConfig.from_dict(said)
    except InputError as error:
        raise CheckpointError(f"config.json: {error} Use the checkpoint as it was before quantization.") from error
    if asked is not None and asked.scheme != found.scheme:
        raise InputError(
            f"The checkpoint is quantized already, as {found.scheme}; load it without a quantization_config."
        )
    return found


class QuantizedSource:
    """A safetensors checkpoint with rounded weights in parts, as a source of whole ones.

    Args:
        files: the parts and the other tensors.
        scheme: of every rounded weight.

    Attributes:
        rounded: {name of a weight: {part: its name in the files}}.

    Raises:
        CheckpointError: parts are missing or do not fit each other or the scheme.
    """

    def __init__(self, files: SafetensorsSource, scheme: "Scheme") -> None:
        from gemlens.quantization.parts import shape_of

        self._files, self._scheme = files, scheme
        self.rounded = _rounded(files)
        self._shapes: dict[str, tuple[int, int]] = {}
        for weight, parts in self.rounded.items():
            kinds = {part: (files.shapes()[name], files.dtypes()[name]) for part, name in parts.items()}
            if (shape := shape_of(kinds, scheme)) is None:
                raise CheckpointError(f"'{weight}' is in the file as {kinds}, which is no weight of {scheme}.")
            self._shapes[weight] = shape

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, of rounded weights as if they were whole."""
        parts = {name for names in self.rounded.values() for name in names.values()}
        return {**{name: shape for name, shape in self._files.shapes().items() if name not in parts}, **self._shapes}

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor as the files have it; see SafetensorsSource."""
        return self._files.tensor(name, dtype)

    def transient(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The same for a short time, or a rounded weight, as `parts.join` gives it.

        Raises:
            CheckpointError: it cannot be read.
        """
        from gemlens.quantization.parts import join

        if name not in self.rounded:
            return self._files.transient(name, dtype)
        parts = {part: self._files.raw(file) for part, file in self.rounded[name].items()}
        if self._scheme.bits == 8 and "zero_point" in parts and parts["zero_point"].any():
            raise CheckpointError(f"'{name}' has zeros that are not 0, but int8 weights must be symmetric.")
        return join(parts, self._shapes[name], self._scheme, dtype or torch.float32)


def open_rounded(
    weights: SafetensorsSource | GGUFSource, config: "TorchAoConfig | None"
) -> SafetensorsSource | GGUFSource | QuantizedSource:
    """The weights themselves, or a source of whole ones if some are rounded.

    Raises:
        CheckpointError: some are, but how is not known or does not fit.
    """
    if not isinstance(weights, SafetensorsSource) or not (rounded := _rounded(weights)):
        return weights
    if config is None:
        raise CheckpointError(
            f"{quoted(rounded, 3)} are quantized, but config.json has no quantization_config that says how; "
            "take config.json from where the weights are from."
        )
    return QuantizedSource(weights, config.scheme)


def default_dtype(config: "TorchAoConfig", weights: object) -> str | None:
    """What `dtype=None` means: a quantized checkpoint as it was saved; bfloat16 for int4, as in the reference."""
    if isinstance(weights, QuantizedSource):
        return "auto"
    return "bfloat16" if config.scheme.bits == 4 else None


def round_leaves(
    model: "PreTrainedModel", weights: WeightSource, layout: Layout, config: "TorchAoConfig", dtype: torch.dtype
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Replaces the leaves whose weights are, or shall be, rounded; gives what `fill` has to do with those.

    Raises:
        InputError: they are not all linear layers.
    """
    from gemlens.quantization.torchao import chosen, replace

    if isinstance(weights, QuantizedSource):
        found = match(weights.shapes(), layout).names
        held = {name.removesuffix(".weight") for name, file in found.items() if file in weights.rounded}
        names = [name for name, _ in model.named_modules() if name in held]  # `fill` tells what is left over
    else:
        names = chosen(model, config)
    leaves = replace(model, names, config.scheme)
    return {f"{name}.weight": partial(leaf.keep, dtype=dtype) for name, leaf in leaves.items()}


def in_parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rounded weights by their parts, and the header of files that hold them, as torchao writes it."""
    from gemlens.quantization.parts import part_name, split

    plain: dict[str, Tensor] = {}
    described = {"format": "pt", "tensor_names": json.dumps(list(state))}
    for name, tensor in state.items():
        if is_traceable_wrapper_subclass(tensor):
            parts, described[name] = split(tensor)
            plain |= {part_name(name, part): value for part, value in parts.items()}
        else:
            plain[name], described[name] = tensor, json.dumps({"_type": "Tensor"})
    return plain, described


def _rounded(files: SafetensorsSource) -> dict[str, dict[str, str]]:
    """Names of parts, by the weights that they are of."""
    from gemlens.quantization.parts import whole_name

    rounded: dict[str, dict[str, str]] = {}
    for name in files.shapes():
        if (found := whole_name(name)) is not None:
            rounded.setdefault(found[0], {})[found[1]] = name
    return rounded
