"""Rotary tables in all six scalings, and Gemma 3 with them: the reference's, within and beyond the trained length."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import TEXT, answers, batch, build, case_named, gap, text_config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

import gemlens
from gemlens.models.configs.rope import RopeSpec
from gemlens.models.rope import rotations

TRAINED = 32  # max_position_embeddings here
HALF = TEXT["head_dim"] // 2
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, short": {"rope_type": "yarn", "factor": 1.5, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn with its own factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn with two scales": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 3, "truncate": False},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0 + 0.1 * i for i in range(HALF)],
        "long_factor": [1.0 + 0.9 * i for i in range(HALF)],
    },
    "longrope with its own factor": {
        "rope_type": "longrope",
        "factor": 4.0,
        "attention_factor": 1.3,
        "short_factor": [1.0] * HALF,
        "long_factor": [2.0] * HALF,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
}


def configs(scaling: dict[str, Any] | None, **changes: Any) -> list[Any]:
    changes = {"max_position_embeddings": TRAINED, "rope_scaling": scaling, **changes}
    return [text_config(library, "Gemma3Text", **changes) for library in (transformers, gemlens)]


def full_rope(config: Any) -> RopeSpec:
    return next(rope for rope, kind in zip(config.ropes, config.layer_types, strict=True) if kind == "full_attention")


def assert_equal_tables(scaling: dict[str, Any] | None, length: int, theta: float, head_dim: int = 16) -> None:
    theirs, ours = configs(scaling, rope_theta=theta, head_dim=head_dim)
    positions = torch.arange(length).unsqueeze(0)
    expected = Gemma3RotaryEmbedding(theirs)(torch.zeros(1), positions)
    spec = full_rope(ours)
    for their_table, our_table in zip(expected, rotations(spec, positions, torch.float32), strict=True):
        assert gap(their_table, our_table) < 1e-5 * max(1, length // 64)  # one ulp of an angle grows with it


@pytest.mark.parametrize("theta", [100.0, 10_000.0, 1_000_000.0])
@pytest.mark.parametrize("length", [1, TRAINED - 1, TRAINED, TRAINED + 1, 5 * TRAINED, 4096])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_the_references(name: str, length: int, theta: float) -> None:
    assert_equal_tables(SCALINGS[name], length, theta)


@given(
    kind=st.sampled_from(["default", "linear", "dynamic", "yarn"]),
    factor=st.floats(1.0, 64.0),
    theta=st.floats(10.0, 1e7),
    length=st.integers(1, 400),
    half=st.integers(2, 64),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tables_of_any_numbers_are_the_references(
    kind: str, factor: float, theta: float, length: int, half: int
) -> None:
    assert_equal_tables({"rope_type": kind, "factor": factor}, length, theta, 2 * half)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_in_half_precision_are_rounded_from_float32_angles(dtype: torch.dtype) -> None:
    theirs, ours = configs(SCALINGS["linear"])
    positions = torch.arange(3000, 4000).unsqueeze(0)
    expected = Gemma3RotaryEmbedding(theirs)(torch.zeros(1, dtype=dtype), positions)
    assert all(map(torch.equal, expected, rotations(ours.ropes[5], positions, dtype)))


def test_the_older_key_type_is_refused_there_and_read_here() -> None:
    older, newer = {"type": "linear", "factor": 2.5}, {"rope_type": "linear", "factor": 2.5}
    with pytest.raises(KeyError, match="rope_type"):
        text_config(transformers, "Gemma3Text", rope_scaling=older)
    assert (
        text_config(gemlens, "Gemma3Text", rope_scaling=older).ropes
        == text_config(gemlens, "Gemma3Text", rope_scaling=newer).ropes
    )


def test_a_dynamic_table_shrinks_again_as_the_references_does() -> None:
    theirs, ours = configs(SCALINGS["dynamic"])
    table = Gemma3RotaryEmbedding(theirs)
    for length in (10, 100, 200, 10):
        positions = torch.arange(length).unsqueeze(0)
        expected = table(torch.zeros(1), positions)
        assert max(map(gap, expected, rotations(ours.ropes[5], positions, torch.float32))) < 1e-5


@pytest.mark.parametrize("text", [12, 2 * TRAINED])
@pytest.mark.parametrize("name", SCALINGS)
def test_gemma_3_scales_its_global_layers_as_the_reference_does(name: str, text: int) -> None:
    case = case_named("Gemma3ForCausalLM")
    pair = build(case, rope_scaling=dict(SCALINGS[name]), max_position_embeddings=TRAINED)
    plain = build(case, max_position_embeddings=TRAINED)
    rows = batch(case, "right", text=text)
    theirs, ours = answers(pair, rows, output_hidden_states=True)
    assert gap(theirs.logits, ours.logits, rows.real) < 1e-4
    without = plain.ours(**rows.ours(output_hidden_states=True))
    # Layers 0 to 4 are local and never scaled, layer 5 is global.
    assert all(map(torch.equal, ours.hidden_states[:6], without.hidden_states[:6]))
    unscaled = name == "default" or (name == "dynamic" and text < TRAINED)
    assert torch.equal(ours.hidden_states[6], without.hidden_states[6]) == unscaled


@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma2ForCausalLM"])
@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_gemma_1_and_2_scale_all_layers_as_the_reference_does(name: str, scaling: str) -> None:
    case = case_named(name)
    pair = build(case, rope_scaling=dict(SCALINGS[scaling]), max_position_embeddings=TRAINED)
    rows = batch(case, "right", text=2 * TRAINED)
    theirs, ours = answers(pair, rows)
    assert gap(theirs.logits, ours.logits, rows.real) < 1e-4
    assert gap(ours.logits, build(case).ours(**rows.ours()).logits, rows.real) > 0.01


def test_multimodal_gemma_3_scales_as_the_reference_does() -> None:
    case = case_named("Gemma3ForConditionalGeneration")
    pair = build(case, rope_scaling=dict(SCALINGS["linear"]))
    rows = batch(case, "left")
    theirs, ours = answers(pair, rows)
    assert gap(theirs.logits, ours.logits, rows.real) < 1e-4


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_are_rotated_as_many_are(name: str, dtype: torch.dtype) -> None:
    """To the last bit, wherever they stand, and after others; within the trained length and beyond."""
    spec, chance = full_rope(configs(SCALINGS[name])[1]), torch.Generator().manual_seed(0)
    for length in (TRAINED, 600):
        everywhere = rotations(spec, torch.arange(length).unsqueeze(0), dtype)
        for rows, count in [(1, 1), (2, 1), (1, 9), (2, 8), (1, 16)] * 4:
            begin = int(torch.randint(length - count, (1,), generator=chance))
            positions = torch.arange(begin, begin + count).expand(rows, -1).clone()
            positions[0, -1] = length - 1  # so that scalings by length see this length
            for whole, part in zip(everywhere, rotations(spec, positions, dtype), strict=True):
                assert part.dtype is dtype
                assert torch.equal(part, whole[0, positions])
