"""GGUF weights as the file holds them: blocks in, leaves that compute with blocks.

GGUFSource -> keep_blocks: leaves replaced, a source whose quantised weights come as bytes -> fill(convert=...)
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemlens.checkpoints.gguf_names import GGUFSource
from gemlens.checkpoints.load import WeightSource
from gemlens.checkpoints.names import Layout, match
from gemlens.errors import InputError
from gemlens.kernels.formats import Format

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel

STORED = "stored"


class BlockSource:
    """A GGUF file of which some tensors are given as bytes.

    Args:
        files: the file.
        formats: of the tensors that are given so, by their names there.
    """

    def __init__(self, files: GGUFSource, formats: Mapping[str, Format]) -> None:
        self._files, self._formats = files, formats

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, of blocks as if they were weights."""
        return self._files.shapes()

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor's weights; see GGUFSource."""
        return self._files.tensor(name, dtype)

    def transient(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The same for a short time, or the blocks, uint8 [nbytes], that stand for it."""
        return self._files.transient_blocks(name) if name in self._formats else self._files.transient(name, dtype)


def keep_blocks(
    model: "PreTrainedModel", weights: WeightSource, layout: Layout, quantize: str, dtype: torch.dtype
) -> tuple[BlockSource, dict[str, Callable[[Tensor], Tensor]]]:
    """Replaces the leaves whose weights a GGUF file holds in blocks.

    Args:
        model: on the meta device.
        weights: the file.
        layout: of the model's names.
        quantize: "stored".
        dtype: of activations.

    Returns:
        What to fill the model from, and what `fill` has to do with blocks.

    Raises:
        InputError: another file or value, or formats that no kernel computes in.
    """
    from gemlens.quantization.blocks import replace

    if quantize != STORED:
        raise InputError(f"quantize is {quantize!r}, but it must be {STORED!r}, or left out for weights as numbers.")
    if not isinstance(weights, GGUFSource):
        raise InputError(f"quantize={STORED!r} keeps the blocks of a GGUF file; name one with gguf_file.")
    names = match(weights.shapes(), layout).names
    formats = {name: found[1] for name, file in names.items() if (found := weights.blocks(file)) is not None}
    held = {
        name: form for name, form in formats.items() if name in dict(model.named_parameters(remove_duplicate=False))
    }
    convert = replace(model, held, dtype)
    return BlockSource(weights, {names[name]: form for name, form in held.items()}), convert
