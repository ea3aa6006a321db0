"""Configs go to files and come back; published files are read; keys that nobody knows survive."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from config_pairs import assert_equal_values, changed, each_class
from hypothesis import given
from hypothesis import strategies as st

import gemlens
from gemlens import CheckpointError, ConfigError, Gemma2Config, Gemma3Config, GemmaConfig, PaliGemmaConfig
from gemlens.models.auto import CONFIGS


class TestFiles:
    """A config goes to a file and comes back, and published files are read."""

    @each_class
    def test_a_dict_and_a_file_give_the_config_back(self, name: str, tmp_path: Path) -> None:
        config = changed(name)
        config.save_pretrained(tmp_path / "new" / "folder")
        kind = type(config)
        for back in (kind.from_dict(config.to_dict()), kind.from_pretrained(tmp_path / "new" / "folder")):
            assert back == config
            assert back.to_dict() == config.to_dict()

    def test_the_dict_and_the_given_mapping_are_copies(self) -> None:
        given = {"text_config": {"model_type": "gemma", "hidden_size": 64}, "mine": [1]}
        before = json.dumps(given)
        config = PaliGemmaConfig.from_dict(given)
        config.to_dict()["mine"].append(2)
        config.mine.append(3)
        assert json.dumps(given) == before
        assert config.to_dict()["mine"] == [1, 3]

    def test_overrides_win_over_the_file(self, tmp_path: Path) -> None:
        changed("GemmaConfig").save_pretrained(tmp_path)
        config = GemmaConfig.from_pretrained(tmp_path, hidden_size=64, torch_dtype=torch.float16, mine=1)
        assert (config.hidden_size, config.dtype, config.mine) == (64, "float16", 1)

    def test_a_misspelt_override_is_refused(self, tmp_path: Path) -> None:
        changed("GemmaConfig").save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"no argument 'hiden_size'; did you mean 'hidden_size'"):
            GemmaConfig.from_pretrained(tmp_path, hiden_size=64)

    def test_a_folder_without_a_config_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no 'config\.json' in the folder"):
            GemmaConfig.from_pretrained(tmp_path)

    def test_a_subfolder_may_hold_the_config(self, tmp_path: Path) -> None:
        changed("GemmaConfig").save_pretrained(tmp_path / "inner")
        assert GemmaConfig.from_pretrained(tmp_path, subfolder="inner") == changed("GemmaConfig")

    def test_sparse_files_of_gemma_3_are_filled_with_the_class_defaults(self) -> None:
        """As google/gemma-3-4b-it has it."""
        file = {
            "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
            "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02,
            "mm_tokens_per_image": 256, "model_type": "gemma3", "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            },
            "vision_config": {
                "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
            },
        }  # fmt: skip
        ours, theirs = Gemma3Config.from_dict(file), transformers.Gemma3Config.from_dict(file)
        assert_equal_values(theirs, ours)
        assert ours.dtype == "bfloat16"
        text = ours.text_config
        assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (8, 4, 256)
        assert (ours.tokens_per_image, ours.vision_config.patches_per_side) == (256, 64)
        assert [layer for layer, window in enumerate(ours.windows) if window is None] == [5, 11, 17, 23, 29]
        assert {window for window in ours.windows if window} == {1024}
        assert {rope.kind for rope, window in zip(text.ropes, text.windows, strict=True) if window is None} == {
            "linear"
        }
        assert {rope.theta for rope, window in zip(text.ropes, text.windows, strict=True) if window} == {10000.0}

    def test_files_of_paligemma_with_old_keys_are_read(self) -> None:
        """As google/paligemma-3b-pt-224 has it."""
        file = {
            "_vocab_size": 257152, "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048, "ignore_index": -100,
            "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0, "projection_dim": 2048,
            "torch_dtype": "float32", "transformers_version": "4.41.0.dev0",
            "text_config": {
                "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
                "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
                "vocab_size": 257216,
            },
            "vision_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
                "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": False,
            },
        }  # fmt: skip
        ours = PaliGemmaConfig.from_dict(file)
        assert_equal_values(transformers.PaliGemmaConfig.from_dict(file), ours)
        assert ours.tokens_per_image == 256
        assert ours.windows == (None,) * 18
        assert ours.to_dict()["ignore_index"] == -100

    @pytest.mark.parametrize("name", ["Gemma3TextConfig", "SiglipVisionConfig"])
    def test_a_part_is_read_out_of_a_multimodal_file(self, name: str, tmp_path: Path) -> None:
        whole = changed("Gemma3Config")
        whole.save_pretrained(tmp_path)
        part = whole.text_config if name == "Gemma3TextConfig" else whole.vision_config
        assert getattr(gemlens, name).from_pretrained(tmp_path) == part

    def test_a_file_of_another_model_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"type 'gemma3', but one of type 'gemma2'"):
            Gemma2Config.from_dict(changed("Gemma3Config").to_dict())
        with pytest.raises(ConfigError, match="must be a JSON object, but list came"):
            Gemma2Config.from_dict([])

    @each_class
    def test_a_config_of_any_type_is_made_by_its_model_type(self, name: str, tmp_path: Path) -> None:
        config = changed(name)
        config.save_pretrained(tmp_path)
        assert CONFIGS[config.model_type] is type(config)
        assert gemlens.AutoConfig.from_dict(config.to_dict()) == config
        assert gemlens.AutoConfig.from_pretrained(tmp_path) == config
        assert gemlens.AutoConfig.from_pretrained(str(tmp_path), mine=1).mine == 1


plain_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(plain_values, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=6)
# Names that files carry, and names that mean something to a Python object.
notable = ["auto_map", "_attn_implementation_internal", "_commit_hash", "quantization_config", "transformers_version",
           "windows", "ropes", "activation", "tokens_per_image", "patches_per_side", "extra", "fields", "validate",
           "to_dict", "__class__", "__dict__", "self", "cls", "data"]  # fmt: skip


class TestUnknownKeys:
    """Keys that are no field survive and are never acted on: they may name code or hosts (CVE-2026-4372)."""

    @each_class
    @given(unknown=st.dictionaries(st.sampled_from(notable) | st.text(max_size=12), json_values, max_size=4))
    def test_they_survive_and_change_nothing(self, name: str, unknown: dict[str, Any]) -> None:
        config = changed(name)
        kind = type(config)
        acted_on = {*kind.fields, *kind.aliases, "model_type", "num_labels", "rope_parameters"}
        unknown = {key: value for key, value in unknown.items() if key not in acted_on}
        read = kind.from_dict({**json.loads(json.dumps(unknown)), **config.to_dict()})
        for key in kind.fields:
            assert getattr(read, key) == getattr(config, key)
        for derived in ("windows", "ropes", "softcaps", "query_scale", "tokens_per_image"):
            if hasattr(kind, derived):
                assert getattr(read, derived) == getattr(config, derived)
        assert read.to_dict() == {**unknown, **config.to_dict()}
        assert kind.from_dict(read.to_dict()) == read

    def test_they_can_be_read_like_fields(self) -> None:
        config = GemmaConfig(mine=3)
        assert config.mine == 3
        with pytest.raises(AttributeError, match="GemmaConfig has no field 'yours'"):
            _ = config.yours

    def test_they_go_through_files(self, tmp_path: Path) -> None:
        config = GemmaConfig.from_dict({"auto_map": {"AutoModel": "evil.py"}, "windows": [1]})
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {"AutoModel": "evil.py"}
        assert GemmaConfig.from_pretrained(tmp_path) == config
