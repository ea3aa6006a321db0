"""Configs against the reference's: arguments, defaults and names; what follows from the fields."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from config_pairs import ADDED, NAMES, assert_equal_values, both, changed, each_class

import gemlens
from gemlens import (
    ConfigError,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

FULL, SLIDING = "full_attention", "sliding_attention"


def arguments(kind: Any) -> list[tuple[str, Any]]:
    parameters = inspect.signature(kind).parameters.values()
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [(each.name, each.default) for each in parameters if each.kind is named]


class TestReference:
    """The reference's classes and ours are the same to a caller."""

    @each_class
    def test_documented_arguments_stand_in_the_documented_order_with_the_documented_defaults(self, name: str) -> None:
        theirs, ours = map(arguments, both(name))
        added = ADDED.get(name, [])
        assert ours[: len(theirs)] == theirs
        assert [argument for argument, _ in ours[len(theirs) :]] == added

    @each_class
    def test_defaults_have_the_reference_values(self, name: str) -> None:
        theirs, ours = both(name)
        assert_equal_values(theirs(), ours())

    @each_class
    def test_arguments_may_be_given_by_place(self, name: str) -> None:
        theirs, ours = both(name)
        values = [default for _, default in arguments(theirs)]
        assert_equal_values(theirs(*values), ours(*values))

    def test_a_place_means_the_documented_argument(self) -> None:
        assert GemmaConfig(99, 32).hidden_size == 32
        assert SiglipVisionConfig(32, 64, 2, 4).num_attention_heads == 4

    def test_too_many_or_twice_given_arguments_are_refused(self) -> None:
        with pytest.raises(TypeError, match="takes 11 arguments but 12"):
            SiglipVisionConfig(*range(12))
        with pytest.raises(TypeError, match=r"'hidden_size' twice"):
            SiglipVisionConfig(32, hidden_size=32)

    @each_class
    def test_settings_of_the_reference_that_mean_nothing_here_are_kept_and_not_refused(self, name: str) -> None:
        theirs, ours = both(name)
        for key, value in theirs().to_dict().items():
            assert key in ours(**{key: value}).to_dict(), key

    @each_class
    def test_the_reference_reads_what_we_save(self, name: str, tmp_path: Path) -> None:
        theirs, ours = both(name)
        config = changed(name)
        config.save_pretrained(tmp_path)
        assert_equal_values(theirs.from_pretrained(tmp_path), config)
        assert ours.from_pretrained(tmp_path) == config

    @each_class
    def test_we_read_what_the_reference_saves(self, name: str, tmp_path: Path) -> None:
        theirs, ours = both(name)
        config = theirs(**{key: value for key, value in changed(name).to_dict().items() if key != "model_type"})
        config.save_pretrained(tmp_path)
        assert_equal_values(config, ours.from_pretrained(tmp_path))


class TestLabels:
    """A classifier's classes, by number or by name."""

    def test_a_number_makes_names(self) -> None:
        config = Gemma3TextConfig(num_labels=3)
        assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
        assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}

    def test_names_tell_the_number_and_come_back_from_json_with_numbers_as_keys(self) -> None:
        text = json.dumps(Gemma3Config(id2label={0: "cat", 1: "dog", 2: "cow"}).to_dict())
        config = Gemma3Config.from_dict(json.loads(text))
        assert config.num_labels == 3
        assert config.id2label == {0: "cat", 1: "dog", 2: "cow"}

    def test_there_are_two_unless_told(self) -> None:
        assert GemmaConfig().num_labels == 2

    def test_the_number_can_be_changed(self) -> None:
        config = GemmaConfig()
        config.num_labels = 5
        assert len(config.id2label or {}) == config.num_labels == 5


class TestAliases:
    """Older and newer names of one field."""

    @pytest.mark.parametrize(
        ("kind", "alias", "name"),
        [
            (PaliGemmaConfig, "image_token_id", "image_token_index"),
            (Gemma3Config, "image_token_id", "image_token_index"),
            (Gemma3Config, "boi_token_id", "boi_token_index"),
            (Gemma3Config, "eoi_token_id", "eoi_token_index"),
        ],
    )
    def test_both_names_read_and_write_one_value(self, kind: Any, alias: str, name: str) -> None:
        for config in (kind(**{alias: 7}), kind(**{name: 7}), kind.from_dict({alias: 7})):
            assert getattr(config, alias) == getattr(config, name) == 7
            setattr(config, alias, 8)
            assert getattr(config, name) == config.to_dict()[name] == 8
            assert alias not in config.to_dict()

    @pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
    def test_torch_dtype_is_dtype(self, value: Any) -> None:
        for config in (GemmaConfig(torch_dtype=value), GemmaConfig(dtype=value)):
            assert config.dtype == config.torch_dtype == config.to_dict()["dtype"] == "bfloat16"


class TestLayerTypes:
    """Which layers slide when a file does not say."""

    @pytest.mark.parametrize(("depth", "full"), [(18, [5, 11, 17]), (26, [5, 11, 17, 23]), (34, [5, 11, 17, 23, 29]),
                                                 (48, list(range(5, 48, 6))), (62, list(range(5, 62, 6)))])  # fmt: skip
    def test_every_sixth_layer_of_the_published_gemma_3_is_full(self, depth: int, full: list[int]) -> None:
        config = Gemma3TextConfig(num_hidden_layers=depth)
        assert [layer for layer, kind in enumerate(config.layer_types or []) if kind == FULL] == full
        assert config.layer_types == transformers.Gemma3TextConfig(num_hidden_layers=depth).layer_types

    @pytest.mark.parametrize("depth", [26, 42, 46])
    def test_every_second_layer_of_the_published_gemma_2_is_full(self, depth: int) -> None:
        config = Gemma2Config(num_hidden_layers=depth)
        assert config.layer_types == [SLIDING, FULL] * (depth // 2)
        assert config.windows == (4096, None) * (depth // 2)

    def test_the_older_pattern_key_is_read(self) -> None:
        assert (
            Gemma3TextConfig.from_dict({"num_hidden_layers": 4, "sliding_window_pattern": 2}).windows
            == (4096, None) * 2
        )

    def test_a_list_may_be_longer_than_the_model_is_deep(self) -> None:
        assert tiny.text_config("gemma3", num_hidden_layers=2).windows == (4, None)

    def test_a_depth_that_was_changed_afterwards_is_seen_when_a_model_is_made(self) -> None:
        """Else layers without a type would be left out of the sum without a word."""
        config = tiny.text_config("gemma3")
        config.num_hidden_layers = 5
        with pytest.raises(ConfigError, match="layer_types"):
            gemlens.Gemma3ForCausalLM(config)


class TestExamples:
    """The construction examples of the documentation's two pages, on the meta device because of their size."""

    def test_paligemma(self) -> None:
        vision_config, text_config = SiglipVisionConfig(), GemmaConfig()
        configuration = PaliGemmaConfig(vision_config, text_config)
        with torch.device("meta"):
            model = PaliGemmaForConditionalGeneration(configuration)
        assert model.config is configuration
        assert configuration.vision_config is vision_config
        assert configuration.text_config is text_config

    def test_gemma_3(self) -> None:
        """Its page passes the two parts in the other order than its signature has them."""
        vision_config, text_config = SiglipVisionConfig(), Gemma3TextConfig()
        configuration = Gemma3Config(vision_config, text_config)
        assert configuration == Gemma3Config(text_config, vision_config)
        assert configuration.vision_config is vision_config
        assert configuration.text_config is text_config
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(configuration)
        assert model.config is configuration


def test_parts_may_be_given_as_dicts_with_or_without_their_type() -> None:
    text, vision = {"hidden_size": 64}, {"hidden_size": 24, "num_attention_heads": 2}
    for config in (Gemma3Config(text, vision), Gemma3Config(text_config=text, vision_config=vision)):
        assert (config.text_config.hidden_size, config.vision_config.hidden_size) == (64, 24)
    config = PaliGemmaConfig(vision, {"model_type": "gemma2", **text})
    assert isinstance(config.text_config, Gemma2Config)
    assert isinstance(PaliGemmaConfig(vision, text).text_config, GemmaConfig)


def test_configs_are_equal_if_they_say_the_same() -> None:
    assert GemmaConfig(hidden_size=64) == GemmaConfig(hidden_size=64)
    assert GemmaConfig(hidden_size=64) != GemmaConfig()
    assert GemmaConfig() != Gemma2Config()
    assert GemmaConfig(mine=1) != GemmaConfig()


def test_a_repr_shows_what_differs_from_the_default() -> None:
    assert repr(GemmaConfig(hidden_size=64, mine=1)) == "GemmaConfig(hidden_size=64, mine=1)"


def test_configs_need_no_torch() -> None:
    program = (
        "import sys, gemlens\n"
        f"for name in {NAMES}: getattr(gemlens, name)()\n"
        "loaded = sys.modules.keys() & {'torch', 'numpy', 'transformers'}\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
