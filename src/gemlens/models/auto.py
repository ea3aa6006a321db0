"""From a checkpoint's `model_type` to a class: AutoConfig and the AutoModel classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gemlens.errors import ConfigError
from gemlens.models.configs.multimodal import TEXT_CONFIGS, Gemma3Config, PaliGemmaConfig
from gemlens.models.configs.pretrained import PretrainedConfig
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.gemma3 import Gemma3ForConditionalGeneration, Gemma3ForSequenceClassification, Gemma3Model
from gemlens.models.paligemma import PaliGemmaForConditionalGeneration, PaliGemmaModel
from gemlens.models.pretrained import PreTrainedModel
from gemlens.models.siglip import SiglipVisionModel
from gemlens.models.text import (
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextModel,
    GemmaForCausalLM,
    GemmaModel,
)

CONFIGS: Mapping[str, type[PretrainedConfig]] = {
    **TEXT_CONFIGS,
    **{config.model_type: config for config in (SiglipVisionConfig, PaliGemmaConfig, Gemma3Config)},
}


class AutoConfig:
    """Reads a config of any known type."""

    @staticmethod
    def for_model(model_type: str, **fields: Any) -> PretrainedConfig:
        """A config of that type."""
        return _known(CONFIGS, model_type, "AutoConfig")(**fields)

    @staticmethod
    def from_dict(data: Mapping[str, Any], **overrides: Any) -> PretrainedConfig:
        """The config that the content of a `config.json` describes."""
        return _known(CONFIGS, str(data.get("model_type")), "AutoConfig").from_dict(data, **overrides)

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **arguments: Any) -> PretrainedConfig:
        """The config of a folder or of a hub repository; arguments as in `PretrainedConfig.from_pretrained`."""
        from gemlens.checkpoints.pretrained import split_origin, stored_config

        origin, overrides = split_origin(pretrained_model_name_or_path, arguments)
        return AutoConfig.from_dict(stored_config(origin, overrides.pop("gguf_file", None)), **overrides)


class _AutoModel:
    """Picks the class that a checkpoint's `model_type` names."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]]

    @classmethod
    def from_config(cls, config: PretrainedConfig, **arguments: Any) -> PreTrainedModel:
        """The model with random weights."""
        return _known(cls.classes, config.model_type, cls.__name__)(config, **arguments)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> PreTrainedModel:
        """The model with its weights; arguments as in `PreTrainedModel.from_pretrained`."""
        from gemlens.checkpoints.pretrained import split_origin, stored_config

        config = arguments.get("config")
        if config is None:
            origin, _ = split_origin(pretrained_model_name_or_path, arguments)
            pictures = "gemma3_text" not in cls.classes
            model_type = str(stored_config(origin, arguments.get("gguf_file"), pictures).get("model_type"))
        else:
            model_type = config.model_type
        return _known(cls.classes, model_type, cls.__name__).from_pretrained(pretrained_model_name_or_path, **arguments)


class AutoModel(_AutoModel):
    """Models without a head."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]] = {
        "gemma": GemmaModel,
        "gemma2": Gemma2Model,
        "gemma3": Gemma3Model,
        "gemma3_text": Gemma3TextModel,
        "paligemma": PaliGemmaModel,
        "siglip_vision_model": SiglipVisionModel,
    }


class AutoModelForCausalLM(_AutoModel):
    """Models that continue text; Gemma 3 with pictures is one of them, as in the reference."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]] = {
        "gemma": GemmaForCausalLM,
        "gemma2": Gemma2ForCausalLM,
        "gemma3": Gemma3ForConditionalGeneration,
        "gemma3_text": Gemma3ForCausalLM,
    }


class AutoModelForImageTextToText(_AutoModel):
    """Models that answer with text to pictures and text."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]] = {
        "gemma3": Gemma3ForConditionalGeneration,
        "paligemma": PaliGemmaForConditionalGeneration,
    }


class AutoModelForSequenceClassification(_AutoModel):
    """Classifiers."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]] = {"gemma3": Gemma3ForSequenceClassification}


def _known(table: Mapping[str, Any], model_type: str, who: str) -> Any:
    if model_type not in table:
        raise ConfigError(f"{who} does not know the model type {model_type!r}; it knows {', '.join(sorted(table))}.")
    return table[model_type]
