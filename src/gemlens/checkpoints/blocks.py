"""Weights in blocks: as a GGUF file holds them, or made while loading; leaves compute with them as they are.

"stored"    a GGUF file's blocks: leaves replaced, a source whose quantised weights come as bytes -> fill(convert=...)
"q8", "q4"  of any checkpoint: leaves replaced, weights come as numbers -> fill(convert=...) makes blocks of them
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.checkpoints.gguf_names import GGUFSource
from gemlens.checkpoints.load import WeightSource
from gemlens.checkpoints.names import Layout, match
from gemlens.errors import InputError
from gemlens.kernels.formats import Q4_0, Q8_0, Format
from gemlens.kernels.reference import quantize as blocks_of

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel

STORED = "stored"
ROUNDED = {"q8": (Q8_0, Q8_0), "q4": (Q4_0, Q8_0)}  # of the decoder's layers; of its ends and the picture encoder


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
    model: "PreTrainedModel", weights: WeightSource, layout: Layout, quantize: str, dtype: torch.dtype, bits: int
) -> tuple[WeightSource, dict[str, Callable[[Tensor], Tensor]]]:
    """Replaces the leaves whose weights a GGUF file holds in blocks, or those of the decoder.

    Args:
        model: on the meta device.
        weights: the file.
        layout: of the model's names.
        quantize: "stored", "q8" or "q4".
        dtype: of activations.
        bits: of activations where they are multiplied with blocks, 8 or 16.

    Returns:
        What to fill the model from, and what `fill` has to do with blocks.

    Raises:
        InputError: another file or value, or formats that no kernel computes in.
    """
    from gemlens.quantization.blocks import replace

    if not isinstance(bits, int) or bits not in (8, 16):
        raise InputError(f"activation_bits is {bits!r}, but it must be 8 or 16.")
    if quantize in ROUNDED:
        formats = _formats(model, *ROUNDED[quantize])
        return weights, {
            name: partial(_rounded, formats[name], keep) for name, keep in replace(model, formats, dtype, bits).items()
        }
    if quantize != STORED:
        raise InputError(
            f"quantize is {quantize!r}, but it must be {STORED!r}, 'q8' or 'q4', or left out for weights as numbers."
        )
    if not isinstance(weights, GGUFSource):
        raise InputError(f"quantize={STORED!r} keeps the blocks of a GGUF file; name one with gguf_file.")
    names = match(weights.shapes(), layout).names
    formats = {name: found[1] for name, file in names.items() if (found := weights.blocks(file)) is not None}
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    held = {name: form for name, form in formats.items() if name in own}
    convert = replace(model, held, dtype, bits)
    return BlockSource(weights, {names[name]: form for name, form in held.items()}), convert


def _formats(model: "PreTrainedModel", inner: Format, outer: Format) -> dict[str, Format]:
    """Of the weights of all layers' linear layers, and of the decoder's embedding and head, whose width allows it."""
    found = {}
    for name, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear)
        width = module.in_features if is_linear else getattr(module, "embedding_dim", 1)
        path = f".{name}"  # a TextModel's own layers have no name before theirs
        if is_linear and ".encoder.layers." in path:
            found[f"{name}.weight"] = outer  # its rows may end in a block that is not full
        elif width % inner.block_size == 0 and is_linear and ".layers." in path:
            found[f"{name}.weight"] = inner
        elif width % inner.block_size == 0 and name.endswith(("embed_tokens", "lm_head")):
            found[f"{name}.weight"] = outer
    return found


def _rounded(block_format: Format, keep: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    return keep(blocks_of(F.pad(weight, (0, -weight.shape[-1] % block_format.block_size)), block_format))
