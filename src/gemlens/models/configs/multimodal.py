"""PaliGemmaConfig and Gemma3Config: a picture encoder, a text decoder and what joins them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from gemlens.errors import ConfigError
from gemlens.models.configs.pretrained import PretrainedConfig
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.configs.text import Gemma2Config, Gemma3TextConfig, GemmaConfig, TextConfig

TEXT_CONFIGS: Mapping[str, type[TextConfig]] = {
    config.model_type: config for config in (GemmaConfig, Gemma2Config, Gemma3TextConfig)
}


def _vision(given: object) -> SiglipVisionConfig:
    if isinstance(given, SiglipVisionConfig):
        return given
    if isinstance(given, Mapping):
        return SiglipVisionConfig.from_dict({"model_type": "siglip_vision_model", **given})
    raise ConfigError(f"vision_config is a {type(given).__name__}, but it must be a SiglipVisionConfig or a dict.")


def _text(given: object, default: str, allowed: tuple[str, ...]) -> TextConfig:
    if isinstance(given, Mapping):
        kind = given.get("model_type", default)
        if not isinstance(kind, str) or kind not in TEXT_CONFIGS:
            raise ConfigError(f"text_config has the model type {kind!r}; known here are {', '.join(allowed)}.")
        given = TEXT_CONFIGS[kind].from_dict(given)
    if not isinstance(given, TextConfig) or given.model_type not in allowed:
        raise ConfigError(f"text_config is a {type(given).__name__}, but its model type must be one of {allowed}.")
    return given


class PaliGemmaConfig(PretrainedConfig):
    """PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): the decoder is Gemma 1 or Gemma 2.

    Args:
        vision_config: the picture encoder; None for So400m at 224 pixels.
        text_config: a GemmaConfig or Gemma2Config, or a dict with their `model_type`; None for Gemma 2B.
        image_token_index: id of the token whose place a picture's vector takes; also `image_token_id`.
        vocab_size: rows of the embedding of a text config that is made by default.
        projection_dim: width of the projected picture vectors; pictures can only be used where it equals the decoder's.
        hidden_size: kept as files have it; nothing is computed from it (several official files hold 2048 where
            the decoder is wider).
    """

    model_type: ClassVar[str] = "paligemma"
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}

    vision_config: SiglipVisionConfig = None  # type: ignore[assignment]  # validate() makes the default
    text_config: TextConfig = None  # type: ignore[assignment]
    image_token_index: int = 256000
    vocab_size: int = 257152
    projection_dim: int = 2048
    hidden_size: int = 2048

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per decoder layer: None. The original has no windows, whatever the decoder's own config says."""
        return (None,) * self.text_config.num_hidden_layers

    @property
    def tokens_per_image(self) -> int:
        """How many tokens a picture takes: one per patch."""
        return self.vision_config.patches_per_side**2

    def validate(self) -> None:
        """Makes configs of dicts and of nothing."""
        so400m = {
            "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4096, "num_hidden_layers": 27,
            "num_attention_heads": 16, "vision_use_head": False,
        }  # fmt: skip
        gemma_2b = {
            "hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16384, "num_attention_heads": 8,
            "num_key_value_heads": 1, "vocab_size": self.vocab_size,
        }  # fmt: skip
        self.vision_config = _vision(so400m if self.vision_config is None else self.vision_config)
        text: Any = gemma_2b if self.text_config is None else self.text_config
        self.text_config = _text(text, "gemma", ("gemma", "gemma2"))
        self.check_token("image_token_index")
        self.check_positive("projection_dim")


class Gemma3Config(PretrainedConfig):
    """Gemma 3 with pictures (arXiv 2503.19786).

    Args:
        text_config: a Gemma3TextConfig or a dict; None for its defaults.
        vision_config: the picture encoder; None for its defaults. The documented example passes the two in the
            other order; their types tell them apart, so both orders are right.
        mm_tokens_per_image: tokens that a picture takes, a square number.
        boi_token_index: id of the token before a picture; also `boi_token_id`.
        eoi_token_index: id of the token after a picture; also `eoi_token_id`.
        image_token_index: id of the token whose place a picture's vector takes; also `image_token_id`.
        initializer_range: standard deviation of random weights.
    """

    model_type: ClassVar[str] = "gemma3"
    aliases: ClassVar[Mapping[str, str]] = {
        f"{name}_token_id": f"{name}_token_index" for name in ("boi", "eoi", "image")
    }

    text_config: Gemma3TextConfig = None  # type: ignore[assignment]  # validate() makes the default
    vision_config: SiglipVisionConfig = None  # type: ignore[assignment]
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    image_token_index: int = 262144
    initializer_range: float = 0.02

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per decoder layer: how many tokens back a query sees, itself included; None sees all."""
        return self.text_config.windows

    @property
    def tokens_per_image(self) -> int:
        """How many tokens a picture takes."""
        return int(self.mm_tokens_per_image**0.5) ** 2

    def validate(self) -> None:
        """Makes configs of dicts and of nothing."""
        text_given: object = self.text_config
        vision_given: object = self.vision_config
        if isinstance(text_given, SiglipVisionConfig):
            text_given, vision_given = vision_given, text_given
        self.vision_config = _vision({} if vision_given is None else vision_given)
        text = _text({} if text_given is None else text_given, "gemma3_text", ("gemma3_text",))
        assert isinstance(text, Gemma3TextConfig)
        self.text_config = text
        self.check_positive("mm_tokens_per_image")
        self.check_between("initializer_range", 0, 1e6)
        self.check_token("boi_token_index", "eoi_token_index", "image_token_index")
