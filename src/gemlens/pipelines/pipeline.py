"""`pipeline`: a task or a model -> the pipeline, its files found, its model on the device that is asked for."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemlens.assets import MODEL_NAME
from gemlens.checkpoints.pretrained import split_origin
from gemlens.errors import InputError
from gemlens.models.auto import AutoConfig, AutoModelForImageTextToText
from gemlens.models.pretrained import PreTrainedModel
from gemlens.pipelines.detection import DetectionPipeline
from gemlens.pipelines.image_text_to_text import ImageTextToTextPipeline
from gemlens.pipelines.segmentation import SegmentationPipeline, codec_of
from gemlens.pipelines.task import Pipeline
from gemlens.pipelines.text_classification import TextClassificationPipeline
from gemlens.pipelines.text_generation import TextGenerationPipeline
from gemlens.processing.auto_processor import AutoProcessor
from gemlens.processing.processor import Processor
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.tokenizer import GemmaTokenizerFast
from gemlens.quantization.packed import hasten

_PIPELINES: tuple[type[Pipeline], ...] = (
    *(ImageTextToTextPipeline, TextGenerationPipeline, TextClassificationPipeline),
    *(DetectionPipeline, SegmentationPipeline),
)
TASKS: Mapping[str, type[Pipeline]] = {each.task: each for each in _PIPELINES}
_ELSEWHERE = {"object-detection": "detect", "image-segmentation": "segment"}  # whose findings are dicts there
_EVERYWHERE = ("token", "cache_dir", "local_files_only")
_WHERE = (*_EVERYWHERE, "revision", "subfolder", "gguf_file")  # which files of a folder or of the hub


def pipeline(
    task: str | None = None,
    model: str | Path | PreTrainedModel | None = None,
    *,
    tokenizer: str | Path | GemmaTokenizerFast | None = None,
    processor: str | Path | Processor | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Pipeline:
    """A model ready to be called with what a person has: pictures and texts, texts, conversations.

    Args:
        task: "image-text-to-text", "text-generation", "text-classification", "detect" or "segment"; None: what the
            model is for. "object-detection" and "image-segmentation" are the last two with `as_dicts=True`.
        model: a folder, a repository such as `google/gemma-3-4b-it`, or a model; None to detect or segment with the
            embedded model, "gemlens-tiny".
        tokenizer: of the two tasks without pictures; None: the model's own.
        processor: of the tasks with pictures; None: the model's own.
        device: number of an accelerator, -1 for the CPU, or a name like "cuda:0"; None: the first accelerator, if there
            is any. A number on a machine without accelerators warns and means the CPU. A model that came as such
            stays where it is unless told.
        device_map: as in `from_pretrained`, instead of `device`.
        dtype: of the weights; None or "auto" for the checkpoint's own. `torch_dtype` is its older name. In bfloat16 on
            a CPU they are packed (gemlens.pack): faster, for inference only.
        revision: branch, tag or commit of a repository.
        token: access token of the hub.
        model_kwargs: more arguments of the model's `from_pretrained`.
        defaults: keywords of a call, for every call that does not say otherwise.

    Raises:
        InputError: an unknown task, no such device, or arguments that do not go together.
        CheckpointError: files that are missing or damaged.
        TypeError: a keyword of an unknown name.
    """
    if task in _ELSEWHERE:
        task, defaults = _ELSEWHERE[task], {"as_dicts": True, **defaults}
    if model is None and task in (DetectionPipeline.task, SegmentationPipeline.task):
        model = MODEL_NAME
    if model is None:
        raise InputError("No model came; pass a folder, a repository such as 'google/gemma-3-4b-it', or a model.")
    if task is not None and task not in TASKS:
        raise InputError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    named = {"device_map": device_map, "dtype": dtype, "torch_dtype": torch_dtype, "revision": revision, "token": token}
    loading = _merged({name: value for name, value in named.items() if value is not None}, model_kwargs or {})
    if device is not None and "device_map" in loading:
        raise InputError("device and device_map both say where the model goes; pass one of them.")
    own = None if isinstance(model, PreTrainedModel) else model
    where = {name: loading[name] for name in _WHERE if name in loading}
    kind = TASKS[task or _task_of(model, where)]
    encoder = _encoder(kind, processor, tokenizer, own, where)
    if kind is SegmentationPipeline and own is not None and "codec" not in defaults:
        defaults["codec"] = codec_of(split_origin(own, where)[0])
    kind.settings(encoder, defaults)  # refuses what is wrong before weights are read
    if isinstance(model, PreTrainedModel):
        if loading:
            raise InputError(f"A loaded model came, but {', '.join(loading)} would say how to load one; leave it out.")
        loaded = model if device is None else model.to(_device(device))
    else:
        if "device_map" not in loading:
            loading["device_map"] = _device(device)
        if "torch_dtype" not in loading:
            loading.setdefault("dtype", "auto")
        loaded = kind.models.from_pretrained(model, **loading)
        hasten(loaded)  # nobody else has it, and it will not be trained
    return kind(loaded, encoder, **defaults)


def _merged(named: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    if twice := sorted(named.keys() & more.keys()):
        raise InputError(f"{twice[0]!r} came twice, in model_kwargs and as an argument of its own; pass it once.")
    return {**named, **more}


def _task_of(model: str | Path | PreTrainedModel, where: Mapping[str, Any]) -> str:
    """What a model is for, by its class or by what its config says."""
    if isinstance(model, PreTrainedModel):
        config, name = model.config, type(model).__name__
    else:
        config = AutoConfig.from_pretrained(model, **where)
        name = (config.architectures or [""])[0]
    if name.endswith("ForSequenceClassification"):
        return TextClassificationPipeline.task
    return ImageTextToTextPipeline.task if hasattr(config, "vision_config") else TextGenerationPipeline.task


def _encoder(
    kind: type[Pipeline], processor: Any, tokenizer: Any, own: str | Path | None, where: Mapping[str, Any]
) -> Any:
    """The processor or tokenizer that the task needs: the one that came, or that of its name, or the model's own."""
    pictures = kind.models is AutoModelForImageTextToText
    needed, given, other = ("processor", processor, tokenizer) if pictures else ("tokenizer", tokenizer, processor)
    if other is not None:
        raise InputError(f"The task {kind.task!r} takes {needed}=, and no {'tokenizer' if pictures else 'processor'}=.")
    if given is None and own is None:
        raise InputError(f"A model came without its {needed}; pass {needed}=.")
    if isinstance(given, Processor if pictures else GemmaTokenizerFast):
        return given
    load: Any = AutoProcessor if pictures else AutoTokenizer
    if given is None:
        found = load.from_pretrained(own, **where)
    else:  # of another place: the model's revision says nothing about it
        found = load.from_pretrained(given, **{name: where[name] for name in _EVERYWHERE if name in where})
    if pictures and not isinstance(found, Processor):
        raise InputError(f"'{given or own}' has a tokenizer but no processor of pictures; use 'text-generation'.")
    return found


def _device(asked: int | str | torch.device | None) -> torch.device:
    """Where the model goes.

    Raises:
        InputError: this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if asked is None:
        return accelerator or torch.device("cpu")
    if type(asked) is int:
        if asked < 0:
            return torch.device("cpu")
        if accelerator is None:
            warnings.warn(
                f"device={asked} is an accelerator, but this machine has none; the model runs on the CPU.",
                UserWarning,
                stacklevel=3,
            )
            return torch.device("cpu")
        asked = f"{accelerator.type}:{asked}"
    try:
        found = torch.empty(0, device=asked).device
    except (RuntimeError, TypeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise InputError(f"device={str(asked)!r} is no device of this machine ({error}).") from error
    if found.type == "meta":
        raise InputError("device='meta' holds no values; pass 'cpu' or an accelerator.")
    return found
