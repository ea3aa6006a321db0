"""Settings: files that both libraries read and write, what wins over what, and a sentence for every bad value."""

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from gemlens.errors import CheckpointError, ConfigError, InputError
from gemlens.generation.config import DEFAULTS, GenerationConfig, Settings

PUBLISHED = {  # of google/gemma-3-4b-it
    "_from_model_config": True, "bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": True,
    "eos_token_id": [1, 106], "pad_token_id": 0, "top_k": 64, "top_p": 0.95, "transformers_version": "4.50.0.dev0",
}  # fmt: skip
SAID: dict[str, Any] = {  # a value of every setting that is not the default
    "max_length": 77, "max_new_tokens": 9, "min_length": 3, "min_new_tokens": 2, "max_time": 5.5,
    "stop_strings": ["a", "bc"], "do_sample": True, "num_beams": 4, "early_stopping": "never", "length_penalty": 0.5,
    "num_return_sequences": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5,
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "bad_words_ids": [[3], [4, 5]], "suppress_tokens": [6],
    "begin_suppress_tokens": [7], "forced_bos_token_id": 8, "forced_eos_token_id": [9, 1], "renormalize_logits": True,
    "use_cache": False, "cache_implementation": "static", "prefill_chunk_size": 16, "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 4, "num_assistant_tokens": 5, "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.2, "pad_token_id": 10, "bos_token_id": 11, "eos_token_id": [12, 13],
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True, "disable_compile": True,
}  # fmt: skip
BAD: dict[str, list[Any]] = {
    "max_length": [0, 2.0, "5"], "max_new_tokens": [0, -1, True, 1.5], "min_length": [-1, 0.5], "min_new_tokens": [-1],
    "max_time": [0, -1.0, float("inf")], "stop_strings": ["", ["a", ""], 5, [5]], "do_sample": [1, "yes", None],
    "num_beams": [0, 2.0, None], "early_stopping": ["always", 1, None], "length_penalty": [float("nan"), "1"],
    "num_return_sequences": [0, 1.0], "temperature": [-0.1, float("nan"), float("inf"), "1", True],
    "top_k": [-1, 2.5], "top_p": [0, 0.0, 1.1, -0.5], "min_p": [-0.1, 1.5], "typical_p": [0.0, 2],
    "repetition_penalty": [0, -1.0], "no_repeat_ngram_size": [-1, 1.5], "bad_words_ids": [[3], [[]], [[-1]], 3],
    "suppress_tokens": [3, [-1], ["a"], [1.5]], "begin_suppress_tokens": [3, [-1]], "forced_bos_token_id": [-1, [3]],
    "forced_eos_token_id": [-1, [-1], "1"], "renormalize_logits": [1], "use_cache": [1, None],
    "cache_implementation": ["fast", "sliding_window", 5, ["static"]], "prefill_chunk_size": [0, 1.5],
    "prompt_lookup_num_tokens": [0, True], "max_matching_ngram_size": [0], "num_assistant_tokens": [0, 2.5],
    "num_assistant_tokens_schedule": ["heuristic_transient", None], "assistant_confidence_threshold": [-0.1, 1.1],
    "pad_token_id": [-1, [0], 1.0], "bos_token_id": [-1, "2"], "eos_token_id": [-1, [1, -1], 1.5],
    "return_dict_in_generate": [1], "output_scores": ["no"], "output_logits": [0], "output_attentions": [None],
    "output_hidden_states": [1], "disable_compile": [1],
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_bad_value_is_refused_by_name(name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(InputError, match=f"^{name} is .*, but it must be ") as caught:
            GenerationConfig(**{name: value})
        assert repr(value) in str(caught.value)
        with pytest.raises(InputError, match=f"^{name} is "):
            tiny.model("gemma3").generate(torch.tensor([[5]]), **{name: value})


def test_a_misspelt_setting_is_a_type_error() -> None:
    model = tiny.model("gemma3")
    for use in (
        GenerationConfig,
        GenerationConfig().update,
        lambda **wrong: model.generate(torch.tensor([[5]]), **wrong),
    ):
        with pytest.raises(TypeError, match="no generation setting 'max_new_token', 'temprature'"):
            use(temprature=0.5, max_new_token=3)
    with pytest.raises(TypeError):
        GenerationConfig().temprature = 0.5
    with pytest.raises(AttributeError, match="temprature"):
        _ = GenerationConfig().temprature


def theirs_of(config: transformers.GenerationConfig) -> dict[str, Any]:
    """Its settings as ours: None for no logits is False, and a length of 20 means 20 new tokens."""
    settings = {name: getattr(config, name) for name in DEFAULTS}
    length = None if config.max_length == 20 else config.max_length
    return settings | {"output_logits": bool(config.output_logits), "max_length": length}


def test_defaults_are_the_references() -> None:
    assert theirs_of(transformers.GenerationConfig()) == DEFAULTS


@pytest.mark.parametrize("said", [{}, SAID | {"use_cache": True}, PUBLISHED], ids=["nothing", "all", "published"])
def test_what_the_reference_writes_is_read_and_what_we_write_is_read_there(
    said: dict[str, Any], tmp_path: Path
) -> None:
    theirs = transformers.GenerationConfig(**{name: value for name, value in said.items() if name[0] != "_"})
    theirs.save_pretrained(tmp_path / "there")
    ours = GenerationConfig.from_pretrained(tmp_path / "there")
    ours.save_pretrained(tmp_path / "here" / "new")
    back = transformers.GenerationConfig.from_pretrained(tmp_path / "here" / "new")
    expected = theirs_of(theirs)
    if expected["cache_implementation"] == "hybrid":
        expected["cache_implementation"] = None  # said of the model, it means the default there, too
    assert {name: getattr(ours, name) for name in DEFAULTS} == expected == theirs_of(back)
    assert GenerationConfig.from_pretrained(tmp_path / "here" / "new") == ours
    complete = GenerationConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False)))
    assert {name: getattr(complete, name) for name in DEFAULTS} == expected


def test_every_setting_survives_a_file(tmp_path: Path) -> None:
    assert set(SAID) == set(BAD) == set(DEFAULTS)
    assert all(SAID[name] != DEFAULTS[name] for name in SAID)
    config = GenerationConfig(**SAID)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config
    assert {name: getattr(config, name) for name in SAID} == SAID == config.to_dict()
    assert json.loads((tmp_path / "generation_config.json").read_text()) == SAID


def test_hybrid_in_a_published_file_means_the_default_and_in_a_call_a_static_cache() -> None:
    published = GenerationConfig.from_dict(PUBLISHED)
    assert published.cache_implementation is None
    assert (published.top_k, published.top_p, published.eos_token_id) == (64, 0.95, [1, 106])
    cache = tiny.model("gemma3").generate(
        torch.tensor([[5]]), max_new_tokens=2, cache_implementation="hybrid", return_dict_in_generate=True
    )
    assert type(cache.past_key_values).__name__ == "StaticCache"


def test_unknown_settings_of_a_file_are_ignored_where_they_do_nothing_and_refused_where_they_would() -> None:
    neutral = {"num_beam_groups": 1, "guidance_scale": 1.0, "sequence_bias": None, "remove_invalid_values": False}
    assert GenerationConfig.from_dict({**neutral, "top_k": 5}) == GenerationConfig(top_k=5)
    for name, value in {"guidance_scale": 1.5, "sequence_bias": [[[5], 2.0]], "penalty_alpha": 0.6}.items():
        with pytest.raises(ConfigError, match=f"sets '{name}', which gemlens does not know"):
            GenerationConfig.from_dict({name: value})


@pytest.mark.parametrize("data", [[], "x", 5, {"top_k": "many"}, {"top_p": 3}], ids=str)
def test_a_file_with_bad_content_is_a_config_error(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"^generation_config\.json"):
        GenerationConfig.from_dict(data)


def test_no_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        GenerationConfig.from_pretrained(tmp_path)


def test_the_call_wins_over_its_config_that_over_the_models_that_over_defaults() -> None:
    model = tiny.fresh("gemma3")
    prompt = torch.tensor([[5, 6]])

    def new(config: GenerationConfig | None = None, **call: Any) -> int:
        return int(model.generate(prompt, generation_config=config, eos_token_id=None, **call).shape[1]) - 2

    assert new() == 20
    model.generation_config = GenerationConfig(max_new_tokens=3, use_cache=False)
    assert new() == 3
    assert new(GenerationConfig(top_k=5)) == 3  # says nothing about length
    assert new(GenerationConfig(max_new_tokens=4)) == 4
    assert new(GenerationConfig(max_new_tokens=4), max_new_tokens=5) == 5
    assert model.generation_config == GenerationConfig(max_new_tokens=3, use_cache=False)


def test_saying_the_default_counts() -> None:
    """A call can take back what the model's file says."""
    model = tiny.fresh("gemma3")
    prompt = tiny.words(1, 5)
    greedy = model.generate(prompt, max_new_tokens=8)
    model.generation_config.update(do_sample=True, temperature=9.0, max_new_tokens=8)
    assert not torch.equal(greedy, model.generate(prompt, seed=0))
    assert torch.equal(greedy, model.generate(prompt, do_sample=False))
    assert torch.equal(greedy, model.generate(prompt, generation_config=GenerationConfig(do_sample=False)))
    none = model.generate(prompt, do_sample=False, max_new_tokens=None)
    assert none.shape[1] == 5 + 20


def test_a_models_own_config_comes_from_its_file_over_its_config(tmp_path: Path) -> None:
    model = tiny.fresh("gemma3", eos_token_id=[3, 4])
    assert model.generation_config.eos_token_id == [3, 4]
    model.generation_config.update(top_k=7, eos_token_id=[5])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    assert (again.generation_config.eos_token_id, again.generation_config.top_k) == ([5], 7)
    (tmp_path / "generation_config.json").write_text('{"top_k": 8}')
    file_and_config = type(model).from_pretrained(tmp_path).generation_config
    assert (file_and_config.eos_token_id, file_and_config.top_k) == ([3, 4], 8)


def test_a_bad_update_changes_nothing() -> None:
    config = GenerationConfig(top_k=5)
    for wrong in ({"top_k": 6, "top_p": 7}, {"top_k": 6, "oops": 7}):
        with pytest.raises((InputError, TypeError)):
            config.update(**wrong)
        assert config.to_dict() == {"top_k": 5}


def test_a_config_can_be_copied_changed_and_shown() -> None:
    config = GenerationConfig(top_k=5)
    other = copy.deepcopy(config)
    other.top_k = 6
    assert (config.top_k, other.top_k) == (5, 6)
    assert config != other
    assert repr(other) == "GenerationConfig(top_k=6)"
    assert other.over(GenerationConfig(top_k=1, top_p=0.5)) == GenerationConfig(top_k=6, top_p=0.5)
    with pytest.raises(TypeError, match="unhashable"):
        hash(config)


def test_a_length_of_the_call_is_not_outdone_by_the_models() -> None:
    model = tiny.fresh("gemma3")
    model.generation_config = GenerationConfig(max_new_tokens=9)
    ids = torch.tensor([[5, 6]])
    assert model.generate(ids, max_length=5).shape == (1, 5)
    assert model.generate(ids, generation_config=GenerationConfig(max_length=4)).shape == (1, 4)
    assert model.generate(ids, max_length=5, max_new_tokens=2).shape == (1, 4), "the same call says both"
    assert model.generate(ids).shape == (1, 11)
