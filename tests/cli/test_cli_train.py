"""`gemlens train` and `gemlens merge`: flags over recipe, one schema, what they print and how they end."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from gemlens import PaliGemmaForConditionalGeneration
from gemlens.training.adapters import load_adapter
from gemlens.training.settings import Settings, described
from training.small_run import settings

Call = Callable[..., Result]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    wanted = settings(tmp_path, steps=3)
    lines = [f"{name} = {json.dumps(value)}" for name, value in wanted.to_dict().items() if name != "lora"]
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join([*lines, "[lora]", "rank = 4"]))
    return path


def test_a_recipe_is_trained_and_its_files_are_there(gemlens: Call, recipe: Path, tmp_path: Path) -> None:
    result = gemlens("train", recipe)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"The result is in {tmp_path / 'run' / 'last'}." in result.stderr
    assert {"settings.json", "metrics.jsonl", "loss.png", "last", "checkpoints"} == {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_flags_win_over_the_recipe(gemlens: Call, recipe: Path, tmp_path: Path) -> None:
    assert gemlens("train", recipe, "--steps", "2", "--no-tensorboard", "--lora-alpha", "3").exit_code == 0
    said = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (said["steps"], said["lora"]["rank"], said["lora"]["alpha"]) == (2, 4, 3.0)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_flags_alone_say_everything(gemlens: Call, tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    flags = ["--model", wanted.model, "--data", wanted.data[0], "--output", wanted.output, "--steps", "1"]
    assert gemlens("train", *flags, "--lora-rank", "2").exit_code == 0
    assert (tmp_path / "run" / "last" / "adapter_config.json").exists()


def test_every_setting_is_a_flag(gemlens: Call) -> None:
    shown = gemlens("train", "--help").stdout
    for name, _, _ in described(Settings):
        assert name == "lora" or f"--{name.replace('_', '-')}" in shown
    assert "--lora-rank" in shown


def test_mistakes_are_sentences(gemlens: Call, recipe: Path) -> None:
    result = gemlens("train", recipe, "--learning-rate", "-1")
    assert result.exit_code == 1
    assert result.stderr == "gemlens: learning_rate is -1.0, but it must be a number of at least 0.\n"
    result = gemlens("train", recipe.parent / "none.toml")
    assert "The recipe" in result.stderr
    assert result.exit_code == 1
    assert gemlens("train", recipe, "--learn", "1").exit_code == 2


def test_ctrl_c_saves_the_step_and_ends_with_130(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gemlens", "train", str(recipe), "--steps", "100000", "--log-every", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    [step] = re.findall(r"Stopped after step (\d+);", said)
    assert (tmp_path / "run" / "checkpoints" / f"step-{int(step):08}" / "state.json").exists()


def test_a_merged_model_answers_as_the_model_with_its_adapter(gemlens: Call, tmp_path: Path) -> None:
    wanted = settings(tmp_path, method="lora", steps=4, lora={"rank": 4}, learning_rate=1e-2)
    flags = [f"--{name}={value}" for name, value in wanted.to_dict().items() if name in ("model", "output", "steps")]
    assert gemlens("train", *flags, "--data", wanted.data[0], "--precision", "fp32", "--lora-rank", "4").exit_code == 0
    adapter, merged = tmp_path / "run" / "last", tmp_path / "merged"
    result = gemlens("merge", wanted.model, adapter, merged)
    assert result.exit_code == 0
    assert "Merged 14 layers; logits differ by" in result.stderr
    one = PaliGemmaForConditionalGeneration.from_pretrained(wanted.model)
    load_adapter(one, adapter)
    other = PaliGemmaForConditionalGeneration.from_pretrained(merged)
    plain = PaliGemmaForConditionalGeneration.from_pretrained(wanted.model)
    ids = torch.tensor([[2, 300, 310, 320]])
    logits = [model.eval()(input_ids=ids).logits for model in (one, other, plain)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)
    again = gemlens("merge", wanted.model, adapter, merged)
    assert (again.exit_code, "is not empty" in again.stderr) == (1, True)
