"""Requests that cannot be met are refused before anything is read, in a sentence that says what to do."""

from typing import Any

import pytest
import torch
from compared import GEMMA_3, PALIGEMMA, build, calls, pair

import gemlens
from gemlens.caches.offloaded import OffloadedStaticCache

PROMPT = torch.tensor([[5, 6, 7]])
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": None}, "There is nothing to continue: pass input_ids, or inputs_embeds"),
    ({"input_ids": [[5, 6]]}, "input_ids have list, but must be whole numbers of shape"),
    ({"input_ids": torch.tensor([5, 6])}, r"input_ids have shape \(2,\) and dtype torch.int64"),
    ({"input_ids": torch.ones(1, 3)}, r"input_ids have shape \(1, 3\) and dtype torch.float32"),
    ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "The prompt is empty; begin with the tokenizer's <bos>"),
    ({"input_ids": torch.tensor([[5, 99]])}, "input_ids hold 99, but the vocabulary ends at 98"),
    ({"attention_mask": torch.ones(1, 5)}, r"attention_mask has shape \(1, 5\), but must have .*: \[1, 3\]"),
    ({"attention_mask": torch.ones(1, 1, 3, 3)}, r"attention_mask has shape \(1, 1, 3, 3\)"),
    ({"attention_mask": [[1, 1, 1]]}, "attention_mask has type list"),
    ({"max_length": 3}, "max_length is 3, but the prompt alone has 3 tokens; raise it, or pass max_new_tokens"),
    (
        {"max_new_tokens": 126},
        "3 tokens and 126 new ones make 129, but the model reads at most 128 .* ask for 125 or f",
    ),
    ({"input_ids": torch.full((1, 128), 5)}, "128 tokens and 1 new ones make 129, .* ask for 0 or fewer"),
    ({"eos_token_id": [1, 99]}, "The settings name token 99, but the vocabulary ends at 98"),
    ({"pad_token_id": 100}, "The settings name token 100"),
    ({"suppress_tokens": [7, 1000]}, "The settings name token 1000"),
    ({"begin_suppress_tokens": [99]}, "The settings name token 99"),
    ({"bad_words_ids": [[3], [4, 99]]}, "The settings name token 99"),
    ({"forced_bos_token_id": 99}, "The settings name token 99"),
    ({"forced_eos_token_id": [99]}, "The settings name token 99"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, but there are 2 beams; raise num_beams"),
    ({"num_return_sequences": 2}, "greedy answers are all alike; pass do_sample=True"),
    ({"num_return_sequences": 2, "do_sample": True, "temperature": 0}, "greedy answers are all alike"),
    ({"pixel_values": torch.zeros(1, 3, 20, 20)}, "Gemma3ForCausalLM reads text only, but pixel_values came"),
    ({"token_type_ids": torch.zeros(1, 3)}, "Gemma3ForCausalLM reads text only, but token_type_ids came"),
    ({"seed": 1, "generator": torch.Generator()}, "seed and generator both say how tokens are drawn"),
    ({"seed": 1.5}, "seed is 1.5, but it must be a whole number"),
    ({"compile": True, "cache_implementation": "dynamic"}, "compile=True needs a static cache"),
    ({"compile": True, "cache_implementation": "offloaded_static"}, "compile=True needs a static cache"),
    ({"compile": True, "use_cache": False}, "compile=True needs a static cache"),
    ({"compile": True, "prompt_lookup_num_tokens": 2}, "compile=True needs a static cache"),
    (
        {"compile": True, "return_dict_in_generate": True, "output_hidden_states": True},
        "compile=True .* gives no attentions and hidden states",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "sentence"), REFUSED, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_it_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(gemlens.InputError, match=sentence):
        pair(GEMMA_3).ours.generate(**{"input_ids": PROMPT, **wrong})


def test_nothing_is_read_before_a_refusal() -> None:
    model = build(GEMMA_3).ours
    read = calls(model)
    for wrong, _ in REFUSED:
        with pytest.raises(gemlens.InputError):
            model.generate(**{"input_ids": PROMPT, **wrong})
    assert read == []


def test_caches_that_cannot_be_compiled_are_refused() -> None:
    model = pair(GEMMA_3).ours
    for cache in (gemlens.DynamicCache(), OffloadedStaticCache(model.text_model(), 100)):
        with pytest.raises(gemlens.InputError, match="compile=True needs a static cache"):
            model.generate(PROMPT, compile=True, past_key_values=cache)
    assert model.generate(PROMPT, compile=True, disable_compile=True, max_new_tokens=2).shape == (1, 5)


def test_a_request_may_take_the_last_place() -> None:
    model = pair(GEMMA_3).ours
    settings = {"eos_token_id": None, "attention_mask": torch.ones(1, 120, dtype=torch.long)}
    long = torch.full((1, 120), 5)
    assert model.generate(long, max_new_tokens=8, **settings).shape == (1, 128)
    assert model.generate(long, max_length=128, **settings).shape == (1, 128)
    assert model.generate(long, **settings).shape == (1, 128)  # 20 new ones, if there is room


def test_padding_is_told_from_the_padding_token_unless_that_ends_answers() -> None:
    model = pair(GEMMA_3).ours
    padded, alone = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[5, 6]])
    settings = {"max_new_tokens": 5, "eos_token_id": 1}
    told = model.generate(padded, pad_token_id=0, **settings)
    assert torch.equal(told[:1, 4:], model.generate(alone, pad_token_id=0, **settings)[:, 2:])
    as_text = model.generate(padded, **{**settings, "eos_token_id": [0, 1]}, pad_token_id=0)
    mask = {"attention_mask": torch.ones_like(padded)}
    assert torch.equal(as_text, model.generate(padded, **mask, **{**settings, "eos_token_id": [0, 1]}, pad_token_id=0))
    assert not torch.equal(as_text[0], told[0])


def test_pictures_in_the_answers_types_are_refused() -> None:
    ids, types = torch.tensor([[*[90] * 16, 5]]), torch.ones(1, 17, dtype=torch.long)
    with pytest.raises(gemlens.InputError, match="token_type_ids are 1 for picture tokens"):
        pair(PALIGEMMA).ours.generate(ids, pixel_values=torch.zeros(1, 3, 20, 20), token_type_ids=types)
