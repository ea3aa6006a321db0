"""Pairs of models with the same random weights, the reference's and ours, and batches that both can read.

Tiny, but nothing is degenerate: norms, biases and Gemma 3's zero-initialised projector hold sizeable random numbers,
all widths differ, soft caps bite, windows are shorter than the rows.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import gemlens

WINDOW = 8
IMAGE = 90  # the picture token of both families
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 20,
    "patch_size": 5,
    "vision_use_head": False,
}
TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
KINDS: dict[str, dict[str, Any]] = {  # of text configs: what each adds
    "Gemma": {"num_hidden_layers": 3},
    "Gemma2": {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 6.0,
    },
    "Gemma3Text": {"num_hidden_layers": 7, "sliding_window": WINDOW, "query_pre_attn_scalar": 20},
}
TOKENS_PER_PICTURE = {"paligemma": 16, "gemma3": 4}


@dataclass(frozen=True)
class Case:
    """One documented class, with one decoder.

    Args:
        model: name of the class, the same in both libraries.
        kind: of the text config.
        family: "" for text, or the name of the multimodal family.
    """

    model: str
    kind: str
    family: str = ""

    def __str__(self) -> str:
        return self.model if self.family != "paligemma" else f"{self.model}-{self.kind}"

    @property
    def has_head(self) -> bool:
        """Whether it gives logits of tokens."""
        return self.model.endswith(("CausalLM", "Generation"))

    @property
    def result(self) -> str:
        """Name of the field that holds the result."""
        return "last_hidden_state" if self.model.endswith("Model") else "logits"


TEXT_CASES = [
    Case("GemmaForCausalLM", "Gemma"),
    Case("Gemma2ForCausalLM", "Gemma2"),
    Case("Gemma3TextModel", "Gemma3Text"),
    Case("Gemma3ForCausalLM", "Gemma3Text"),
]
PALIGEMMA_CASES = [
    Case(model, kind, "paligemma")
    for model in ("PaliGemmaModel", "PaliGemmaForConditionalGeneration")
    for kind in ("Gemma", "Gemma2")
]
GEMMA3_CASES = [
    Case(model, "Gemma3Text", "gemma3")
    for model in ("Gemma3Model", "Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification")
]
CASES = TEXT_CASES + PALIGEMMA_CASES + GEMMA3_CASES
CACHED_CASES = [case for case in CASES if case.model != "Gemma3ForSequenceClassification"]
HEADS = [case for case in CASES if case.has_head]


def case_named(name: str) -> Case:
    """The case whose text form is `name`."""
    return next(case for case in CASES if str(case) == name)


@dataclass(frozen=True)
class Pair:
    """The reference's model and ours, in eval mode, with equal weights."""

    reference: nn.Module
    ours: nn.Module

    def to(self, dtype: torch.dtype) -> "Pair":
        """Both in another dtype, as if loaded in it.

        The reference keeps rotary frequencies in buffers that `.to` rounds and loading does not; see
        test_defects_numbers.py.
        """
        frequencies = {name: full for name, full in self.reference.named_buffers() if name.endswith("inv_freq")}
        self.reference.to(dtype)
        for name, full in frequencies.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.reference.get_submodule(module), leaf, full)
        self.ours.to(dtype)
        return self


def fill(model: nn.Module, seed: int = 1, scale: float = 1.0) -> None:
    """Sizeable random numbers in every parameter."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=numbers) * spread * scale)


def paired(model: str, theirs: Any, ours: Any, attention: str | None = None, **arguments: Any) -> Pair:
    """Both libraries' class of that name with equal weights.

    Args:
        model: the class.
        theirs: its config in the reference.
        ours: its config here.
        attention: implementation in the reference; eager by default, its only one that applies soft caps.
        **arguments: of our constructor.
    """
    theirs._attn_implementation = attention or "eager"
    reference = getattr(transformers, model)(theirs).eval()
    fill(reference)
    mine = getattr(gemlens, model)(ours, **arguments).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    return Pair(reference, mine)


def text_config(library: Any, kind: str, **changes: Any) -> Any:
    """A text config of either library."""
    return getattr(library, f"{kind}Config")(**{**TEXT, **KINDS[kind], **changes})


def vision_config(library: Any, **changes: Any) -> Any:
    """A vision config of either library."""
    return library.SiglipVisionConfig(**{**VISION, **changes})


def multimodal_config(library: Any, case: Case, vision: Any = None, **changes: Any) -> Any:
    """A multimodal config of either library; `changes` are of its text config."""
    vision = vision or vision_config(library)
    if case.family == "gemma3":
        text = text_config(library, case.kind, **changes)
        return library.Gemma3Config(
            text, vision, mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=91, eoi_token_index=92,
            num_labels=3,
        )  # fmt: skip
    # PaliGemma has no window, and the reference forgets the final soft cap there: test_defects_softcaps.py.
    own = {"sliding_window": 4096, "final_logit_softcapping": None} if case.kind == "Gemma2" else {}
    text = text_config(library, case.kind, **{**own, **changes})
    return library.PaliGemmaConfig(vision, text, image_token_index=IMAGE, projection_dim=text.hidden_size)


def build(case: Case, attention: str | None = None, implementation: str | None = None, **changes: Any) -> Pair:
    """The pair of a case; `changes` are of its text config, `implementation` is our attention."""
    configs = [
        multimodal_config(library, case, **changes) if case.family else text_config(library, case.kind, **changes)
        for library in (transformers, gemlens)
    ]
    return paired(case.model, *configs, attention=attention, attn_implementation=implementation)


@dataclass(frozen=True)
class Batch:
    """Rows that both can read.

    Args:
        ids: [B, S], 0 where padded.
        real: [B, S] bool.
        pixels: [I, 3, 20, 20] or None.
        answer: [B, S] bool, what is scored in training.
        family: as in `Case`.
    """

    ids: Tensor
    real: Tensor
    pixels: Tensor | None
    answer: Tensor
    family: str

    @property
    def labels(self) -> Tensor:
        """[B, S], -100 outside the answer."""
        return self.ids.masked_fill(~self.answer, -100)

    def ours(self, **more: Any) -> dict[str, Any]:
        """Our arguments: ids, mask and pictures."""
        pixels = {} if self.pixels is None else {"pixel_values": self.pixels}
        return {"input_ids": self.ids, "attention_mask": self.real.long(), **pixels, **more}

    def reference(self, **more: Any) -> dict[str, Any]:
        """The reference's arguments: also token types, without which its masks are wrong (test_defects_masks.py)."""
        types = {}
        if self.family == "gemma3":
            types = {"token_type_ids": (self.ids == IMAGE).long()}
        elif self.family == "paligemma" and "labels" in more:
            types = {"token_type_ids": self.answer.long()}
        return {**self.ours(), **types, **more}

    def row(self, index: int) -> "Batch":
        """One row without its padding."""
        kept = self.real[index]
        tokens = TOKENS_PER_PICTURE.get(self.family, 1)
        before, own = (int((rows == IMAGE).sum()) // tokens for rows in (self.ids[:index], self.ids[index]))
        pixels = None if self.pixels is None or own == 0 else self.pixels[before : before + own]
        cut = {name: getattr(self, name)[index : index + 1, kept] for name in ("ids", "real", "answer")}
        return replace(self, pixels=pixels, **cut)


def random_ids(count: int) -> list[int]:
    """Ordinary tokens."""
    return torch.randint(3, 80, (count,)).tolist()


def batch(case: Case, padding: str = "none", pictures: tuple[int, ...] = (1, 2, 0), text: int = 11) -> Batch:
    """One row per number of pictures.

    Args:
        case: whose family says how pictures stand in a row.
        padding: "left" or "right" fills shorter rows with padding, "none" with text.
        pictures: in each row; ignored by text models.
        text: tokens besides the pictures in the row with most of them; about half of them are the answer.
    """
    tokens = TOKENS_PER_PICTURE.get(case.family, 0)
    counts = pictures if case.family else (0,) * len(pictures)
    rows, answers = [], []
    for index, count in enumerate(counts):
        picture = [IMAGE] * tokens if case.family == "paligemma" else [91, *[IMAGE] * tokens, 92, *random_ids(2)]
        prompt, answer = random_ids(text // 2 - index), random_ids(text - text // 2 - index)
        head = [] if case.family == "paligemma" else random_ids(3)
        rows.append([*head, *picture * count, *prompt, *answer])
        # Text is scored from its second token on: the first one has nothing before it, or padding.
        answers.append(len(answer) if case.family == "paligemma" else len(rows[-1]) - 1)
    longest = max(map(len, rows))
    ids, real, scored = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        full = row + random_ids(longest - len(row)) if padding == "none" else row
        start = longest - len(full) if padding == "left" else 0
        ids[index, start : start + len(full)] = torch.tensor(full)
        real[index, start : start + len(full)] = 1
        scored[index, start + len(row) - answer : start + len(full)] = 1
    pixels = torch.randn(sum(counts), 3, 20, 20) if sum(counts) else None
    return Batch(ids, real.bool(), pixels, scored.bool() & (ids != IMAGE), case.family)


def gap(theirs: Tensor, ours: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, at the places [B, S] that count."""
    if where is not None:
        theirs, ours = theirs[where], ours[where]
    assert theirs.shape == ours.shape
    return (theirs - ours).abs().max().item()


@torch.no_grad()
def answers(pair: Pair, rows: Batch, **more: Any) -> tuple[Any, Any]:
    """What the reference and ours give for a batch."""
    return pair.reference(**rows.reference(**more)), pair.ours(**rows.ours(**more))
