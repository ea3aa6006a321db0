"""The one table of foreign tensor names: what files call a weight -> what our models call it, and back.

Files come in three layouts (the published one, the newer one of transformers in memory, and files of bare models);
our classes differ only in the prefix of each part. So a file's name is split into a part and a rest, once, and the rest
is joined to the prefix that the part has in the model at hand:

    language_model.model.norm.weight  ->  ("text", "norm.weight")  ->  model.language_model.norm.weight
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

from gemlens.errors import CheckpointError


@dataclass(frozen=True)
class Layout:
    """The prefix of each part in a model (or in a file); None where there is no such part."""

    text: str | None = None
    vision: str | None = None
    projector: str | None = None
    head: str | None = None
    score: str | None = None

    def split(self, name: str) -> tuple[str, str] | None:
        """The part that a name of this layout belongs to, and the rest; None if it belongs to none."""
        prefixes = {field.name: getattr(self, field.name) for field in fields(self)}
        held = [part for part, prefix in prefixes.items() if prefix is not None and name.startswith(prefix)]
        if not held:
            return None
        part = max(held, key=lambda part: len(prefixes[part]))  # the bare text model's prefix is ""
        return part, name.removeprefix(prefixes[part])

    def join(self, part: str, rest: str) -> str | None:
        """The reverse of `split`; None if there is no such part."""
        prefix: str | None = getattr(self, part, None)
        return None if prefix is None else prefix + rest


_VISION, _PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."

# One layout per kind of model class.
MULTIMODAL = Layout("model.language_model.", f"model.{_VISION}", f"model.{_PROJECTOR}", head="lm_head.")
MULTIMODAL_CLASSIFIER = Layout("model.language_model.", f"model.{_VISION}", f"model.{_PROJECTOR}", score="score.")
MULTIMODAL_BASE = Layout("language_model.", _VISION, _PROJECTOR)
TEXT = Layout("model.", head="lm_head.")
TEXT_BASE = Layout("")
VISION = Layout(vision="vision_model.")

# What google's files and every version of transformers, llama.cpp and vLLM write or read for multimodal models.
PUBLISHED = Layout("language_model.model.", _VISION, _PROJECTOR, "language_model.lm_head.", "score.")

# All prefixes in the wild; the first that fits wins, so a longer one stands before those that it contains.
_FOREIGN = (
    ("model.language_model.", "text"),
    ("language_model.model.", "text"),
    ("language_model.lm_head.", "head"),
    ("language_model.", "text"),
    (f"model.{_VISION}", "vision"),
    (_VISION, "vision"),
    ("vision_model.", "vision"),
    ("model.vision_tower.", "vision"),  # transformers 5.6 and later have no "vision_model" in memory
    ("vision_tower.", "vision"),
    (f"model.{_PROJECTOR}", "projector"),
    (_PROJECTOR, "projector"),
    ("lm_head.", "head"),
    ("score.", "score"),
    # The rest of a whole SigLIP, a part that none of our models has.
    ("text_model.", "siglip_text"),
    ("logit_scale", "siglip_text"),
    ("logit_bias", "siglip_text"),
    ("model.", "text"),
)
# Files of a bare model, whose parts have no prefix at all.
_BARE_TEXT = ("embed_tokens.", "layers.", "norm.")
_BARE_VISION = ("embeddings.", "encoder.", "post_layernorm.", "head.")
# Buffers that old files stored and that every model computes itself.
_COMPUTED = (".position_ids", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Match:
    """How a file's names fit a layout.

    Attributes:
        names: parameter name -> the file's name for it.
        ignored: names of the file that belong to parts that the model does not have, such as the vision tower of a
            multimodal checkpoint that a text model is loaded from.
        unknown: names of the file that belong to no known part.
    """

    names: dict[str, str]
    ignored: frozenset[str]
    unknown: frozenset[str]


def canonical(name: str) -> tuple[str, str] | None:
    """The part and the rest of a file's tensor name in whatever layout; None if no layout has such a name."""
    if name.endswith(_COMPUTED):
        return "computed", name
    for prefix, part in _FOREIGN:
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    if name.startswith(_BARE_TEXT):
        return "text", name
    return ("vision", name) if name.startswith(_BARE_VISION) else None


def match(file_names: Iterable[str], layout: Layout) -> Match:
    """Finds for each name of a file the parameter that it fills in a model of the given layout.

    Raises:
        CheckpointError: the file holds one weight under two names.
    """
    names: dict[str, str] = {}
    ignored, unknown = set(), set()
    for file_name in file_names:
        if (found := canonical(file_name)) is None:
            unknown.add(file_name)
        elif (name := layout.join(*found)) is None:
            ignored.add(file_name)
        elif names.setdefault(name, file_name) != file_name:
            raise CheckpointError(
                f"The file holds the weight '{name}' twice, as '{names[name]}' and '{file_name}'; "
                "remove the one that does not belong to this model."
            )
    return Match(names, frozenset(ignored), frozenset(unknown))


def published_name(name: str, layout: Layout) -> str:
    """What a parameter of a model of this layout is called in the file that we write.

    Multimodal models are written in the published layout, all others as they are. A name that belongs to no part, of a
    module that somebody added, stays as it is: saving must not fail after a day of training.
    """
    found = layout.split(name)
    if found is None or layout.projector is None:
        return name
    return PUBLISHED.join(*found) or name


def some_of(items: Collection[str], limit: int = 20) -> str:
    """Items as an error message lists them: the first ones, then how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(sorted(items)[:limit]) + more


def quoted(names: Collection[str], limit: int = 20) -> str:
    """Names as an error message lists them, each in quotes."""
    return some_of([f"'{name}'" for name in names], limit)
