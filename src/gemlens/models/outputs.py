"""What models give back: dataclasses that are also tuples of what they hold.

`out.logits`, `out["logits"]`, `out[0]`, `loss, logits = out` (in the documented order, None left out) all work.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from gemlens.caches.cache import Cache


class Logits(NamedTuple):
    """What may come after some tokens.

    Args:
        values: [B, S, V] of the whole vocabulary, or [B, S, 1] of the most probable token.
        ids: [B, S, 1], which token that is; None for the whole vocabulary.
    """

    values: Tensor
    ids: Tensor | None = None

    def after(self, place: int) -> "Logits":
        """Of one of the S tokens only, [B, C]."""
        return Logits(self.values[:, place], None if self.ids is None else self.ids[:, place])


class ModelOutput:
    """A dataclass whose fields that are not None form a tuple and a mapping."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Lets data-parallel and sharding wrappers find the tensors inside.
        pytree.register_pytree_node(cls, cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[list[Any], tuple[type, list[str]]]:
        return list(self.values()), (type(self), self.keys())

    @staticmethod
    def _unflatten(values: Any, context: tuple[type, list[str]]) -> Any:
        kind, names = context
        return kind(**dict(zip(names, values, strict=True)))

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]  # type: ignore[arg-type]

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that are not None."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return self.values()

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name, or the default where it is None or missing."""
        return getattr(self, name) if name in self else default

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.values()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Of SiglipVisionModel. P patches.

    Args:
        last_hidden_state: [I, P, D] after the last norm.
        pooler_output: [I, D] of the pooling head, where there is one.
        hidden_states: embeddings and every layer's output (before the last norm), [I, P, D] each.
        attentions: weights per layer, [I, N, P, P].
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Of a text model without a head.

    Args:
        last_hidden_state: [B, S, D] after the final norm.
        past_key_values: the cache.
        hidden_states: embeddings and every layer's output, the last one after the final norm, [B, S, D] each.
        attentions: weights per layer, [B, N, S, T].
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Of a text model with a head: `loss` (a number, with labels), `logits` [B, S, V], and as in the model without."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """Of a classifier: `loss` (a number, with labels), `logits` [B, num_labels], and as in the model without a head."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MultimodalModelOutputWithPast(ModelOutput):
    """Of PaliGemmaModel and Gemma3Model: a text model's, and `image_hidden_states` [I, tokens, D], projected."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


@dataclass
class MultimodalCausalLMOutputWithPast(ModelOutput):
    """Of the models with pictures and a head: a text model's, and `image_hidden_states` [I, tokens, D], projected."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


class PaligemmaModelOutputWithPast(MultimodalModelOutputWithPast):
    """Of PaliGemmaModel."""


class PaliGemmaCausalLMOutputWithPast(MultimodalCausalLMOutputWithPast):
    """Of PaliGemmaForConditionalGeneration."""


class Gemma3ModelOutputWithPast(MultimodalModelOutputWithPast):
    """Of Gemma3Model."""


class Gemma3CausalLMOutputWithPast(MultimodalCausalLMOutputWithPast):
    """Of Gemma3ForConditionalGeneration."""
