"""Configs other than the usual ones: shapes, biases, activations, caps, untied heads, RoPE bases."""

from typing import Any

import pytest
import torch
import transformers
from pairs import CASES, HEADS, Case, answers, batch, build, case_named, gap, multimodal_config

import gemlens

EXACT = 1e-4
TEXTS = ["GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"]
ACTIVATIONS = ["gelu_pytorch_tanh", "gelu_new", "gelu", "silu", "swish", "relu"]


def assert_equal(case: Case, padding: str = "left", **changes: Any) -> None:
    rows = batch(case, padding, text=26)
    theirs, ours = answers(build(case, **changes), rows)
    where = None if theirs[case.result].dim() == 2 else rows.real
    assert gap(theirs[case.result], ours[case.result], where) < EXACT


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (4, 4), (6, 3), (1, 1)])
@pytest.mark.parametrize("name", TEXTS)
def test_grouped_heads_are_the_references(name: str, heads: int, kv_heads: int) -> None:
    assert_equal(case_named(name), num_attention_heads=heads, num_key_value_heads=kv_heads)


@pytest.mark.parametrize("head_dim", [2, 8, 20, 64])
@pytest.mark.parametrize("name", TEXTS)
def test_head_sizes_other_than_width_by_heads_are_the_references(name: str, head_dim: int) -> None:
    assert_equal(case_named(name), head_dim=head_dim)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_biases_are_the_references(case: Case) -> None:
    pair = build(case, attention_bias=True)
    assert any(name.endswith("o_proj.bias") for name, _ in pair.ours.named_parameters())
    assert_equal(case, attention_bias=True)


@pytest.mark.parametrize("scale", [1, 16, 168, 256])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_query_scales_are_the_references(name: str, scale: int) -> None:
    assert_equal(case_named(name), query_pre_attn_scalar=scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", TEXTS)
def test_activations_are_the_references(name: str, activation: str) -> None:
    field = "hidden_act" if name == "GemmaForCausalLM" else "hidden_activation"
    assert_equal(case_named(name), **{field: activation})


def test_gemma_1_reads_hidden_act_and_ignores_hidden_activation_as_the_reference_does() -> None:
    assert_equal(case_named("GemmaForCausalLM"), hidden_act="relu", hidden_activation="gelu_pytorch_tanh")


@pytest.mark.parametrize("cap", [0.5, 30.0, None])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_final_soft_caps_are_the_references(name: str, cap: float | None) -> None:
    assert_equal(case_named(name), final_logit_softcapping=cap)


@pytest.mark.parametrize("cap", [0.5, 50.0, None])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "PaliGemmaForConditionalGeneration-Gemma2"])
def test_attention_soft_caps_are_the_references(name: str, cap: float | None) -> None:
    assert_equal(case_named(name), attn_logit_softcapping=cap)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_untied_heads_are_the_references(case: Case) -> None:
    pair = build(case, tie_word_embeddings=False)
    assert not torch.equal(pair.ours.lm_head.weight, pair.ours.get_input_embeddings().weight)
    assert_equal(case, tie_word_embeddings=False)
    tied = build(case).ours
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("name", ["PaliGemmaForConditionalGeneration-Gemma", "Gemma3ForConditionalGeneration"])
def test_the_text_config_says_whether_a_head_is_tied_as_in_the_reference(name: str, top: bool, text: bool) -> None:
    case = case_named(name)
    for library in (transformers, gemlens):
        config = multimodal_config(library, case, tie_word_embeddings=text)
        config.tie_word_embeddings = top
        model = getattr(library, case.model)(config)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == text


@pytest.mark.parametrize("changes", [{"rope_theta": 100.0}, {"rope_theta": 1e6}, {"rms_norm_eps": 0.1}], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_rope_bases_and_norm_epsilons_are_the_references(name: str, changes: dict[str, float]) -> None:
    assert_equal(case_named(name), **changes)


@pytest.mark.parametrize("base", [50.0, 1e4])
def test_local_rope_bases_are_the_references(base: float) -> None:
    case = case_named("Gemma3ForCausalLM")
    assert_equal(case, rope_local_base_freq=base)
    rows = batch(case, text=26)
    usual = build(case).ours(**rows.ours()).logits
    assert (gap(usual, build(case, rope_local_base_freq=base).ours(**rows.ours()).logits) > 0.01) == (base != 1e4)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "types", [[FULL] * 4, [SLIDING] * 4, [FULL, SLIDING, SLIDING, FULL]], ids=["all", "none", "mix"]
)
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_layer_types_are_the_references(name: str, types: list[str]) -> None:
    assert_equal(case_named(name), num_hidden_layers=4, layer_types=types)


@pytest.mark.parametrize("window", [1, 2, 25, 26, 27, 4096])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"])
def test_windows_of_any_size_are_the_references(name: str, window: int) -> None:
    assert_equal(case_named(name), sliding_window=window)


@pytest.mark.parametrize("pattern", [1, 2, 3])
def test_the_older_sliding_window_pattern_is_the_references(pattern: int) -> None:
    assert_equal(case_named("Gemma3ForCausalLM"), sliding_window_pattern=pattern)


def test_a_model_cut_to_its_first_layers_is_the_references() -> None:
    assert_equal(case_named("Gemma3ForCausalLM"), num_hidden_layers=2)
    assert_equal(case_named("GemmaForCausalLM"), num_hidden_layers=1)
