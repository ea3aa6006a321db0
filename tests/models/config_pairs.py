"""Configs of both libraries side by side, for the tests of configs."""

from typing import Any

import pytest
import tiny
import transformers

import gemlens
from gemlens.models.configs.pretrained import PretrainedConfig

NAMES = ("GemmaConfig", "Gemma2Config", "Gemma3TextConfig", "SiglipVisionConfig", "PaliGemmaConfig", "Gemma3Config")
# What ours takes besides the documented arguments, because published files hold it.
ADDED = {
    "GemmaConfig": ["rope_scaling"],
    "Gemma2Config": ["rope_scaling"],
    "Gemma3TextConfig": ["sliding_window_pattern"],
    "SiglipVisionConfig": ["vision_use_head"],
}

each_class = pytest.mark.parametrize("name", NAMES)


def both(name: str) -> tuple[Any, Any]:
    """The reference's class and ours."""
    return getattr(transformers, name), getattr(gemlens, name)


def assert_equal_values(theirs: Any, ours: PretrainedConfig) -> None:
    """Every field of ours has the reference's value."""
    for name in ours.fields:
        value = getattr(ours, name)
        if name == "vocab_size" and theirs.model_type == "paligemma":
            assert not hasattr(theirs, name), "the reference takes and drops it"
        elif isinstance(value, PretrainedConfig):
            assert_equal_values(getattr(theirs, name), value)
        elif name in ("id2label", "label2id") and value is None:
            assert getattr(theirs, name) == getattr(transformers.PretrainedConfig(), name), "its default"
        elif name == "dtype":
            assert value == (None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."))
        elif name not in ADDED.get(type(ours).__name__, []):
            assert getattr(theirs, name) == value, name
    assert theirs.num_labels == ours.num_labels
    assert theirs.model_type == ours.model_type


def changed(name: str) -> Any:
    """A config of that class that differs from the default in many fields."""
    common = {"dtype": "bfloat16", "num_labels": 3, "architectures": ["Some"], "output_hidden_states": True}
    text = {"eos_token_id": [1, 106], "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    if name == "SiglipVisionConfig":
        return tiny.vision_config(**common)
    if name == "GemmaConfig":
        return tiny.text_config("gemma", **common, **text)
    if name == "Gemma2Config":
        return tiny.text_config("gemma2", **common, **text)
    if name == "Gemma3TextConfig":
        return tiny.text_config("gemma3", **common, **text, **scaling)
    config = tiny.config("paligemma2" if name == "PaliGemmaConfig" else "gemma3-pictures", **text)
    return type(config).from_dict(config.to_dict(), **common)
