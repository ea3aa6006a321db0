"""compile=True gives the tokens of plain steps, and compiles once as long as shapes stay."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch
from compared import attentive
from torch._dynamo.utils import counters

from gemlens.caches.static import StaticCache
from gemlens.models import decoder

SETTINGS = {"max_new_tokens": 7, "eos_token_id": None, "suppress_tokens": [tiny.PICTURE]}


@lru_cache
def model(family: str) -> Any:
    made = tiny.fresh(family).requires_grad_(False)
    attentive(made)
    return made


def graphs() -> int:
    """How many were compiled so far."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile up to the compiler: all that could recompile, without the minutes that C++ takes."""
    torch.compiler.reset()
    compiled = torch.compile(decoder._in_order, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(decoder, "_compiled", lambda: compiled)
    yield
    torch.compiler.reset()


def check_a_call(family: str) -> None:
    """Two calls with different tokens of the same shape."""
    prompt = tiny.prompt(family, rows=2)
    before = graphs()
    plain = model(family).generate(**prompt, **SETTINGS)
    assert graphs() == before
    assert torch.equal(plain, model(family).generate(**prompt, **SETTINGS, compile=True))
    assert graphs() == before + 1
    other = tiny.prompt(family, rows=2, seed=1)
    expected = model(family).generate(**other, **SETTINGS)
    assert torch.equal(expected, model(family).generate(**other, **SETTINGS, compile=True))
    assert graphs() == before + 1


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("family", ["gemma", "gemma2", "paligemma2", "gemma3-pictures"])
def test_compiled_steps_give_the_tokens_of_plain_ones_and_are_compiled_once(family: str) -> None:
    check_a_call(family)


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_rows_that_end_at_different_steps_stay_in_the_graph(family: str) -> None:
    prompt = tiny.prompt(family, rows=3)
    length = prompt["input_ids"].shape[1]

    def ends_the_first_row(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return (torch.arange(len(ids)) == 0) & (ids.shape[1] >= length + 3)

    settings = {**SETTINGS, "stopping_criteria": [ends_the_first_row], "pad_token_id": 3}
    plain = model(family).generate(**prompt, **settings)
    assert plain[0, length + 3 :].tolist() == [3] * 4
    before = graphs()
    assert torch.equal(plain, model(family).generate(**prompt, **settings, compile=True))
    assert graphs() == before + 1


@pytest.mark.usefixtures("_traced_only")
def test_padding_beams_and_samples_compile_once_each() -> None:
    family = "gemma3-pictures"
    prompt = tiny.prompt(family, rows=2, length=11)
    mask = torch.ones_like(prompt["input_ids"])
    ids = prompt["input_ids"].roll(2, dims=1)
    ids[:, :2], mask[1, :2] = prompt["input_ids"][:, -2:], 0  # the second row has padding in front
    padded = {**prompt, "input_ids": ids, "attention_mask": mask}
    for way in (
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 4, "seed": 1},
        {"prefill_chunk_size": 3},
    ):
        before = graphs()
        plain = model(family).generate(**padded, **SETTINGS, **way)
        for _ in range(2):
            assert torch.equal(plain, model(family).generate(**padded, **SETTINGS, **way, compile=True))
        assert graphs() - before <= 1


@pytest.mark.usefixtures("_traced_only")
def test_a_cache_of_the_callers_stays_in_its_graph_over_turns() -> None:
    """Also where the ring of a sliding layer turns over, and after a reset."""
    gemma, room = model("gemma3"), 60
    cache = StaticCache(gemma.text_model(), room)
    before = graphs()
    for first in range(2):
        ids = tiny.words(1, 5, seed=first)
        for _ in range(3):
            plain = gemma.generate(ids, **SETTINGS)
            assert torch.equal(plain, gemma.generate(ids, **SETTINGS, compile=True, past_key_values=cache))
            ids = torch.cat([plain, tiny.words(1, 3, seed=9)], dim=1)
        cache.reset()
    assert graphs() - before <= 1


@pytest.mark.usefixtures("_traced_only")
def test_other_shapes_are_other_graphs() -> None:
    """So the tests above count what they mean to count."""
    before = graphs()
    for rows in (1, 2):
        model("gemma").generate(**tiny.prompt("gemma", rows=rows), **SETTINGS, compile=True)
    assert graphs() == before + 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler calls what torch gives up
@pytest.mark.parametrize("family", ["gemma3-pictures"])
def test_the_real_compiler_gives_the_tokens_of_plain_steps(family: str) -> None:
    torch.compiler.reset()
    check_a_call(family)
