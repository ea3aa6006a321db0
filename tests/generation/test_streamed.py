"""A streamer is shown the prompt and every token as it comes, and is told the end once, whatever happens."""

from typing import Any

import pytest
import torch
from compared import GEMMA_3, LOOKUP, SETTINGS, assistants, ours, pair, rows
from torch import Tensor

import gemlens

PROMPT = torch.tensor([[5, 6, 7]])


class Listener:
    """Keeps what it is shown."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.shown: list[Tensor] = []
        self.ends = 0
        self.fails_at = fails_at

    def put(self, value: Tensor) -> None:
        assert self.ends == 0
        if len(self.shown) == self.fails_at:
            raise RuntimeError("the listener is tired")
        self.shown.append(value.clone())

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"do_sample": True, "seed": 1},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True},
        LOOKUP,
        {"assistant_model": None},
    ],
    ids=lambda search: next(iter(search), "greedy"),
)
def test_what_is_shown_is_what_is_given_back(search: dict[str, Any]) -> None:
    if "assistant_model" in search:
        search = {"assistant_model": assistants(GEMMA_3).ours}
    batch, listener = rows(GEMMA_3, pictures=(0,)), Listener()
    given = ours(GEMMA_3, batch, **search, streamer=listener)
    ids = getattr(given, "sequences", given)
    assert torch.equal(listener.shown[0], batch.ids)
    assert all(tokens.shape == (1,) for tokens in listener.shown[1:])
    assert torch.equal(torch.cat([batch.ids[0], *listener.shown[1:]]), ids[0])
    assert listener.ends == 1
    assert torch.equal(ids, getattr(ours(GEMMA_3, batch, **search), "sequences", ours(GEMMA_3, batch, **search)))


def test_rows_and_samples_are_shown_side_by_side() -> None:
    batch = rows(GEMMA_3, padding="left")
    for copies in (1, 2):
        listener = Listener()
        sample = {"do_sample": True, "num_return_sequences": copies, "seed": 0}
        given = ours(GEMMA_3, batch, **sample, streamer=listener)
        assert torch.equal(listener.shown[0], batch.ids)
        assert torch.equal(torch.stack(listener.shown[1:], dim=1), given[:, batch.ids.shape[1] :])


def test_with_embeddings_there_are_no_ids_of_the_prompt_to_show() -> None:
    model, listener = pair(GEMMA_3).ours, Listener()
    given = model.generate(inputs_embeds=model.get_input_embeddings()(PROMPT), **SETTINGS, streamer=listener)
    assert listener.shown[0].shape == (1, 0)
    assert torch.equal(torch.cat(listener.shown[1:]), given[0])


def test_the_first_token_comes_before_the_second_is_read() -> None:
    order: list[str] = []

    class Narrator(Listener):
        def put(self, value: Tensor) -> None:
            order.append("shown")

    def reads(ids: Tensor, scores: Tensor) -> Tensor:
        order.append("read")
        return scores

    settings = {**SETTINGS, "max_new_tokens": 3, "eos_token_id": None, "logits_processor": [reads]}
    pair(GEMMA_3).ours.generate(PROMPT, **settings, streamer=Narrator())
    assert order == ["shown", "read", "shown", "read", "shown", "read", "shown"]


def fails_later(ids: Tensor, scores: Tensor) -> Tensor:
    if ids.shape[1] > 4:
        raise RuntimeError("it failed")
    return scores


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"logits_processor": [fails_later]}, RuntimeError),
        ({"max_length": 2, "max_new_tokens": None}, gemlens.InputError),
        ({"max_new_tokens": 1000}, gemlens.InputError),
        ({"num_beams": 2}, gemlens.InputError),
        ({"input_ids": torch.tensor([[500]])}, gemlens.InputError),
        ({"stop_strings": "a"}, gemlens.InputError),
        ({"past_key_values": gemlens.StaticCache(pair(GEMMA_3).ours.text_model(), 4)}, gemlens.InputError),
        ({"input_ids": None}, gemlens.InputError),
        ({"top_p": 7.0}, gemlens.InputError),
        ({"max_new_token": 3}, TypeError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_end_is_told_after_an_error_and_after_a_refusal(wrong: dict[str, Any], error: type[Exception]) -> None:
    """Else a thread that reads the streamer waits for ever."""
    listener = Listener()
    with pytest.raises(error):
        pair(GEMMA_3).ours.generate(**{"input_ids": PROMPT, **SETTINGS, **wrong}, streamer=listener)
    assert listener.ends == 1


@pytest.mark.parametrize("at", [0, 2])
def test_a_streamer_that_fails_itself_is_told_the_end(at: int) -> None:
    listener = Listener(fails_at=at)
    with pytest.raises(RuntimeError, match="the listener is tired"):
        pair(GEMMA_3).ours.generate(PROMPT, **SETTINGS, streamer=listener)
    assert (len(listener.shown), listener.ends) == (at, 1)


def test_beams_cannot_be_shown() -> None:
    with pytest.raises(gemlens.InputError, match="beams are chosen at the end; drop one"):
        pair(GEMMA_3).ours.generate(PROMPT, num_beams=2, streamer=Listener())
