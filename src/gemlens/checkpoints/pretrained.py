"""`from_pretrained` and `save_pretrained`, behind the doors in gemlens.models: config, weights, devices put together.

Origin -> config dict -> config -> model on the meta device -> leaves replaced if quantized -> fill -> devices
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gemlens.checkpoints.blocks import keep_blocks
from gemlens.checkpoints.device_map import Placing, placing_for
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.gguf_names import GGUFSource
from gemlens.checkpoints.hub import Origin, read_json
from gemlens.checkpoints.load import WeightSource, fill
from gemlens.checkpoints.names import (
    MULTIMODAL,
    MULTIMODAL_BASE,
    MULTIMODAL_CLASSIFIER,
    TEXT,
    TEXT_BASE,
    VISION,
    Layout,
    published_name,
    quoted,
)
from gemlens.checkpoints.quantized import default_dtype, in_parts, open_rounded, read_config, round_leaves
from gemlens.checkpoints.safetensors import SafetensorsSource, file_dtype, open_weights
from gemlens.checkpoints.save import save_weights, write_json
from gemlens.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gemlens.models.configs.pretrained import PretrainedConfig
    from gemlens.models.pretrained import PreTrainedModel
    from gemlens.quantization.config import TorchAoConfig

Model = TypeVar("Model", bound="PreTrainedModel")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# By class name, so that files need not know models; a subclass has the layout of the class it extends.
_LAYOUTS: Mapping[str, Layout] = {
    "SiglipVisionModel": VISION,
    "TextModel": TEXT_BASE,
    "CausalLM": TEXT,
    "MultimodalModel": MULTIMODAL_BASE,
    "MultimodalForConditionalGeneration": MULTIMODAL,
    "Gemma3ForSequenceClassification": MULTIMODAL_CLASSIFIER,
}


def split_origin(path_or_id: str | Path, arguments: Mapping[str, Any]) -> tuple[Origin, dict[str, Any]]:
    """The origin that keyword arguments of `from_pretrained` describe, and the other arguments."""
    where = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
    origin = Origin(path_or_id, **{name: arguments[name] for name in where if name in arguments})
    return origin, {name: value for name, value in arguments.items() if name not in where}


def stored_config(
    origin: Origin, gguf_file: str | tuple[str, str] | None = None, with_pictures: bool = False
) -> dict[str, Any]:
    """The content of `config.json`, or what GGUF files say in its layout."""
    if gguf_file is None:
        return read_json(origin.fetch("config.json"))
    return _open_gguf(origin, gguf_file, with_pictures).config()


def load_pretrained(
    model_class: type[Model],
    origin: Origin,
    *,
    config: "PretrainedConfig | None",
    dtype: torch.dtype | str | None,
    device_map: Any,
    attn_implementation: str | Mapping[str, str] | None,
    quantization_config: "TorchAoConfig | Mapping[str, Any] | None",
    gguf_file: str | tuple[str, str] | None,
    quantize: str | None,
    activation_bits: int | None,
    overrides: Mapping[str, Any],
) -> Model:
    """The model in eval mode; see `PreTrainedModel.from_pretrained`."""
    config_class = model_class.config_class
    files: SafetensorsSource | GGUFSource
    if gguf_file is None:
        files = open_weights(origin)
        stored = {} if config is not None else stored_config(origin)
    else:
        files = _open_gguf(origin, gguf_file, with_pictures=config_class.model_type == "gemma3")
        stored = files.config()
    _refuse_unknown(overrides, config_class, model_class)
    rounding = read_config(quantization_config, stored if config is None else config.extra)
    if quantize is not None and rounding is not None:
        raise InputError("quantize and quantization_config both say how weights are stored; pass one of them.")
    if quantize is None and activation_bits is not None:
        raise InputError("activation_bits says how activations meet weights in blocks; pass quantize, too, or neither.")
    weights: WeightSource = open_rounded(files, rounding)
    config = config_class.from_dict(stored if config is None else config.to_dict(), **overrides)
    if dtype is None and rounding is not None:
        dtype = default_dtype(rounding, weights)
    number_format = _number_format(dtype, config, files)
    with torch.device("meta"), _Undrawn():
        model = model_class(config, attn_implementation=attn_implementation)  # type: ignore[call-arg]
    layout, bits, convert = layout_of(model_class), {}, {}
    if rounding is not None:
        config.quantization_config = rounding.to_dict()
        convert = round_leaves(model, weights, layout, rounding, number_format)
        bits = dict.fromkeys(convert, rounding.scheme.bits)
    elif quantize is not None:
        weights, convert = keep_blocks(
            model, files, layout, quantize, number_format, 8 if activation_bits is None else activation_bits
        )
    placing = placing_for(model, device_map, number_format, bits)
    fresh = _new_heads(model, weights, number_format, placing)
    fill(model, weights, layout, dtype=number_format, device=placing.device_of, fresh=fresh, convert=convert)
    if quantize is not None:
        from gemlens.quantization.fused import fuse

        fuse(model)
    config.dtype = str(number_format).removeprefix("torch.")
    model.read_companions(origin)
    return placing.dispatch(model.eval())


def save_pretrained(model: "PreTrainedModel", folder: Path, max_shard_size: int | str) -> None:
    """Weights in the published layout, then `config.json`; see `PreTrainedModel.save_pretrained`."""
    layout = layout_of(type(model))
    if adapted := [name for name in model.state_dict() if name.endswith(".lora_A")]:
        raise InputError(
            f"'{adapted[0].removesuffix('.lora_A')}' has an adapter, for which checkpoints have no place; merge it "
            "first (gemlens.training.lora.merge_lora), or save it alone (gemlens.training.adapters.save_adapter)."
        )
    state = {published_name(name, layout): tensor for name, tensor in model.state_dict().items()}
    metadata = None
    if "quantization_config" in model.config.extra:
        state, metadata = in_parts(state)
    save_weights(state, folder, max_shard_size=max_shard_size, metadata=metadata)
    dtype = str(model.dtype).removeprefix("torch.")
    # The older key is what every version of transformers reads.
    said = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / "config.json", said)
    model.save_companions(folder)


def layout_of(model_class: type[nn.Module]) -> Layout:
    """Which prefix each part has among the names of a class's parameters."""
    for ancestor in model_class.__mro__:
        if ancestor.__name__ in _LAYOUTS:
            return _LAYOUTS[ancestor.__name__]
    raise InputError(f"{model_class.__name__} extends no model class of gemlens, so its files' layout is not known.")


class _Undrawn(TorchFunctionMode):
    """Draws no numbers for new weights: on the meta device there are none, and torch imports its compiler to say so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _open_gguf(origin: Origin, names: str | tuple[str, str] | list[str], with_pictures: bool) -> GGUFSource:
    text, *rest = [names] if isinstance(names, str) else names
    if len(rest) > 1:
        raise InputError(f"gguf_file names {1 + len(rest)} files; pass the text file, or the pair (text, mmproj).")
    if with_pictures and not rest:
        rest = [name for name in origin.listing() if name.startswith("mmproj") and name.endswith(".gguf")]
        if len(rest) != 1:
            found = f"holds {quoted(rest)}" if rest else "holds no 'mmproj*.gguf'"
            raise CheckpointError(f"Pictures need an mmproj file beside '{text}', but {origin} {found}; name the pair.")
    files = [GGUFFile.open(origin.fetch(name)) for name in (text, *rest)]
    return GGUFSource(*files)


def _refuse_unknown(overrides: Mapping[str, Any], config: type["PretrainedConfig"], model_class: type) -> None:
    unknown = overrides.keys() - {*config.fields, *config.aliases, "num_labels"}
    if unknown:
        raise TypeError(
            f"{model_class.__name__}.from_pretrained() got the unknown arguments {quoted(unknown)}: neither its own "
            f"nor fields of {config.__name__}."
        )


def _number_format(
    dtype: torch.dtype | str | None, config: "PretrainedConfig", weights: SafetensorsSource | GGUFSource
) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    elif dtype != "auto":
        name = dtype.removeprefix("torch.")
    elif isinstance(weights, GGUFSource):
        return torch.float32  # what its quantised formats mean
    else:
        return DTYPES[config.dtype] if config.dtype is not None else file_dtype(weights)
    if name not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, but it must be 'auto' or one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _new_heads(model: "PreTrainedModel", weights: WeightSource, dtype: torch.dtype, placing: Placing) -> list[str]:
    """A classifier made from a model without one gets random weights, as in the reference."""
    head = model._modules.get("score")
    if not isinstance(head, nn.Linear) or "score.weight" in weights.shapes():
        return []
    device = placing.device_of("score.weight")
    head.weight = nn.Parameter(torch.empty(head.weight.shape, dtype=dtype, device=device).normal_(std=0.02))
    return ["score.weight"]
