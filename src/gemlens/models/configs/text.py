"""GemmaConfig, Gemma2Config and Gemma3TextConfig: the three text decoders in numbers.

One decoder reads them all (models/decoder.py). Where the three differ is said here, once per layer or once per model:
`windows`, `ropes`, `query_scale`, `softcaps`, and what is present at all: `sandwich_norms`, `query_key_norms`,
`embeds_are_scaled`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gemlens.models.configs.pretrained import ACTIVATIONS, PretrainedConfig
from gemlens.models.configs.rope import RopeSpec, checked_scaling, from_rope_parameters, rope_spec

FULL, SLIDING = "full_attention", "sliding_attention"


class TextConfig(PretrainedConfig):
    """What the three share: the shape of a decoder.

    Args:
        vocab_size: V, rows of the embedding.
        hidden_size: D, width of the residual stream.
        intermediate_size: F, width of the MLP.
        num_hidden_layers: L.
        num_attention_heads: N, query heads.
        num_key_value_heads: K, key and value heads; must divide N.
        head_dim: H, size of a head; independent of D / N.
        max_position_embeddings: the length that the model was made for.
        initializer_range: standard deviation of random weights.
        rms_norm_eps: epsilon of the norms.
        use_cache: default of the forward argument of that name.
        pad_token_id, eos_token_id, bos_token_id: special token ids; `eos_token_id` may be a list.
        rope_theta: base period of the rotary embedding.
        attention_bias: whether the attention's projections have biases.
        attention_dropout: dropout on attention weights in training.
    """

    sandwich_norms: ClassVar[bool] = False  # Gemma 2 and 3 also norm what attention and MLP give
    query_key_norms: ClassVar[bool] = False  # Gemma 3 norms queries and keys per head
    activation_field: ClassVar[str] = "hidden_activation"  # which field names the MLP's activation
    embeds_are_scaled: ClassVar[bool] = False  # Gemma 3 multiplies by sqrt(D) in the embedding, Gemma 1 and 2 after it

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    rope_theta: float = 10000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    rope_scaling: dict[str, Any] | None = None

    @property
    def activation(self) -> str:
        """Name of the MLP's activation."""
        return str(getattr(self, self.activation_field))

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before they meet the keys."""
        return float(self.head_dim**-0.5)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: how many tokens back a query sees, itself included; None sees all."""
        return (None,) * self.num_hidden_layers

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """Per layer: the rotation."""
        return (self._global_rope,) * self.num_hidden_layers

    @property
    def softcaps(self) -> tuple[float | None, float | None]:
        """The caps of attention scores and of final logits, `cap * tanh(x / cap)`; None for no cap."""
        return None, None

    @property
    def _global_rope(self) -> RopeSpec:
        return rope_spec(self.rope_theta, self.head_dim, self.max_position_embeddings, self.rope_scaling)

    def validate(self) -> None:
        """Sizes are positive, K divides N, heads can be rotated, names are known."""
        if (parameters := self.extra.pop("rope_parameters", None)) is not None:
            for name, value in from_rope_parameters(parameters).items():
                setattr(self, name, value)
        self.check_positive(
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        )  # fmt: skip
        self.check_positive_number("rms_norm_eps", "rope_theta")
        self.check_between("initializer_range", 0, 1e6)
        self.check_between("attention_dropout", 0, 1)
        self.check_flags("use_cache", "attention_bias")
        self.check_name(self.activation_field, ACTIVATIONS)
        kv = self.num_key_value_heads
        divides = self.num_attention_heads % kv == 0
        self.check(divides, "num_key_value_heads", kv, f"a divisor of {self.num_attention_heads}")
        self.check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, for rotary embedding")
        self.rope_scaling = checked_scaling(self.rope_scaling, self.head_dim)
        self._check_special_tokens()

    def _check_special_tokens(self) -> None:
        pad, ends = self.pad_token_id, self.eos_token_id
        if pad is not None:
            self.check_token("pad_token_id", least=-1)  # -1 is how some files say that there is none
            self.check(pad < self.vocab_size, "pad_token_id", pad, f"below {self.vocab_size}")
        if self.bos_token_id is not None:
            self.check_token("bos_token_id")
        if isinstance(ends, list):
            self.check(all(type(end) is int for end in ends), "eos_token_id", ends, "a token id or a list of them")
        elif ends is not None:
            self.check_token("eos_token_id", least=-1)


class GemmaConfig(TextConfig):
    """Gemma 1 (arXiv 2403.08295); defaults are those of the 7B model. See `TextConfig` for the shared arguments.

    Args:
        hidden_act: activation of the MLP; this is the one that counts.
        hidden_activation: kept as files have it; the reference stores and ignores it, so does gemlens.
    """

    model_type: ClassVar[str] = "gemma"
    activation_field: ClassVar[str] = "hidden_act"

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str | None = None
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    rope_scaling: dict[str, Any] | None = None


class _CappedConfig(TextConfig, ABC):
    """What Gemma 2 and 3 add: a query scale of its own, windows per layer, soft caps."""

    sandwich_norms: ClassVar[bool] = True

    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before they meet the keys."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: how many tokens back a query sees, itself included; None sees all."""
        return tuple(self.sliding_window if kind == SLIDING else None for kind in self.layer_types or ())

    @property
    def softcaps(self) -> tuple[float | None, float | None]:
        """The caps of attention scores and of final logits, `cap * tanh(x / cap)`; None for no cap."""
        return self.attn_logit_softcapping, self.final_logit_softcapping

    @abstractmethod
    def is_global(self, layer: int) -> bool:
        """Whether a layer sees everything when `layer_types` does not say."""

    def validate(self) -> None:
        """Besides the shared checks: one known type per layer, a window where a layer slides."""
        super().validate()
        depth = self.num_hidden_layers
        if self.layer_types is None:
            self.layer_types = [FULL if self.is_global(layer) else SLIDING for layer in range(depth)]
        types = self.layer_types
        self.check(isinstance(types, list) and len(types) >= depth, "layer_types", types, f"a list of {depth} names")
        self.layer_types = types = types[:depth]  # a model cut to its first layers keeps its file's list
        known = all(kind in (FULL, SLIDING) for kind in types)
        self.check(known, "layer_types", types, f"{FULL!r} or {SLIDING!r} for each layer")
        if SLIDING in types:
            self.check_positive("sliding_window")
        self.check_positive_number("query_pre_attn_scalar")
        self.check_positive_number("final_logit_softcapping", "attn_logit_softcapping", optional=True)


class Gemma2Config(_CappedConfig):
    """Gemma 2 (arXiv 2408.00118); defaults are those of the 2B model. See `TextConfig` for the shared arguments.

    Args:
        hidden_activation: activation of the MLP.
        query_pre_attn_scalar: queries are multiplied by its inverse square root.
        sliding_window: how many tokens back a sliding layer sees, itself included.
        layer_types: `"sliding_attention"` or `"full_attention"` per layer; by default they alternate, sliding first.
        final_logit_softcapping: cap of the logits.
        attn_logit_softcapping: cap of the attention scores.
    """

    model_type: ClassVar[str] = "gemma2"

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    rope_scaling: dict[str, Any] | None = None

    def is_global(self, layer: int) -> bool:
        """Every second layer sees everything."""
        return layer % 2 == 1


class Gemma3TextConfig(_CappedConfig):
    """Gemma 3's text decoder (arXiv 2503.19786). See `TextConfig` for the shared arguments.

    Args:
        hidden_activation: activation of the MLP.
        query_pre_attn_scalar: queries are multiplied by its inverse square root.
        sliding_window: how many tokens back a sliding layer sees, itself included.
        layer_types: `"sliding_attention"` or `"full_attention"` per layer; by default every sixth is full.
        final_logit_softcapping: cap of the logits.
        attn_logit_softcapping: cap of the attention scores.
        rope_scaling: scaling of the full layers' rotation; the six types are in configs/rope.py.
        rope_local_base_freq: base period of the sliding layers' rotation, which is never scaled.
        sliding_window_pattern: in older files: every n-th layer is full.
    """

    model_type: ClassVar[str] = "gemma3_text"
    query_key_norms: ClassVar[bool] = True
    embeds_are_scaled: ClassVar[bool] = True

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_local_base_freq: float = 10000.0
    sliding_window_pattern: int = 6

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """Per layer: the scaled global rotation, or the local one, which is never scaled."""
        local = rope_spec(self.rope_local_base_freq, self.head_dim, self.max_position_embeddings, None)
        everywhere = self._global_rope
        return tuple(local if kind == SLIDING else everywhere for kind in self.layer_types or ())

    def is_global(self, layer: int) -> bool:
        """Every n-th layer sees everything, n being `sliding_window_pattern`."""
        return (layer + 1) % self.sliding_window_pattern == 0

    def validate(self) -> None:
        """Besides the shared checks: the local rotation."""
        self.check_positive("sliding_window_pattern")
        self.check_positive_number("rope_local_base_freq")
        super().validate()
