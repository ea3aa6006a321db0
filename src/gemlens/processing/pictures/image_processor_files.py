"""What all image processors are: settings as attributes, stored in `preprocessor_config.json` as transformers does."""

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from gemlens.errors import CheckpointError, InputError
from gemlens.processing.batch import BatchFeature
from gemlens.processing.pictures.image_settings import ImageSettings, refuse_unknown, size_of

FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
# Names of the documented interface that are no settings of the arithmetic, but may be passed on construction.
_ASIDE = ("image_seq_length", "processor_class", "image_processor_type", "feature_extractor_type")


class ImageProcessor(ABC):
    """Pictures -> `pixel_values`. Its settings are attributes; None in one of them or in a call means "not given"."""

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    is_fast: ClassVar[bool] = False
    _defaults: ClassVar[Mapping[str, Any]]

    do_resize: bool
    size: dict[str, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | list[float]
    image_std: float | list[float]
    do_convert_rgb: bool | None

    def __call__(self, images: Any, *arguments: Any, **named: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, *arguments, **named)

    @abstractmethod
    def preprocess(self, images: Any, *arguments: Any, **named: Any) -> BatchFeature:
        """Pictures -> `pixel_values`."""

    def _store(self, given: Mapping[str, Any]) -> None:
        """Keeps what was given, defaults for the rest, and what a file of a checkpoint says besides."""
        refuse_unknown(given, [*self._defaults, *_ASIDE], type(self).__name__)
        self._besides: dict[str, Any] = {name: copy.deepcopy(given[name]) for name in _ASIDE if name in given}
        for name, default in self._defaults.items():
            value = default if given.get(name) is None else given[name]
            setattr(self, name, copy.deepcopy(list(value) if isinstance(value, tuple) else value))
        self.size = size_of("size", self.size, getattr(self, "default_to_square", True))
        if (crop := getattr(self, "crop_size", None)) is not None:
            self.crop_size = size_of("crop_size", crop)
        self._settings({})  # so that a wrong value is refused where it is given

    def _settings(self, call: Mapping[str, Any]) -> ImageSettings:
        """The settings of one call: its arguments, and what is stored where they are None."""
        names = self._defaults
        return ImageSettings.of({name: _given(call.get(name), getattr(self, name)) for name in names})

    def __getattr__(self, name: str) -> Any:
        besides = self.__dict__.get("_besides", {})
        if name in besides and not name.startswith("_"):
            return besides[name]
        raise AttributeError(f"{type(self).__name__} has no '{name}'.")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)}"

    # -- files -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All settings and whatever else the file had, as JSON has them, with `image_processor_type`."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        content = {name: _plain(value) for name, value in {**self._besides, **own}.items()}
        return {**content, "image_processor_type": type(self).__name__}

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """An image processor with the settings of a dict, which stays as it is; names it does not know are kept.

        Raises:
            InputError: an override is not one of its settings, or a value makes no sense.
        """
        refuse_unknown(overrides, [*cls._defaults, *_ASIDE], cls.__name__)
        known = {name: value for name, value in image_processor_dict.items() if name in cls._defaults}
        made = cls(**{**known, **overrides})
        others = image_processor_dict.keys() - cls._defaults.keys() - {"image_processor_type"}
        kept = {name: copy.deepcopy(image_processor_dict[name]) for name in others}
        made._besides = {**kept, **made._besides}
        return made

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """The image processor of a checkpoint, by its `preprocessor_config.json`.

        Args:
            pretrained_model_name_or_path: a folder or a repository of the hub.
            revision: see `gemlens.checkpoints.hub.Origin`, as for the next four.
            subfolder: folder that holds the file.
            token: access token.
            cache_dir: where downloads are kept.
            local_files_only: whether the network is left alone.
            overrides: settings that win over the file's.

        Raises:
            CheckpointError: there is no such file, or it belongs to another family of image processors.
            InputError: an override is misspelt, or a value makes no sense.
        """
        content = read_settings(
            pretrained_model_name_or_path, revision=revision, subfolder=subfolder, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only,
        )  # fmt: skip
        check_family(content)
        return cls.from_dict(content, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Writes `preprocessor_config.json`, as this library and transformers read it; gives its path."""
        from gemlens.checkpoints.save import write_json

        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"'{folder}' is a file; pass a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, self.to_dict())
        return [str(folder / FILE)]


def read_settings(place: str | os.PathLike[str], **origin: Any) -> dict[str, Any]:
    """The settings in a checkpoint's `preprocessor_config.json`, or in its `processor_config.json`.

    Raises:
        CheckpointError: it has neither.
    """
    from gemlens.checkpoints.hub import Origin, read_json

    source = Origin(place, **origin)
    if path := source.find(FILE):
        return read_json(path)
    if path := source.find(PROCESSOR_FILE):
        inside = read_json(path).get("image_processor")
        if isinstance(inside, dict):
            return inside
    return read_json(source.fetch(FILE))  # to raise what is missing


def check_family(content: Mapping[str, Any]) -> str | None:
    """The family of image processors that a file names, "Siglip" or "Gemma3"; None if it names none.

    Raises:
        CheckpointError: another one.
    """
    named = content.get("image_processor_type") or content.get("feature_extractor_type")
    if named is None:
        return None
    family = str(named).removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if family not in ("Siglip", "Gemma3"):
        raise CheckpointError(
            f"The checkpoint's image processor is a {str(named)[:100]!r}, but gemlens has those of PaliGemma "
            "('SiglipImageProcessor') and Gemma 3 ('Gemma3ImageProcessor')."
        )
    return family


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _plain(value: Any) -> Any:
    """A copy of a setting as JSON has it."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, torch.device):
        return str(value)
    return copy.deepcopy(value)
