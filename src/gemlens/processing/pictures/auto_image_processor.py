"""The image processor that a checkpoint names, whichever it is."""

import os
from pathlib import Path
from typing import Any, NoReturn

from gemlens.errors import CheckpointError, InputError
from gemlens.processing.pictures.image_processor_files import ImageProcessor, check_family, read_settings
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast, SiglipImageProcessorFast

_CLASSES: dict[tuple[str, bool], type[ImageProcessor]] = {
    ("Siglip", False): SiglipImageProcessor,
    ("Siglip", True): SiglipImageProcessorFast,
    ("Gemma3", False): Gemma3ImageProcessor,
    ("Gemma3", True): Gemma3ImageProcessorFast,
}
_OF_MODELS = {"paligemma": "Siglip", "siglip": "Siglip", "gemma3": "Gemma3"}


class AutoImageProcessor:
    """Opens the image processor of a checkpoint with `AutoImageProcessor.from_pretrained(folder_or_id)`."""

    def __init__(self) -> NoReturn:
        raise InputError("AutoImageProcessor is not made but asked: AutoImageProcessor.from_pretrained(...).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        use_fast: bool | None = None,
        revision: str | None = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> ImageProcessor:
        """The image processor of a checkpoint, by its `preprocessor_config.json`.

        Args:
            pretrained_model_name_or_path: a folder or a repository of the hub.
            use_fast: whether to take the fast twin; None: the one that the file names.
            revision: see `gemlens.checkpoints.hub.Origin`, as for the next four.
            subfolder: folder that holds the file.
            token: access token.
            cache_dir: where downloads are kept.
            local_files_only: whether the network is left alone.
            overrides: settings that win over the file's.

        Raises:
            CheckpointError: there is no such file, or its image processor is of another family.
            InputError: an override is misspelt, or a value makes no sense.
        """
        if use_fast not in (None, True, False):
            raise InputError(f"use_fast={use_fast!r} came, but it must be True, False or None.")
        origin = {
            "revision": revision, "subfolder": subfolder, "token": token, "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }  # fmt: skip
        content = read_settings(pretrained_model_name_or_path, **origin)
        family = check_family(content) or _family_of_model(pretrained_model_name_or_path, origin)
        named_fast = str(content.get("image_processor_type", "")).endswith("Fast")
        fast = named_fast if use_fast is None else use_fast
        return _CLASSES[family, fast].from_dict(content, **overrides)


def _family_of_model(place: str | os.PathLike[str], origin: dict[str, Any]) -> str:
    """By the model's own config, for files that name no class."""
    from gemlens.checkpoints.hub import Origin, read_json

    path = Origin(place, **origin).find("config.json")
    model = read_json(path).get("model_type") if path else None
    if not isinstance(model, str) or model not in _OF_MODELS:
        raise CheckpointError(
            "The checkpoint's preprocessor_config.json names no 'image_processor_type' and its config.json no model of "
            "gemlens with pictures; use SiglipImageProcessor or Gemma3ImageProcessor by name."
        )
    return _OF_MODELS[model]
