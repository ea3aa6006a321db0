"""Rows of a batch, cut into calls: what the tests of both caches read with, and the oracle that knows no cache.

Rows differ in length; padding stands anywhere in them. The oracle is each row on its own, without padding, in one call
without a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tiny
import torch
from hypothesis import strategies as st
from torch import Tensor

FAMILIES = tiny.FAMILIES
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@dataclass(frozen=True)
class Calls:
    """A batch and how it is read.

    Args:
        ids: [B, S]; where a row is padded, anything.
        real: [B, S] bool.
        pictures: [B, S]; at the first token of a picture its number, else -1.
        cuts: slots at which calls end, the last one S. The first call holds PaliGemma's whole prompt.
    """

    ids: Tensor
    real: Tensor
    pictures: Tensor
    cuts: tuple[int, ...]

    def rows(self, index: Sequence[int] | Tensor) -> "Calls":
        """Some of the rows."""
        chosen = torch.as_tensor(index)
        return replace(self, ids=self.ids[chosen], real=self.real[chosen], pictures=self.pictures[chosen])

    def arguments(self, start: int, end: int) -> dict[str, Tensor]:
        """Of the call that reads the slots from `start` to `end`."""
        shown = self.pictures[:, start:end]
        pixels = [tiny.pixels(1, seed=int(number)) for number in shown[shown >= 0]]
        # Rows without padding are read without a mask, which is a path of its own.
        mask = {} if self.real[:, :end].all() else {"attention_mask": self.real[:, :end].long()}
        return {"input_ids": self.ids[:, start:end], **mask, **({"pixel_values": torch.cat(pixels)} if pixels else {})}

    def answers(self, model: Any) -> dict[str, Tensor]:
        """PaliGemma's token types for all slots at once: without a cache nothing else says where the answer begins."""
        if model.config.model_type != "paligemma":
            return {}
        types = torch.zeros_like(self.ids)
        types[:, self.cuts[0] :] = 1
        return {"token_type_ids": types}

    def with_cache(self, model: Any, cache: Any, first: int = 0) -> Tensor:
        """[B, S', V] logits of all calls from the one numbered `first` on."""
        bounds = list(zip((0, *self.cuts), self.cuts, strict=False))[first:]
        with torch.no_grad():
            outputs = [model(**self.arguments(*bound), past_key_values=cache) for bound in bounds]
        assert all(output.past_key_values is cache for output in outputs)
        return torch.cat([output.logits for output in outputs], dim=1)

    def at_once(self, model: Any) -> Tensor:
        """[B, S, V] logits of one call without a cache, with padding."""
        with torch.no_grad():
            whole = self.arguments(0, self.ids.shape[1])
            return model(**whole, **self.answers(model), use_cache=False).logits

    def alone(self, model: Any, row: int) -> Tensor:
        """[1, real tokens, V] logits of one row without its padding."""
        kept = self.real[row]
        cut = int(kept[: self.cuts[0]].sum())
        bare = Calls(
            self.ids[row : row + 1, kept],
            self.real[row : row + 1, kept],
            self.pictures[row : row + 1, kept],
            (cut, int(kept.sum())),
        )
        return bare.at_once(model)

    def assert_right(self, model: Any, logits: Tensor, start: int = 0) -> None:
        """[B, S - start, V] logits of the slots from `start` on are those of the rows on their own."""
        assert logits.isfinite().all()
        for row in range(len(self.ids)):
            expected = self.alone(model, row)[0, int(self.real[row, :start].sum()) :]
            torch.testing.assert_close(logits[row, self.real[row, start:]], expected, **TOLERANCE)


def _stretch(draw: st.DrawFn, rows: list[list[str]], padded: bool) -> list[list[str]]:
    """Rows of units of equal width, in tokens, by padding between units."""
    width = {"word": 1, "picture": tiny.TOKENS_PER_PICTURE}
    longest = max(sum(width[unit] for unit in row) for row in rows)
    longest += draw(st.integers(0, 2)) if padded else 0
    result = []
    for row in rows:
        missing = longest - sum(width[unit] for unit in row)
        places = [draw(st.integers(0, len(row))) if padded else len(row) for _ in range(missing)]
        filler = "padding" if padded else "word"
        spread = [[*[filler] * places.count(place), unit] for place, unit in enumerate(row)]
        result.append([unit for units in spread for unit in units] + [filler] * places.count(len(row)))
    return result


@st.composite
def calls(draw: st.DrawFn, family: str, window: int) -> Calls:
    """Rows whose lengths lie around the window, where it begins to forget, and around its double."""
    padded, with_prompt = draw(st.booleans()), family.startswith("paligemma")
    count = draw(st.integers(1, 3 if padded else 2))
    lengths = st.sampled_from(sorted({max(1, n) for n in (window - 1, window, window + 1, 2 * window, 2 * window + 1)}))
    pictures = st.integers(0, 2) if family in tiny.PICTURE_FAMILIES else st.just(0)
    stretches = []
    for stretch in ("prompt", "rest"):
        rows = []
        for _ in range(count):
            words = ["word"] * (draw(st.integers(1, 4)) if stretch == "prompt" and with_prompt else draw(lengths))
            for _ in range(draw(pictures) if stretch == "prompt" or not with_prompt else 0):
                words.insert(draw(st.integers(0, len(words))), "picture")
            rows.append(words)
        stretches.append(_stretch(draw, rows, padded))
    # PaliGemma's prompt is read in one call; without a prompt the first stretch may be cut too.
    prompt = _tokens(stretches[0][0])
    units = [first + second for first, second in zip(*stretches, strict=True)]
    return _batch(units, draw(_cuts(units, prompt if with_prompt else 0)))


@st.composite
def _cuts(draw: st.DrawFn, units: list[list[str]], prompt: int) -> tuple[int, ...]:
    length = _tokens(units[0])
    inside: set[int] = set()
    for row in units:
        start = 0
        for unit in row:
            size = _tokens([unit])
            inside |= set(range(start + 1, start + size))
            start += size
    allowed = [slot for slot in range(prompt + 1, length) if slot not in inside]
    some = draw(st.sets(st.sampled_from(allowed), max_size=5)) if allowed else set()
    steps = set(allowed[-3:]) if draw(st.booleans()) else set()  # as generation reads: one token at a time
    return tuple(sorted({*some, *steps, length} | ({prompt} if prompt else set())))


def _tokens(units: list[str]) -> int:
    return sum(tiny.TOKENS_PER_PICTURE if unit == "picture" else 1 for unit in units)


def _batch(units: list[list[str]], cuts: tuple[int, ...]) -> Calls:
    shape = len(units), _tokens(units[0])
    ids, real, pictures = tiny.words(*shape, seed=sum(shape)), torch.ones(shape, dtype=torch.bool), -torch.ones(shape)
    shown = 0
    for number, row in enumerate(units):
        slot = 0
        for unit in row:
            size = _tokens([unit])
            if unit == "padding":
                real[number, slot] = False
            if unit == "picture":
                ids[number, slot : slot + size] = tiny.PICTURE
                pictures[number, slot] = shown
                shown += 1
            slot += size
    return Calls(ids, real, pictures, cuts)


def text(rows: int, length: int, cuts: Sequence[int] = (), padding: Sequence[tuple[int, int]] = ()) -> Calls:
    """Words, with padding at the given (row, slot) places."""
    batch = _batch([["word"] * length] * rows, (*cuts, length))
    for row, slot in padding:
        batch.real[row, slot] = False
    return batch
