"""Values that describe no model are refused with a sentence, wherever they come from; the six rope scalings."""

import re
from typing import Any

import pytest
import tiny

from gemlens import (
    AutoConfig,
    ConfigError,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    InputError,
    PaliGemmaConfig,
    SiglipVisionConfig,
)
from gemlens.models.configs.rope import RopeSpec

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
         "num_key_value_heads", "max_position_embeddings")  # fmt: skip
VISION_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
                "image_size", "patch_size")  # fmt: skip
NO_SIZES = (0, -1, 1.0, "8", None, True, [8], float("nan"))
NO_NUMBERS = ("1", None, True, float("nan"), float("inf"), [1.0])

FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 8.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "attention_factor": None},
    "longrope": {**FACTORS, "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": LLAMA3,
}


def assert_refused(kind: Any, field: str, value: Any) -> None:
    """By the constructor and from a file, with a sentence that names the field and the value."""
    base = {"vision": tiny.VISION, "text": tiny.TEXT}["vision" if kind is SiglipVisionConfig else "text"]
    base = {} if kind in (PaliGemmaConfig, Gemma3Config) else base
    for make in (lambda given: kind(**given), kind.from_dict):
        with pytest.raises(ConfigError) as caught:
            make({**base, field: value})
        said = str(caught.value)
        assert field in said
        assert re.fullmatch(r"\S.*[.?]", said), said
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", NO_SIZES, ids=str)
def test_sizes_of_decoders_are_positive_whole_numbers(field: str, value: Any) -> None:
    for kind in (GemmaConfig, Gemma2Config, Gemma3TextConfig):
        assert_refused(kind, field, value)


@pytest.mark.parametrize("field", VISION_SIZES)
@pytest.mark.parametrize("value", NO_SIZES, ids=str)
def test_sizes_of_picture_encoders_are_positive_whole_numbers(field: str, value: Any) -> None:
    assert_refused(SiglipVisionConfig, field, value)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *((kind, "rms_norm_eps") for kind in (GemmaConfig, Gemma2Config, Gemma3TextConfig)),
        *((kind, "rope_theta") for kind in (GemmaConfig, Gemma2Config, Gemma3TextConfig)),
        *((kind, "initializer_range") for kind in (GemmaConfig, Gemma3Config)),
        *((kind, "attention_dropout") for kind in (GemmaConfig, Gemma2Config, Gemma3TextConfig, SiglipVisionConfig)),
        (SiglipVisionConfig, "layer_norm_eps"),
        (Gemma2Config, "query_pre_attn_scalar"),
        (Gemma3TextConfig, "rope_local_base_freq"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [-1.0, *NO_NUMBERS], ids=str)
def test_numbers_are_finite_and_not_negative(kind: Any, field: str, value: Any) -> None:
    assert_refused(kind, field, value)


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping"])
@pytest.mark.parametrize("value", [0, -1.0, "30", True, float("inf")], ids=str)
def test_caps_are_positive_or_none(field: str, value: Any) -> None:
    for kind in (Gemma2Config, Gemma3TextConfig):
        assert_refused(kind, field, value)
        assert getattr(kind(**tiny.TEXT, **{field: None}), field) is None


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (GemmaConfig, "num_key_value_heads", 3),
        (GemmaConfig, "head_dim", 7),
        (GemmaConfig, "hidden_act", "tanh"),
        (GemmaConfig, "hidden_act", ["silu"]),
        (Gemma2Config, "hidden_activation", None),
        (SiglipVisionConfig, "hidden_act", "quick"),
        (SiglipVisionConfig, "num_attention_heads", 5),
        (SiglipVisionConfig, "patch_size", 9),
        (GemmaConfig, "rms_norm_eps", 0),
        (GemmaConfig, "attention_dropout", 1.5),
        (SiglipVisionConfig, "attention_dropout", 2),
        (GemmaConfig, "pad_token_id", tiny.VOCABULARY),
        (GemmaConfig, "pad_token_id", -2),
        (GemmaConfig, "pad_token_id", "0"),
        (GemmaConfig, "pad_token_id", 0.5),
        (GemmaConfig, "eos_token_id", "1"),
        (GemmaConfig, "eos_token_id", [1, "106"]),
        (GemmaConfig, "bos_token_id", 2.5),
        (GemmaConfig, "use_cache", "yes"),
        (GemmaConfig, "attention_bias", "false"),
        (SiglipVisionConfig, "vision_use_head", "no"),
        (GemmaConfig, "tie_word_embeddings", 1),
        (GemmaConfig, "return_dict", None),
        (GemmaConfig, "output_attentions", 0),
        (GemmaConfig, "output_hidden_states", "all"),
        (GemmaConfig, "dtype", "int8"),
        (GemmaConfig, "dtype", 16),
        (GemmaConfig, "problem_type", "regresion"),
        (GemmaConfig, "architectures", "GemmaForCausalLM"),
        (GemmaConfig, "num_labels", 0),
        (GemmaConfig, "num_labels", "3"),
        (GemmaConfig, "num_labels", True),
        (GemmaConfig, "id2label", ["cat"]),
        (GemmaConfig, "id2label", {"cat": 0}),
        (GemmaConfig, "label2id", ["cat"]),
        (Gemma2Config, "layer_types", ["full_attention"]),
        (Gemma2Config, "layer_types", ["full_attention", "chunked_attention", "full_attention"]),
        (Gemma2Config, "layer_types", "full_attention"),
        (Gemma2Config, "layer_types", [["full_attention"]] * 3),
        (Gemma2Config, "sliding_window", 0),
        (Gemma2Config, "sliding_window", None),
        (Gemma3TextConfig, "sliding_window", 4.0),
        (Gemma3TextConfig, "sliding_window_pattern", 0),
        (Gemma3TextConfig, "query_pre_attn_scalar", 0),
        (PaliGemmaConfig, "projection_dim", 0),
        (PaliGemmaConfig, "image_token_index", -1),
        (PaliGemmaConfig, "image_token_index", "257152"),
        (PaliGemmaConfig, "image_token_index", None),
        (PaliGemmaConfig, "image_token_index", 1.5),
        (PaliGemmaConfig, "text_config", "gemma"),
        (PaliGemmaConfig, "text_config", {"model_type": "llama"}),
        (PaliGemmaConfig, "text_config", {"model_type": "gemma3_text"}),
        (PaliGemmaConfig, "text_config", {"model_type": ["gemma"]}),
        (PaliGemmaConfig, "vision_config", 3),
        (PaliGemmaConfig, "vision_config", GemmaConfig(**tiny.TEXT)),
        (Gemma3Config, "text_config", GemmaConfig(**tiny.TEXT)),
        (Gemma3Config, "mm_tokens_per_image", 0),
        (Gemma3Config, "boi_token_index", -1),
        (Gemma3Config, "eoi_token_index", True),
        (Gemma3Config, "image_token_index", [5]),
        (GemmaConfig, "rope_scaling", "linear"),
        (GemmaConfig, "rope_scaling", {}),
        (GemmaConfig, "rope_scaling", {"rope_type": "su"}),
        (GemmaConfig, "rope_scaling", {"rope_type": ["linear"], "factor": 2.0}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear"}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": 0}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": "8"}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": True}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": None}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": float("nan")}),
        (GemmaConfig, "rope_scaling", {"rope_type": "linear", "factor": float("inf")}),
        (GemmaConfig, "rope_scaling", {"rope_type": "longrope", **FACTORS, "short_factor": [1.0] * 3}),
        (GemmaConfig, "rope_scaling", {"rope_type": "longrope", **FACTORS, "long_factor": ["a"] * 4}),
        (GemmaConfig, "rope_scaling", {"rope_type": "longrope", **FACTORS, "long_factor": [0.0] * 4}),
        (GemmaConfig, "rope_scaling", {"rope_type": "longrope", "short_factor": [1.0] * 4}),
        (GemmaConfig, "rope_scaling", {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}),
        (GemmaConfig, "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        (GemmaConfig, "rope_parameters", "linear"),
        (Gemma3TextConfig, "rope_parameters", {"full_attention": 3}),
        (Gemma3TextConfig, "rope_parameters", {"full_attention": {}, "sliding_attention": []}),
    ],
    ids=str,
)
def test_other_values_that_describe_no_model(kind: Any, field: str, value: Any) -> None:
    assert_refused(kind, field, value)


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        (GemmaConfig, "hiden_size", "hidden_size"),
        (GemmaConfig, "num_hidden_layer", "num_hidden_layers"),
        (GemmaConfig, "torch_dtypes", "torch_dtype"),
        (Gemma3TextConfig, "slidingwindow", "sliding_window"),
        (Gemma3Config, "image_tokens_index", "image_token_index"),
        (Gemma3Config, "num_label", "num_labels"),
        (PaliGemmaConfig, "text_configs", "text_config"),
        (SiglipVisionConfig, "image_sizes", "image_size"),
    ],
)
def test_a_misspelt_keyword_of_a_constructor_is_refused(kind: Any, wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no argument '{wrong}'; did you mean '{meant}'"):
        kind(**{wrong: 1})


def test_a_key_of_a_file_is_not_taken_for_a_misspelling() -> None:
    """Files carry settings of other programs, and of versions to come."""
    assert GemmaConfig.from_dict({"hidden_sizes": 3}).to_dict()["hidden_sizes"] == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoConfig.for_model("llama"),
        lambda: AutoConfig.from_dict({"model_type": "t5"}),
        lambda: AutoConfig.from_dict({}),
    ],
)
def test_an_unknown_model_type_is_refused_with_the_known_ones(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"does not know the model type .*; it knows gemma, gemma2, gemma3"):
        make()


def test_a_model_refuses_a_config_of_another_class() -> None:
    with pytest.raises(InputError, match="GemmaForCausalLM takes a GemmaConfig, but a Gemma2Config came"):
        GemmaForCausalLM(tiny.config("gemma2"))


class TestRope:
    """The six scalings, in the older and the newer form of files."""

    @pytest.mark.parametrize("kind", SCALINGS)
    @pytest.mark.parametrize("key", ["rope_type", "type"])
    def test_six_types_are_accepted_under_the_newer_and_the_older_key(self, kind: str, key: str) -> None:
        for family in tiny.TEXT_FAMILIES:
            config = tiny.text_config(family, rope_scaling={key: kind, **SCALINGS[kind]})
            assert config.rope_scaling == {"rope_type": kind, **SCALINGS[kind]}
            assert config.ropes[1].kind == kind
            assert type(config).from_dict(config.to_dict()) == config

    def test_only_full_layers_of_gemma_3_are_scaled(self) -> None:
        config = tiny.text_config("gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0})
        assert [rope.kind for rope in config.ropes] == ["default", "linear", "default"]
        assert [rope.theta for rope in config.ropes] == [100.0, 1e6, 100.0]

    def test_the_default_type_is_no_scaling(self) -> None:
        scaled = tiny.text_config("gemma", rope_scaling={"rope_type": "default"})
        assert scaled.ropes == tiny.text_config("gemma").ropes == (RopeSpec(10000.0, 8, 128),) * 3

    @pytest.mark.parametrize("kind", SCALINGS)
    def test_newer_files_fold_theta_and_scaling_into_one_dict(self, kind: str) -> None:
        older = tiny.text_config("gemma", rope_theta=5e4, rope_scaling={"rope_type": kind, **SCALINGS[kind]})
        newer = {"rope_theta": 5e4, "rope_type": kind, **SCALINGS[kind]}
        read = GemmaConfig.from_dict({**tiny.TEXT, "rope_parameters": newer})
        assert read.ropes == older.ropes
        assert read.rope_theta == 5e4
        assert "rope_parameters" not in read.to_dict()

    def test_newer_files_of_gemma_3_have_one_dict_per_layer_type(self) -> None:
        per_type = {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        }
        older = {
            "rope_theta": 2e6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 300.0,
        }
        types = {**tiny.TEXT, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        read = Gemma3TextConfig.from_dict({**types, "rope_parameters": per_type})
        assert read == Gemma3TextConfig(**types, **older)

    def test_a_newer_file_that_says_type_is_scaled_too(self) -> None:
        read = GemmaConfig.from_dict({**tiny.TEXT, "rope_parameters": {"type": "linear", "factor": 8.0}})
        assert read.ropes[0].kind == "linear"
