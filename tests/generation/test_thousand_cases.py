"""Over 1,000 cases made from seeds: whatever holds the text, however it is read and shown, the tokens are the same.

A scene is a batch with its settings; a case is a scene and a way to generate it. The truth of a scene is the batch
without a cache, and, where nothing is drawn, each of its rows alone without a cache.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch
from compared import RECORDED, assert_same_answers, attentive
from torch import Tensor

from gemlens.caches.dynamic import DynamicCache
from gemlens.caches.static import StaticCache

SCENES_PER_FAMILY, WAYS_PER_SCENE = 60, 3
WINDOWS = (4, 6)
FILLER = 0
CACHES = ("dynamic", "dynamic_full", "offloaded", "static", "hybrid", "offloaded_static", "two turns", "static turns")


@dataclass(frozen=True)
class Scene:
    """A batch and its settings.

    Args:
        family: of tests/models/tiny.py.
        window: of its sliding layers.
        units: per row: a word is its id, a picture is 0.
        new: tokens to generate.
        ends: end tokens.
        seed: of the draws; None for greedy.
        number: of the scene, from which its pictures are made.
    """

    family: str
    window: int
    units: tuple[tuple[int, ...], ...]
    new: int
    ends: tuple[int, ...]
    seed: int | None
    number: int

    def arguments(self) -> dict[str, Any]:
        """Of generate: ids padded on the left, their mask, and pictures."""
        rows = [[token for unit in row for token in spelled(unit)] for row in self.units]
        longest = max(map(len, rows))
        ids = torch.tensor([[FILLER] * (longest - len(row)) + row for row in rows])
        counts = [row.count(0) for row in self.units]
        pixels = tiny.pixels(sum(counts), seed=self.number) if sum(counts) else None
        given = {"input_ids": ids, "attention_mask": (ids != FILLER).long()}
        return given if pixels is None else {**given, "pixel_values": pixels}

    @property
    def settings(self) -> dict[str, Any]:
        drawn = {} if self.seed is None else {"do_sample": True, "temperature": 1.5, "top_k": 20, "seed": self.seed}
        ends = list(self.ends) or None
        words_only = {"suppress_tokens": [FILLER, tiny.PICTURE]}
        return {
            "max_new_tokens": self.new,
            "eos_token_id": ends,
            "pad_token_id": FILLER,
            **drawn,
            **words_only,
            **RECORDED,
        }

    def row(self, index: int) -> dict[str, Any]:
        """The arguments of one row alone."""
        alone = replace(self, units=(self.units[index],)).arguments()
        before, own = (sum(row.count(0) for row in self.units[:stop]) for stop in (index, index + 1))
        pixels = self.arguments().get("pixel_values")
        return alone if own == before else {**alone, "pixel_values": pixels[before:own]}


@dataclass(frozen=True)
class Way:
    """How a scene is generated.

    Args:
        cache: one of CACHES.
        chunk: `prefill_chunk_size`.
        streamed: whether a streamer listens.
    """

    cache: str
    chunk: int | None
    streamed: bool


def spelled(unit: int) -> list[int]:
    return [unit] if unit else [tiny.PICTURE] * tiny.TOKENS_PER_PICTURE


def scene(family: str, number: int) -> Scene:
    """Rows whose lengths lie around the window and its double."""
    dice = random.Random(f"{family} {number}")
    window = dice.choice(WINDOWS)
    around = [window - 1, window, window + 1, 2 * window, 2 * window + 1]
    rows = []
    for _ in range(dice.choice((1, 2, 3))):
        row = [dice.choice(tiny.WORDS) for _ in range(dice.choice(around))]
        for _ in range(dice.choice((0, 1, 2)) if family in tiny.PICTURE_FAMILIES else 0):
            row.insert(dice.randrange(len(row)), 0)
        rows.append(tuple(row))
    ends = tuple(dice.sample(list(tiny.WORDS), 4)) if dice.random() < 0.4 else ()
    seed = number if dice.random() < 0.4 else None
    return Scene(family, window, tuple(rows), dice.randint(window - 1, window + 2), ends, seed, number)


def ways(made: Scene) -> Iterator[Way]:
    dice = random.Random(repr(made))
    # PaliGemma's prompt is one block, so it has no turns of which the first could be cached alone.
    caches = CACHES[:-2] if made.family.startswith("paligemma") else CACHES
    for cache in dice.sample(caches, WAYS_PER_SCENE):
        yield Way(cache, dice.choice((None, None, 1, 2, 3, 5, 8)), dice.random() < 0.5)


SCENES = {family: [scene(family, number) for number in range(SCENES_PER_FAMILY)] for family in tiny.FAMILIES}


@lru_cache
def model(family: str, window: int) -> Any:
    made = tiny.fresh(family, window)
    attentive(made)
    return made


class Shown:
    """A streamer that keeps everything."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.parts.append(value if value.dim() == 2 else value.unsqueeze(1))

    def end(self) -> None:
        self.parts = [torch.cat(self.parts, dim=1)]


def generated(made: Scene, way: Way) -> Any:
    """The answer of one case, after a look at what the streamer was shown."""
    gemlens_model, arguments = model(made.family, made.window), made.arguments()
    if way.cache in ("two turns", "static turns"):
        arguments["past_key_values"] = held = begun(made, way.cache == "static turns")
        assert held.get_seq_length() > 0
    else:
        arguments["cache_implementation"] = way.cache
    listener = Shown()
    heard = {"streamer": listener} if way.streamed else {}
    said = gemlens_model.generate(**arguments, **made.settings, **heard, prefill_chunk_size=way.chunk)
    assert not way.streamed or torch.equal(listener.parts[0], said.sequences)
    return said


def begun(made: Scene, static: bool) -> DynamicCache | StaticCache:
    """A cache that holds all of the prompt but its last token, which is a word."""
    arguments, text = made.arguments(), model(made.family, made.window)
    cache = StaticCache(text.text_model(), 60) if static else DynamicCache(text.text_model())
    arguments = {name: values if name == "pixel_values" else values[:, :-1] for name, values in arguments.items()}
    with torch.no_grad():
        text(**arguments, past_key_values=cache)
    return cache


def assert_rows_alone(made: Scene, truth: Any) -> None:
    prompt = made.arguments()["input_ids"].shape[1]
    for index, together in enumerate(truth.sequences[:, prompt:]):
        row = made.row(index)
        alone = model(made.family, made.window).generate(**row, **made.settings, use_cache=False).sequences
        new = alone[0, row["input_ids"].shape[1] :]
        assert torch.equal(together[: len(new)], new), (made, index)
        assert (together[len(new) :] == FILLER).all(), (made, index)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_way_gives_the_tokens_of_no_cache_and_a_batch_those_of_its_rows(family: str, part: int) -> None:
    for made in SCENES[family][part::4]:
        truth = model(family, made.window).generate(**made.arguments(), **made.settings, use_cache=False)
        for way in ways(made):
            assert_same_answers(truth, generated(made, way), (made, way))
        if made.seed is None:
            assert_rows_alone(made, truth)


def test_there_are_more_than_1000_different_cases_of_every_kind() -> None:
    cases = {(made, way) for scenes in SCENES.values() for made in scenes for way in ways(made)}
    assert len(cases) > 1000
    kinds = [
        {way.cache for _, way in cases} == set(CACHES),
        {way.chunk for _, way in cases} == {None, 1, 2, 3, 5, 8},
        {way.streamed for _, way in cases} == {True, False},
        {len(made.units) for made, _ in cases} == {1, 2, 3},
        {made.window for made, _ in cases} == set(WINDOWS),
        {made.family for made, _ in cases} == set(tiny.FAMILIES),
        {row.count(0) for made, _ in cases for row in made.units} == {0, 1, 2},
        {bool(made.ends) for made, _ in cases} == {True, False},
        {made.seed is None for made, _ in cases} == {True, False},
        {len({sum(map(len, map(spelled, row))) for row in made.units}) > 1 for made, _ in cases} == {True, False},
    ]
    assert all(kinds), kinds
