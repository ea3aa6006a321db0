"""Which weights learn: parts of a model by name.

train_only(model, ["lora", "projector"])  ->  Learning(count=4_211_712, of=2_927_711_472, names=(...))
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens.checkpoints.pretrained import layout_of
from gemlens.errors import InputError
from gemlens.models.pretrained import PreTrainedModel

# Part -> (which of gemlens.checkpoints.names.Layout, what the rest of a weight's name is), as regular expressions.
_PARTS: Mapping[str, tuple[str, str]] = {
    "vision": ("vision", ".*"),
    "projector": ("projector", ".*"),
    "language": ("text", r"layers\..*|norm\..*"),
    "embeddings": ("text", r"embed_tokens\..*"),
    "head": ("head|score", ".*"),
    "norms": ("text", r".*norm\.weight"),
    "attention": ("text", r"layers\.\d+\.self_attn\.[qkvo]_proj\..*"),
    "mlp": ("text", r"layers\.\d+\.mlp\..*"),
}
_LORA = re.compile(r".*\.lora_[AB]")


@dataclass(frozen=True)
class Learning:
    """What learns.

    Args:
        count: numbers that do.
        of: numbers that the model has.
        names: of the weights that do; a shared one once.
    """

    count: int
    of: int
    names: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.count:,} of {self.of:,} numbers learn ({self.count / self.of:.2%})"


def train_only(model: PreTrainedModel, parts: Sequence[str]) -> Learning:
    """Lets the named parts learn and nothing else.

    vision, projector; language (the decoder's layers and last norm), and of it norms, attention (its projections), mlp;
    embeddings, head; lora (what `add_lora` put in, which no other part contains); all. Or the name of a module or of a
    weight, or a regular expression that is the whole name of weights. Where head and embedding are tied, either means
    both.

    Args:
        model: whose weights get `requires_grad`.
        parts: at least one.

    Returns:
        What learns.

    Raises:
        InputError: a part that the model has not, or weights that are rounded to integers.
    """
    if isinstance(parts, str) or not parts:
        raise InputError(f"The parts that learn are {parts!r}, but they must be a list of at least one name.")
    weights = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(weights[name]) for part in parts for name in _named(model, part, [*weights])}
    if rounded := [
        name for name, weight in weights.items() if id(weight) in wanted and is_traceable_wrapper_subclass(weight)
    ]:
        raise InputError(
            f"'{rounded[0]}' is rounded to integers and cannot learn; let only 'lora' learn, or load the model without "
            "quantization."
        )
    for weight in weights.values():
        weight.requires_grad_(id(weight) in wanted)
    every = dict(model.named_parameters())
    learning = {name: weight.numel() for name, weight in every.items() if weight.requires_grad}
    return Learning(sum(learning.values()), sum(weight.numel() for weight in every.values()), tuple(learning))


def _named(model: PreTrainedModel, part: str, names: Sequence[str]) -> list[str]:
    """Those of the weights that a part means."""
    layout = layout_of(type(model))
    places = {name: layout.split(name) or ("", name) for name in names}
    groups = {
        known: [name for name, (where, rest) in places.items()
                if re.fullmatch(place, where) and re.fullmatch(what, rest) and not _LORA.fullmatch(name)]
        for known, (place, what) in _PARTS.items()
    }  # fmt: skip
    groups |= {"lora": [name for name in names if _LORA.fullmatch(name)], "all": [*names]}
    if part in groups:
        found = groups[part]
    else:
        found = [name for name in names if f"{name}.".startswith(f"{part}.") or _is_pattern_of(part, name)]
    if not found:
        known = ", ".join(group for group, inside in groups.items() if inside)
        raise InputError(
            f"{part!r} is to learn, but no weight of this {type(model).__name__} is called so; known are {known}, "
            f"names of modules or weights, and regular expressions for whole names such as '{names[0]}'."
        )
    return found


def _is_pattern_of(part: str, name: str) -> bool:
    try:
        return re.fullmatch(part, name) is not None
    except re.error as error:
        raise InputError(f"{part!r} is neither a part of the model nor a regular expression ({error}).") from error
