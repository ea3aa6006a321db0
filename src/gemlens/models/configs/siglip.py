"""SiglipVisionConfig: the picture encoder (SigLIP, arXiv 2303.15343) in numbers."""

from typing import ClassVar

from gemlens.models.configs.pretrained import ACTIVATIONS, PretrainedConfig


class SiglipVisionConfig(PretrainedConfig):
    """A vision transformer over square patches. Defaults are those of SigLIP base, patch 16, 224 pixels.

    Args:
        hidden_size: width D of a patch's vector.
        intermediate_size: width F of the MLP.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads; must divide `hidden_size`.
        num_channels: colour channels of a picture.
        image_size: side of a picture in pixels.
        patch_size: side of a patch in pixels.
        hidden_act: activation of the MLP.
        layer_norm_eps: epsilon of the layer norms.
        attention_dropout: dropout on attention weights in training.
        vision_use_head: whether a pooling head is present; PaliGemma and Gemma 3 have none.
    """

    model_type: ClassVar[str] = "siglip_vision_model"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = True

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.patch_size

    def validate(self) -> None:
        """Sizes are positive, heads divide the width, a picture holds at least one patch."""
        self.check_positive(
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
            "image_size", "patch_size",
        )  # fmt: skip
        self.check_positive_number("layer_norm_eps")
        self.check_between("attention_dropout", 0, 1)
        self.check_name("hidden_act", ACTIVATIONS)
        self.check_flags("vision_use_head")
        heads = self.num_attention_heads
        self.check(self.hidden_size % heads == 0, "num_attention_heads", heads, f"a divisor of {self.hidden_size}")
        self.check(self.patch_size <= self.image_size, "patch_size", self.patch_size, f"at most {self.image_size}")
