"""The real Gemma 3 270M, from its GGUF file, against transformers with the same dequantised weights."""

from pathlib import Path

import gguf
import pytest
import torch
import transformers
from torch import Tensor

import gemlens
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 64, 16
TIE = 1e-3  # two logits this close may change places by rounding

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FILE.exists(), reason="real/ has no Gemma 3 270M; run `make real`"),
]


@pytest.fixture(scope="module")
def ours() -> gemlens.Gemma3ForCausalLM:
    return gemlens.Gemma3ForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name)


@pytest.fixture(scope="module")
def reference(ours: gemlens.Gemma3ForCausalLM) -> transformers.Gemma3ForCausalLM:
    """transformers' model, filled with what the gguf package makes of the file."""
    config = transformers.Gemma3TextConfig(**ours.config.to_dict())
    model = transformers.Gemma3ForCausalLM(config).eval()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(FILE).tensors}
    parameters = dict(model.named_parameters())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
            values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            parameter.copy_(values.view(parameter.shape) - (1 if name.endswith("norm.weight") else 0))
    return model


@pytest.fixture(scope="module")
def tokenizer() -> GemmaTokenizerFast:
    return AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)


@pytest.fixture(scope="module")
def prompts(tokenizer: GemmaTokenizerFast) -> Tensor:
    """[20, 64]: pieces of the license's English."""
    ids = tokenizer.encode((ROOT / "LICENSE").read_text())[1:]
    body = PROMPT_TOKENS - 1
    return torch.tensor([[2, *ids[start : start + body]] for start in range(0, PROMPTS * body, body)])


def test_every_weight_equals_the_oracles_dequantisation(
    ours: gemlens.Gemma3ForCausalLM, reference: transformers.Gemma3ForCausalLM
) -> None:
    expected = reference.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_greedy_continuations_are_the_references_except_at_ties(
    ours: gemlens.Gemma3ForCausalLM, reference: transformers.Gemma3ForCausalLM, prompts: Tensor
) -> None:
    """At each step both see the same tokens: the reference's choice must be ours, or as good within rounding."""
    for prompt in prompts:
        whole = ours.generate(prompt[None], max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False)
        chosen = whole[0, PROMPT_TOKENS:]
        with torch.inference_mode():
            logits = reference(input_ids=whole, use_cache=False).logits[0, PROMPT_TOKENS - 1 : -1]
        best = logits.max(dim=-1)
        behind = best.values - logits.gather(1, chosen[:, None])[:, 0]
        assert ((best.indices == chosen) | (behind < TIE)).all()


def test_logits_equal_the_references(
    ours: gemlens.Gemma3ForCausalLM, reference: transformers.Gemma3ForCausalLM, prompts: Tensor
) -> None:
    with torch.inference_mode():
        expected = reference(input_ids=prompts[:2], use_cache=False).logits
        given = ours(input_ids=prompts[:2], use_cache=False).logits
    assert (given - expected).abs().max() < 1e-3 * expected.abs().max()
