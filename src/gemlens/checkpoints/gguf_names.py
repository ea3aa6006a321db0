"""GGUFSource: a text GGUF file, and maybe an mmproj file for pictures, as our parameters.

The only place that knows GGUF's tensor names and what llama.cpp's converter does to values (convert_hf_to_gguf.py;
names in gguf-py/gguf/constants.py). It does one thing: Gemma's RMSNorm multiplies by 1 + w, and the files hold 1 + w.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.gguf_config import config_of
from gemlens.errors import CheckpointError
from gemlens.kernels.formats import F32, Format

# A star stands for the number of the layer.
_DECODER = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk.*.attn_norm": "layers.*.input_layernorm",
    "blk.*.attn_q": "layers.*.self_attn.q_proj",
    "blk.*.attn_k": "layers.*.self_attn.k_proj",
    "blk.*.attn_v": "layers.*.self_attn.v_proj",
    "blk.*.attn_output": "layers.*.self_attn.o_proj",
    "blk.*.ffn_gate": "layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "layers.*.mlp.up_proj",
    "blk.*.ffn_down": "layers.*.mlp.down_proj",
}
# Gemma 1 has no sandwich: its post_attention_layernorm is the norm before the MLP.
_PLAIN_NORMS = {"blk.*.ffn_norm": "layers.*.post_attention_layernorm"}
_SANDWICH_NORMS = {
    "blk.*.post_attention_norm": "layers.*.post_attention_layernorm",
    "blk.*.ffn_norm": "layers.*.pre_feedforward_layernorm",
    "blk.*.post_ffw_norm": "layers.*.post_feedforward_layernorm",
}
_QUERY_KEY_NORMS = {
    "blk.*.attn_q_norm": "layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "layers.*.self_attn.k_norm",
}
_TOWER = {
    "v.patch_embd": "embeddings.patch_embedding",
    "v.post_ln": "post_layernorm",
    "v.blk.*.ln1": "encoder.layers.*.layer_norm1",
    "v.blk.*.ln2": "encoder.layers.*.layer_norm2",
    "v.blk.*.attn_q": "encoder.layers.*.self_attn.q_proj",
    "v.blk.*.attn_k": "encoder.layers.*.self_attn.k_proj",
    "v.blk.*.attn_v": "encoder.layers.*.self_attn.v_proj",
    "v.blk.*.attn_out": "encoder.layers.*.self_attn.out_proj",
    "v.blk.*.ffn_up": "encoder.layers.*.mlp.fc1",
    "v.blk.*.ffn_down": "encoder.layers.*.mlp.fc2",
}
_IGNORED = frozenset({"rope_freqs.weight"})  # a table that the config implies


def _with(kind: str, names: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{prefix}{ours}.{kind}" for theirs, ours in names.items()}


_TOWER_PREFIX = "model.vision_tower.vision_model."
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gemma": _with("weight", _DECODER | _PLAIN_NORMS),
    "gemma2": _with("weight", _DECODER | _SANDWICH_NORMS),
    "gemma3": _with("weight", _DECODER | _SANDWICH_NORMS | _QUERY_KEY_NORMS),
    "clip": {
        **_with("weight", _TOWER, _TOWER_PREFIX),
        **_with("bias", _TOWER, _TOWER_PREFIX),
        "v.position_embd.weight": f"{_TOWER_PREFIX}embeddings.position_embedding.weight",
        # [vision D, text D] as in the original: llama.cpp transposes it when it runs, not in the file.
        "mm.input_projection.weight": "model.multi_modal_projector.mm_input_projection_weight",
        "mm.soft_emb_norm.weight": "model.multi_modal_projector.mm_soft_emb_norm.weight",
    },
}
_LAYER = re.compile(r"\bblk\.([0-9]+)\.")
_OUR_LAYER = re.compile(r"\blayers\.([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a GGUF tensor is to us.

    Args:
        name: of our parameter.
        is_shifted: whether the file holds 1 + w, as it does for every norm of Gemma (not for SigLIP's).
    """

    name: str
    is_shifted: bool


def parameter_of(gguf_name: str, architecture: str, text_prefix: str = "model.") -> Parameter | None:
    """Our parameter for a GGUF tensor; None if a model of that architecture has no such tensor.

    Args:
        gguf_name: as the file has it, e.g. "blk.0.attn_q.weight".
        architecture: `general.architecture` of the file: "gemma", "gemma2", "gemma3", or "clip" for an mmproj file.
        text_prefix: of the decoder's names: "model." for a text model, "model.language_model." beside pictures.
    """
    if gguf_name == "output.weight" and architecture != "clip":
        return Parameter("lm_head.weight", is_shifted=False)
    ours = _NAMES.get(architecture, {}).get(_LAYER.sub("blk.*.", gguf_name))
    if ours is None or "*" in gguf_name:
        return None
    if (layer := _LAYER.search(gguf_name)) is not None:
        ours = ours.replace("*", layer[1])
    if architecture == "clip":
        return Parameter(ours, is_shifted=ours.endswith("mm_soft_emb_norm.weight"))
    return Parameter(text_prefix + ours, is_shifted=ours.endswith("norm.weight"))


def gguf_name_of(name: str, architecture: str, text_prefix: str = "model.") -> tuple[str, bool] | None:
    """The GGUF tensor for a parameter of ours, and whether it holds 1 + w; None if such a file has no place for it.

    The inverse of `parameter_of`.
    """
    if name == "lm_head.weight" and architecture != "clip":
        return "output.weight", False
    layer = _OUR_LAYER.search(name)
    template = name if layer is None else _OUR_LAYER.sub("layers.*.", name)
    prefix = "" if architecture == "clip" else text_prefix
    for theirs, ours in _NAMES[architecture].items():
        if prefix + ours == template:
            found = theirs if layer is None else theirs.replace("*", layer[1])
            known = parameter_of(found, architecture, text_prefix)
            return (found, known.is_shifted) if known is not None else None
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter's values lie."""

    file: GGUFFile
    gguf_name: str
    is_shifted: bool


def _values(place: _Place, dtype: torch.dtype | None) -> Tensor:
    if not place.is_shifted:
        return place.file.tensor(place.gguf_name, dtype)
    return (place.file.tensor(place.gguf_name, torch.float32) - 1).to(dtype or torch.float32)


class GGUFSource:
    """The parameters of a model in one GGUF file, or in two.

    Args:
        text: the text model: Gemma 1, 2 or 3.
        mmproj: the picture encoder and projector of a Gemma 3.

    Attributes:
        files: the paths of the one or two.

    Raises:
        CheckpointError: the files describe no model of ours, or hold a tensor that it does not have.
    """

    def __init__(self, text: GGUFFile, mmproj: GGUFFile | None = None) -> None:
        self._config = config_of(text, mmproj)
        self._places: dict[str, _Place] = {}
        self._add(text, "model." if mmproj is None else "model.language_model.")
        if mmproj is not None:
            self._add(mmproj)
        self.files: tuple[Path, ...] = (text.path,) if mmproj is None else (text.path, mmproj.path)

    def config(self) -> dict[str, object]:
        """What the files say in the layout of a config.json, see `config_of`."""
        return dict(self._config)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """{our parameter's name: shape}."""
        return {name: place.file.tensors[place.gguf_name].shape for name, place in self._places.items()}

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A parameter's values.

        Args:
            name: ours.
            dtype: of the result; None for the file's own, which is float32 for quantised formats and Gemma's norms.

        Returns:
            A view of the mapped file where that holds the very values, else a new tensor.

        Raises:
            CheckpointError: the files have no such parameter.
        """
        return _values(self._place(name), dtype)

    def transient(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The same through a mapping of its own: when the tensor goes, so do the pages of the file that it touched."""
        place = self._place(name)
        return _values(replace(place, file=place.file.mapped_again()), dtype)

    def transient_blocks(self, name: str) -> Tensor:
        """The bytes of a quantised parameter, through a mapping of its own; see `transient`."""
        place = self._place(name)
        return place.file.mapped_again().raw(place.gguf_name)

    def blocks(self, name: str) -> tuple[Tensor, Format] | None:
        """A matrix as it lies in the file, for kernels that compute on blocks; None where all is float32 or no matrix.

        Returns:
            uint8 [nbytes], a view of the mapped file, and the format of the blocks.

        Raises:
            CheckpointError: the files have no such parameter.
        """
        place = self._place(name)
        stored = place.file.tensors[place.gguf_name]
        if place.is_shifted or stored.format is F32 or len(stored.shape) != 2:
            return None
        return place.file.raw(place.gguf_name), stored.format

    def _add(self, file: GGUFFile, text_prefix: str = "") -> None:
        architecture = str(file.metadata["general.architecture"])
        swapped, unknown = _mlp_is_swapped(file), []
        for gguf_name in file.tensors:
            ours = parameter_of(_swap(gguf_name) if swapped else gguf_name, architecture, text_prefix)
            if ours is not None:
                self._places[ours.name] = _Place(file, gguf_name, ours.is_shifted)
            elif gguf_name not in _IGNORED:
                unknown.append(repr(gguf_name))
        if unknown:
            what = f"{len(unknown)} tensors that a {architecture} model does not have: {', '.join(unknown[:5])}"
            raise CheckpointError(f"{file.path} has {what}. Pass the text model and its mmproj as separate files.")

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            files = " and ".join(str(path) for path in self.files)
            raise CheckpointError(f"There is no parameter {name!r} in {files}. Pass the files of this model.")
        return self._places[name]


def _mlp_is_swapped(file: GGUFFile) -> bool:
    """Whether an mmproj file calls the first matrix of an MLP ffn_down and the second ffn_up.

    The first converter for Gemma 3 did. As in llama.cpp the shape tells: ffn_down must not take in the model's width.
    """
    down = file.tensors.get("v.blk.0.ffn_down.weight")
    width, mlp_width = (file.metadata.get(f"clip.vision.{key}_length") for key in ("embedding", "feed_forward"))
    return down is not None and down.shape[-1] == width != mlp_width


def _swap(gguf_name: str) -> str:
    return re.sub(r"\bffn_(up|down)\b", lambda found: "ffn_down" if found[1] == "up" else "ffn_up", gguf_name)
