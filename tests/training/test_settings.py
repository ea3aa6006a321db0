"""The settings of a training: one schema for file, flags and Python."""

from pathlib import Path
from typing import Any

import pytest

from gemlens import InputError
from gemlens.training.settings import Settings, described, read_recipe, settings_of

NEEDED = {"model": "m", "data": ["a.jsonl"], "output": "out"}


def test_a_recipe_says_what_python_says(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'model = "m"\ndata = ["a.jsonl"]\noutput = "out"\nlearning_rate = 1\nsteps = 7\n[lora]\nrank = 4\n'
    )
    settings = settings_of(read_recipe(recipe))
    assert settings == settings_of({**NEEDED, "learning_rate": 1.0, "steps": 7, "lora": {"rank": 4}})
    assert settings.lora.rank == 4
    assert settings.data == ("a.jsonl",)


def test_plain_values_give_the_same_settings_again() -> None:
    settings = settings_of({**NEEDED, "train": ["projector"], "lora": {"rank": 3, "targets": ["vision"]}})
    assert settings_of(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"learning_rat": 1.0}, "There is no training setting 'learning_rat'"),
        ({"steps": -1}, "steps is -1, but it must be a whole number of at least 0"),
        ({"steps": 1.5}, "steps is 1.5, but it must be a whole number"),
        ({"steps": True}, "steps is True, but it must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', but it must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"beta2": 1.5}, "beta2 is 1.5, but it must be a number from 0 to 1"),
        ({"schedule": "linear"}, "schedule is 'linear', but it must be one of cosine, constant"),
        ({"tensorboard": 1}, "tensorboard is 1, but it must be true or false"),
        ({"train": [1]}, "but it must be a list of texts"),
        ({"lora": 4}, r"lora is 4, but it is a group of settings: \[lora\]"),
        ({"lora": {"rang": 4}}, "There is no training setting 'rang'"),
        ({"model": ""}, "says no model"),
        ({"data": []}, "says no data"),
        ({"output": ""}, "says no output"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        settings_of({**NEEDED, **said})


def test_a_recipe_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("model = ")
    with pytest.raises(InputError, match="is no TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_every_setting_says_what_it_is_for() -> None:
    for name, _, each in described(Settings):
        assert name == "lora" or each.metadata["help"].endswith("."), name
