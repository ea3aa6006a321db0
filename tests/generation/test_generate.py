"""The loop on a tiny model."""

import pytest
import torch

import gemlens
from gemlens.generation.generate import greedy_tokens


@pytest.fixture
def model() -> gemlens.Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = gemlens.Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4, initializer_range=0.5,
    )  # fmt: skip
    return gemlens.Gemma3ForCausalLM(config).eval()


def test_tokens_are_the_most_probable_ones_of_the_whole_text(model: gemlens.Gemma3ForCausalLM) -> None:
    prompt = torch.tensor([[2, 5, 9]])
    tokens = list(greedy_tokens(model, prompt, 10))
    whole = torch.cat([prompt, torch.tensor([tokens])], dim=1)
    with torch.no_grad():
        best = model(whole, use_cache=False).logits[0, 2:-1].argmax(-1)
    assert tokens == best.tolist()


def test_generation_ends_before_an_end_token(model: gemlens.Gemma3ForCausalLM) -> None:
    tokens = list(greedy_tokens(model, torch.tensor([[2, 5, 9]]), 10))
    stopped = list(greedy_tokens(model, torch.tensor([[2, 5, 9]]), 10, eos_token_ids={tokens[3]}))
    assert stopped == tokens[: tokens.index(tokens[3])]


def test_several_rows_are_refused(model: gemlens.Gemma3ForCausalLM) -> None:
    with pytest.raises(gemlens.InputError, match="one text"):
        next(greedy_tokens(model, torch.tensor([[2], [3]]), 1))


def test_logits_that_are_not_finite_end_with_a_sentence(model: gemlens.Gemma3ForCausalLM) -> None:
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(gemlens.InputError, match="not finite"):
        next(greedy_tokens(model, torch.tensor([[2]]), 1))
