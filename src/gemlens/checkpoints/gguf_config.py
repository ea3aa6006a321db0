"""config_of: what GGUF metadata say about a Gemma model, in the layout of a config.json.

The keys are those of llama.cpp's converter (convert_hf_to_gguf.py and gguf-py/gguf/constants.py). It leaves out what is
equal for all sizes, and llama.cpp's loader tells some sizes by their number of layers; both are repeated here.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from gemlens.checkpoints.gguf import GGUFFile, Value
from gemlens.errors import CheckpointError, InputError

CLASSES: Mapping[str, str] = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
# Keys of a text model, and the config's fields: whole numbers, and others that may be left out.
_WHOLE = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
}
_REAL = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Layers of the sizes whose metadata do not say all.
GEMMA_2_27B = 46
GEMMA_3_4B, GEMMA_3_12B, GEMMA_3_27B = 34, 48, 62


def config_of(file: GGUFFile, mmproj: GGUFFile | None = None) -> dict[str, object]:
    """The config.json of a model in one GGUF file, or in two.

    Args:
        file: the text model: Gemma 1, 2 or 3.
        mmproj: the picture encoder and projector of a Gemma 3.

    Returns:
        A dict for GemmaConfig, Gemma2Config, Gemma3TextConfig or, with pictures, Gemma3Config.

    Raises:
        CheckpointError: a file has another model, or a key is missing or of the wrong type.
    """
    general = _Fields(file, "")
    architecture = general.string("general.architecture")
    if architecture not in CLASSES:
        known = ", ".join(CLASSES)
        raise general.error("general.architecture", architecture, f"one of {known}; pass a Gemma text model")
    if (parts := general.integer("split.count", 1)) > 1:
        raise general.error("split.count", parts, "1; join the parts with llama-gguf-split --merge")
    text = _text(file, architecture)
    if mmproj is None:
        return {"architectures": [CLASSES[architecture]], **text}
    if architecture != "gemma3":
        raise general.error("general.architecture", architecture, "gemma3, as pictures are passed; leave mmproj out")
    vision, tokens = _vision(mmproj, text)
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision,
        "mm_tokens_per_image": tokens,
        # The same in every Gemma 3 vocabulary.
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "eos_token_id": text["eos_token_id"],
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def metadata_of(config: Mapping[str, Any]) -> dict[str, Value]:
    """The metadata of a text model's file: the inverse of `config_of` for the config.json of one.

    Raises:
        InputError: llama.cpp has no such model.
    """
    kind = str(config["model_type"]).removesuffix("_text")
    if kind not in CLASSES:
        raise InputError(f"A GGUF file has no place for a {kind} model; there are {', '.join(CLASSES)}.")
    numbers: dict[str, Value] = {
        theirs: config[ours] for theirs, ours in _WHOLE.items() if ours != "sliding_window" or kind != "gemma"
    }
    numbers["attention.value_length"] = config["head_dim"]
    numbers |= {theirs: float(config[ours]) for theirs, ours in _REAL.items() if config.get(ours) is not None}
    if kind != "gemma":
        numbers["attention.sliding_window_pattern"] = [each == "sliding_attention" for each in config["layer_types"]]
    if scaling := config.get("rope_scaling"):
        if scaling.get("rope_type") != "linear":
            raise InputError(f"A GGUF file has no place for rope_scaling {dict(scaling)}; only for the type 'linear'.")
        numbers |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    return {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in numbers.items()}}


def vision_metadata_of(config: Mapping[str, Any]) -> dict[str, Value]:
    """The metadata of the mmproj file of a Gemma 3 with pictures, whose config.json this is."""
    vision = config["vision_config"]
    side = math.isqrt(config["mm_tokens_per_image"])
    numbers = {
        "projection_dim": config["text_config"]["hidden_size"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "attention.layer_norm_epsilon": float(vision["layer_norm_eps"]),
        "projector.scale_factor": vision["image_size"] // vision["patch_size"] // side,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in numbers.items()},
    }


def _text(file: GGUFFile, architecture: str) -> dict[str, object]:
    fields, tokenizer = _Fields(file, f"{architecture}."), _Fields(file, "tokenizer.ggml.")
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no tensor 'token_embd.weight'. Pass a file with a model's weights.")
    hidden, layers = fields.integer("embedding_length"), fields.layers()
    heads, head_dim = fields.integer("attention.head_count"), fields.integer("attention.key_length")
    end = tokenizer.integer("eos_token_id", 1, least=0)
    ends = sorted({end, tokenizer.integer("eot_token_id", end, least=0)})
    config: dict[str, object] = {
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 1e6 if architecture == "gemma3" else 1e4),
        "bos_token_id": tokenizer.integer("bos_token_id", 2, least=0),
        "eos_token_id": end if len(ends) == 1 else ends,
        "pad_token_id": tokenizer.integer("padding_token_id", 0, least=0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if architecture == "gemma":
        return config
    is_27b = layers == (GEMMA_2_27B if architecture == "gemma2" else GEMMA_3_27B)
    config["query_pre_attn_scalar"] = hidden // heads if is_27b else head_dim
    if "attention.sliding_window_pattern" in fields:
        config["layer_types"] = _layer_types(fields, layers)
    return config | (_gemma2(fields) if architecture == "gemma2" else _gemma3(fields, layers))


def _gemma2(fields: "_Fields") -> dict[str, object]:
    # The first files left these out; the numbers are the same for all sizes.
    return {
        "sliding_window": fields.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
    }


def _gemma3(fields: "_Fields", layers: int) -> dict[str, object]:
    # Files of the first days do not say that the global layers' rotation is stretched eightfold from 4B on.
    known = 8.0 if layers in (GEMMA_3_4B, GEMMA_3_12B, GEMMA_3_27B) else 1.0
    kind = fields.string("rope.scaling.type", "linear")
    if kind not in ("linear", "none"):
        raise fields.error("rope.scaling.type", kind, "'linear' or 'none'")
    factor = fields.number("rope.scaling.factor", known) if kind == "linear" else 1.0
    return {
        "sliding_window": fields.integer("attention.sliding_window"),
        "final_logit_softcapping": fields.number(cap) if (cap := "final_logit_softcapping") in fields else None,
        "rope_local_base_freq": fields.number("rope.freq_base_swa", 1e4),
        "rope_scaling": None if factor == 1.0 else {"rope_type": "linear", "factor": factor},
    }


def _layer_types(fields: "_Fields", layers: int) -> list[str]:
    """Either every n-th layer is full, or the file says for each layer whether it slides."""
    key = "attention.sliding_window_pattern"
    pattern = fields.get(key)
    if isinstance(pattern, list):
        if len(pattern) < layers or not all(isinstance(slides, bool) for slides in pattern):
            raise fields.error(key, pattern, f"a number, or {layers} booleans")
        slides = pattern[:layers]
    else:
        every = fields.integer(key)
        slides = [(layer + 1) % every != 0 for layer in range(layers)]
    return ["sliding_attention" if sliding else "full_attention" for sliding in slides]


def _vision(mmproj: GGUFFile, text: Mapping[str, object]) -> tuple[dict[str, object], int]:
    """The vision_config, and how many tokens a picture takes."""
    general, fields = _Fields(mmproj, ""), _Fields(mmproj, "clip.vision.")
    if (architecture := general.string("general.architecture")) != "clip":
        raise general.error("general.architecture", architecture, "clip; pass the mmproj file of this Gemma 3")
    if (kind := fields.string("projector_type", "") or general.string("clip.projector_type")) != "gemma3":
        raise general.error("clip.projector_type", kind, "gemma3; pass the mmproj file of this Gemma 3")
    width, text_width = fields.integer("projection_dim"), text["hidden_size"]
    if width != text_width:
        raise fields.error("projection_dim", width, f"{text_width}, the text model's width; pass its own mmproj file")
    image, patch = fields.integer("image_size"), fields.integer("patch_size")
    pool = fields.integer("projector.scale_factor", 4)
    if image < patch * pool:
        raise fields.error("image_size", image, f"at least {patch * pool}, {pool} patches of {patch} pixels")
    config: dict[str, object] = {
        "model_type": "siglip_vision_model",
        "hidden_size": fields.integer("embedding_length"),
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.layers(),
        "num_attention_heads": fields.integer("attention.head_count"),
        "image_size": image,
        "patch_size": patch,
        "layer_norm_eps": fields.number("attention.layer_norm_epsilon"),
        "vision_use_head": False,
    }
    return config, (image // patch // pool) ** 2


class _Fields:
    """Typed access to the metadata keys under a prefix. A key without a default must be there."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self.file, self.prefix = file, prefix

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.file.metadata

    def get(self, key: str, default: object = None) -> object:
        """The value, of any type."""
        if key not in self and default is None:
            advice = "Convert the model again with a current llama.cpp."
            raise CheckpointError(f"{self.file.path} has no metadata key {self.prefix + key!r}. {advice}")
        return self.file.metadata.get(self.prefix + key, default)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` on."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, value, f"a whole number from {least} on")
        return value

    def layers(self) -> int:
        """The number of layers, which is at most that of tensors."""
        layers, tensors = self.integer("block_count"), len(self.file.tensors)
        if layers > tensors:
            raise self.error("block_count", layers, f"at most {tensors}, the number of tensors; fetch the file again")
        return layers

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(key, value, "a finite number above 0")
        return float(f"{value:.7g}")  # files hold float32; seven digits give back the decimal of the config.json

    def string(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, value, "a text")
        return value

    def error(self, key: str, value: object, expected: str) -> CheckpointError:
        """The error that says what came, what was expected and what to do."""
        what = f"the metadata key {self.prefix + key!r} is {reprlib.repr(value)}"
        return CheckpointError(f"{self.file.path}: {what}, but it must be {expected}.")
