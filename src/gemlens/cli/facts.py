"""What `inspect` tells of a model, as values: parameters by part, layers, memory, the tensors of its files.

config -> model on the meta device (no memory) -> parameters     headers of files -> Stored tensors
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemlens.cli.checkpoint import Checkpoint, auto_class

if TYPE_CHECKING:
    from gemlens.models.configs.pretrained import PretrainedConfig

BYTES = {"float32": 4, "bfloat16": 2}  # float16 is as large as bfloat16
_PARTS = {"vision": "picture encoder", "projector": "projector", "head": "head"}


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes in one number format.

    Args:
        weights: of all parameters, a tied head once.
        per_1000_tokens: keys and values of 1,000 tokens in one row.
        keys_and_values: of all rows at the context asked for; layers with a window keep only that.
        picture: at the widest place of the picture encoder, for one picture; 0 without an encoder.
    """

    weights: int
    per_1000_tokens: int
    keys_and_values: int
    picture: int

    @property
    def total(self) -> int:
        """Weights, keys and values, and one picture."""
        return self.weights + self.keys_and_values + self.picture


def parameters_by_part(config: "PretrainedConfig") -> dict[str, int]:
    """{part: number of parameters}, a shared weight once; no weights are made."""
    import torch

    from gemlens.checkpoints.pretrained import layout_of

    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    layout, counts = layout_of(type(model)), Counter[str]()
    for name, weight in model.named_parameters():
        part, rest = layout.split(name) or ("text", name)
        if part == "text":
            counts["embedding" if rest.startswith("embed_tokens.") else "decoder"] += weight.numel()
        else:
            counts[_PARTS[part]] += weight.numel()
    return dict(counts)


def windows_of(config: "PretrainedConfig") -> tuple[int | None, ...]:
    """Per decoder layer: how many tokens back it sees; None sees all. Of a multimodal config, its own: PaliGemma has
    none whatever its decoder's config says.
    """
    windows: tuple[int | None, ...] = getattr(config, "windows")  # noqa: B009 - all configs that answer have it
    return windows


def memory_plan(config: "PretrainedConfig", parameters: int, dtype: str, context: int, batch: int) -> Memory:
    """What the model takes with `batch` rows of `context` tokens each."""
    size = BYTES[dtype]
    return Memory(
        weights=parameters * size,
        per_1000_tokens=_keys_and_values(config, 1000) * size,
        keys_and_values=batch * _keys_and_values(config, context) * size,
        picture=_picture_numbers(config) * size,
    )


def _keys_and_values(config: "PretrainedConfig", tokens: int) -> int:
    """How many numbers the cache of one row of so many tokens holds."""
    text: Any = config.get_text_config()
    each = 2 * text.num_key_value_heads * text.head_dim
    return sum(each * min(tokens, window or tokens) for window in windows_of(config))


def _picture_numbers(config: "PretrainedConfig") -> int:
    """Numbers that are alive at once in the picture encoder: in an MLP, where its hidden values stand beside what the
    activation makes of them and five tensors of the model's width. Attention scores are not kept.
    """
    vision: Any = getattr(config, "vision_config", None)
    if vision is None:
        return 0
    return int(vision.patches_per_side**2 * (5 * vision.hidden_size + 2 * vision.intermediate_size))


def stored_tensors(checkpoint: Checkpoint) -> list[Stored]:
    """The tensors of the model's files, under the files' own names; only headers are read.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    if checkpoint.gguf:
        return [tensor for name in checkpoint.gguf for tensor in _gguf_tensors(Path(checkpoint.place, name))]
    from gemlens.checkpoints.hub import Origin
    from gemlens.checkpoints.safetensors import open_weights

    weights = open_weights(Origin(checkpoint.place))
    formats = weights.dtypes()
    return [
        Stored(name, shape, formats[name], math.prod(shape) * _bits(formats[name]) // 8)
        for name, shape in weights.shapes().items()
    ]


def _gguf_tensors(path: Path) -> list[Stored]:
    from gemlens.checkpoints.gguf import GGUFFile

    return [
        Stored(tensor.name, tensor.shape, tensor.format.name, tensor.nbytes)
        for tensor in GGUFFile.open(path).tensors.values()
    ]


def _bits(code: str) -> int:
    """Of a number in a safetensors file: "BF16", "F8_E4M3", "BOOL"."""
    found = re.search(r"\d+", code)
    return int(found[0]) if found else 8
