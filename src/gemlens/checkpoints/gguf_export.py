"""A model -> GGUF files that llama.cpp opens, with weights in blocks: one of the text model, and mmproj for pictures.

model -> names and metadata of the files (gguf_names.py, gguf_config.py) -> blocks, tensor by tensor -> gguf_write.py
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemlens.checkpoints.gguf import Value
from gemlens.checkpoints.gguf_config import metadata_of, vision_metadata_of
from gemlens.checkpoints.gguf_names import gguf_name_of
from gemlens.checkpoints.gguf_write import GGUFEntry, write_gguf
from gemlens.errors import InputError
from gemlens.kernels.formats import F16, F32, Q4_0, Q8_0, Format
from gemlens.kernels.reference import quantize

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel

# Of the decoder's layers and of its embedding and head, and ggml's number for such a file.
KINDS: Mapping[str, tuple[Format, Format, int]] = {"q8": (Q8_0, Q8_0, 7), "q4": (Q4_0, Q8_0, 2)}


def export_gguf(model: "PreTrainedModel", vocabulary: Mapping[str, Value], path: Path, kind: str) -> tuple[Path, ...]:
    """Writes a model; each tensor is rounded when its turn comes.

    Args:
        model: Gemma 1, 2 or 3; of one with pictures, the encoder goes to "mmproj-" + the file's name.
        vocabulary: the `tokenizer.*` metadata, see gemlens.processing.text.gguf_vocabulary.
        path: of the text model's file.
        kind: "q8" or "q4".

    Returns:
        The paths of the files.

    Raises:
        InputError: llama.cpp has no place for such a model, or there is no such kind.
        CheckpointError: a file cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"A GGUF file can be written as {' or '.join(KINDS)}, not as {kind!r}.")
    config = model.config.to_dict()
    text: Mapping[str, Any] = config.get("text_config", config)
    if "vision_config" in config and config["model_type"] != "gemma3":
        raise InputError(f"A GGUF file has no place for a {config['model_type']} model; llama.cpp reads Gemma only.")
    metadata = metadata_of(text)
    architecture = str(metadata["general.architecture"])
    prefix = "model.language_model." if "vision_config" in config else "model."
    state = model.state_dict()
    if text["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    entries: list[GGUFEntry] = []
    pictures: list[GGUFEntry] = []
    for name, weight in state.items():
        if (found := gguf_name_of(name, architecture, prefix)) is not None:
            entries.append(_entry(*found, weight, _text_format(name, weight, kind)))
        elif (found := gguf_name_of(name, "clip")) is not None:
            pictures.append(_entry(*found, weight, _vision_format(name, weight)))
        else:
            raise InputError(f"A GGUF file has no place for '{name}'.")
    general = {"general.quantization_version": 2, "general.file_type": KINDS[kind][2]}
    write_gguf(path, {**metadata, **general, **vocabulary}, entries)
    if not pictures:
        return (path,)
    mmproj = mmproj_beside(path)
    write_gguf(mmproj, {**vision_metadata_of(config), **general}, pictures)
    return path, mmproj


def mmproj_beside(path: Path) -> Path:
    """The file of the picture encoder that goes with a text model's."""
    return path.with_name(f"mmproj-{path.name}")


def _text_format(name: str, weight: Tensor, kind: str) -> Format:
    inner, outer, _ = KINDS[kind]
    wanted = inner if ".layers." in name else outer
    return wanted if weight.dim() == 2 and weight.shape[1] % wanted.block_size == 0 else F32


def _vision_format(name: str, weight: Tensor) -> Format:
    """Linear layers are rounded where their width allows it; what llama.cpp reads otherwise stays as it is."""
    if weight.dim() != 2 or "position_embedding" in name or "multi_modal_projector" in name:
        return F32
    return Q8_0 if weight.shape[1] % Q8_0.block_size == 0 else F16


def _entry(name: str, is_shifted: bool, weight: Tensor, block_format: Format) -> GGUFEntry:
    return GGUFEntry(name, tuple(weight.shape), block_format, partial(_bytes, weight, is_shifted, block_format))


def _bytes(weight: Tensor, is_shifted: bool, block_format: Format) -> Tensor:
    numbers = weight.detach().cpu().float() + (1 if is_shifted else 0)
    if block_format.is_quantized:
        return quantize(numbers, block_format)
    return numbers.to(torch.float16 if block_format is F16 else torch.float32).contiguous().view(torch.uint8)
