"""Leaves whose weights are in blocks, as GGUF files hold them, and stay so: kernels/tiles.py computes with them.

    model on the meta device -> replace(): leaves swapped -> keep(blocks), each right after it was read

A model's code never sees it. An embedding and a head that share a weight share its blocks.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.errors import InputError
from gemlens.kernels.formats import Q8_0, Format
from gemlens.kernels.tiles import FORMATS, Best, Largest, Room, Tiles, best, largest, linear, pack, rows
from gemlens.models.decoder import Layers
from gemlens.models.layers import ScaledEmbedding, rounded
from gemlens.models.outputs import Logits
from gemlens.models.swap import swap

_BITS_OF_END = 16  # of activations behind what all tokens pass
_UNSCREENED = 31  # tokens after one whose screen was in vain


class _Unsaved(nn.Module):
    """A leaf that no checkpoint has a place for."""

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise InputError(
            "A model whose weights are in blocks is for inference and cannot be saved: its GGUF file is its "
            "checkpoint. Load it without quantize to save it as numbers."
        )


class BlockLinear(_Unsaved, nn.Linear):
    """Takes the place of an `nn.Linear`; its weight is one row of bytes once `keep` has made it.

    Args:
        layer: the layer.
        block_format: of its weight.
        bits: of activations that are multiplied with it, 8 or 16.
    """

    def __init__(self, layer: nn.Linear, block_format: Format, bits: int = 8) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight.requires_grad_(False), layer.bias
        self.format, self.bits = block_format, bits
        self.padding = -self.in_features % block_format.block_size
        self._unscreened = 0  # tokens whose largest logits are not looked for

    def reset_parameters(self) -> None:
        """Draws nothing: the weight is given."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix in blocks, whose rows end in zeros where the layer's do not fill their last block."""
        return self.out_features, self.in_features + self.padding

    @property
    def matrix(self) -> tuple[int, int, int, int, int]:
        """As native layers take it; see Tiles."""
        return self.tiles.matrix

    @property
    def tiles(self) -> Tiles:
        """As operators take it."""
        return Tiles(self.weight, self.format, self.shape, self.bits)

    def keep(self, blocks: Tensor, room: Room | None = None) -> Tensor:
        """What the layer computes with, of the blocks of a file."""
        return pack(blocks, self.format, self.shape, room).data

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        padded = F.pad(hidden, (0, self.padding)) if self.padding else hidden
        result = linear(padded, self.tiles)
        return result if self.bias is None else result + self.bias

    def largest(self, hidden: Tensor, count: int) -> Logits:
        """The `count` largest of what `forward` gives, exactly. See FindingHead.

        Where all products are alike, looking costs more than it saves; then it is left out for the next tokens.
        """
        looks, self._unscreened = self._unscreened == 0, max(0, self._unscreened - 1)
        # Numbers that differ may be equal in a shorter dtype.
        if hidden.dtype is not torch.float32 or self.bias is not None or self.padding:
            return Logits(self(hidden))
        before = hidden.shape[:-1]
        found: Best | Largest
        if count == 1:
            found, most = best(hidden.flatten(0, -2), self.tiles, looks), 0.5
            logits = Logits(found.products.view(*before, 1), found.rows.view(*before, 1))
        elif self.format is Q8_0 and before.numel() == 1:
            found = largest(hidden.flatten(), self.tiles, min(count, self.out_features), looks)
            most = 0.2  # they are sorted, too
            logits = Logits(found.products.view(*before, -1))
        else:
            return Logits(self(hidden))
        if looks and found.computed > most:  # to read all would have taken less time
            self._unscreened = _UNSCREENED
        return logits

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{super().extra_repr()}, weight={self.format.name}, activations of {self.bits} bits"


class BlockEmbedding(_Unsaved, nn.Embedding):
    """Takes the place of an `nn.Embedding`, scaled or not.

    Args:
        layer: the embedding.
        block_format: of its weight.
        dtype: of what it gives.
    """

    def __init__(self, layer: nn.Embedding, block_format: Format, dtype: torch.dtype) -> None:
        weight = layer.weight.requires_grad_(False)  # given, as drawing numbers would import a compiler
        super().__init__(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, _weight=weight)
        self.weight = weight
        self.format, self.dtype = block_format, dtype
        self.scale = rounded(layer.scale, dtype) if isinstance(layer, ScaledEmbedding) else 1.0

    def keep(self, blocks: Tensor, room: Room | None = None) -> Tensor:
        """What the layer reads from, of the blocks of a file."""
        return pack(blocks, self.format, (self.num_embeddings, self.embedding_dim), room).data

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S] ids -> [B, S, D]."""
        found = rows(ids, Tiles(self.weight, self.format, (self.num_embeddings, self.embedding_dim)))
        return found.to(self.dtype) * self.scale


def replace(
    model: nn.Module, formats: Mapping[str, Format], dtype: torch.dtype, bits: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Puts leaves with weights in blocks in the place of linear layers and embeddings.

    Args:
        model: on the meta device.
        formats: of weights, by their names.
        dtype: of activations.
        bits: of activations where they are multiplied with blocks, 8 or 16; in the end they have 16, see `_end`.

    Returns:
        Name of a weight -> what makes of its blocks the tensor that the leaf keeps.

    Raises:
        InputError: a weight is in a format that no kernel computes in, or of another kind of layer.
    """
    leaves: dict[str, BlockLinear | BlockEmbedding] = {}
    held = _with_twins(model, formats)
    end = _end(model, held)
    for weight, block_format in held.items():
        name = weight.removesuffix(".weight")
        layer = model.get_submodule(name)
        if block_format not in FORMATS:
            names = ", ".join(each.name for each in FORMATS)
            raise InputError(
                f"'{weight}' is stored as {block_format.name}, but kernels compute in {names} only; load the model "
                "without quantize."
            )
        if isinstance(layer, nn.Linear):
            leaves[name] = BlockLinear(layer, block_format, _BITS_OF_END if name.startswith(end) else bits)
        elif isinstance(layer, nn.Embedding):
            leaves[name] = BlockEmbedding(layer, block_format, dtype)
        else:
            raise InputError(f"'{weight}' is of a {type(layer).__name__}, which no kernel computes.")
    swap(model, lambda name, _: leaves.get(name))
    room = Room()
    return {f"{name}.weight": partial(leaf.keep, room=room) for name, leaf in leaves.items()}


def _end(model: nn.Module, formats: Mapping[str, Format]) -> tuple[str, ...]:
    """How names begin of what only tokens with logits pass: the decoder's last layer, and the head if it is screened.

    A prompt hardly pays for a second line of activations there, and a screen reads the first alone.
    """
    last = [f"{name}.{len(layers) - 1}." for name, layers in model.named_modules() if isinstance(layers, Layers)]
    return *last, *(["lm_head"] if formats.get("lm_head.weight") is Q8_0 else [])


def _with_twins(model: nn.Module, formats: Mapping[str, Format]) -> dict[str, Format]:
    """The same with every name of a shared weight."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    known = {id(weights[name]): block_format for name, block_format in formats.items()}
    return {name: known[id(weight)] for name, weight in weights.items() if id(weight) in known}
