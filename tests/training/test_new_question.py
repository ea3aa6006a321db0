"""The example that teaches a new question runs, by every method; how well it learns is told with real weights."""

import sys
from pathlib import Path

import pytest
import torch

from training.small_run import model_folder

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import new_question

from gemlens import PaliGemmaForConditionalGeneration


@pytest.mark.parametrize("method", new_question.METHODS)
def test_every_method_gives_a_model_that_answers(method: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    before, after, seconds = new_question.learn(tmp_path / "run", method, str(folder), steps=2, count=40)
    assert 0 <= before <= 1
    assert 0 <= after <= 1
    assert seconds > 0
    last = tmp_path / "run" / method / "last"
    if method == "lora":
        assert (last / "adapter_model.safetensors").exists()
        return
    learned, start = (PaliGemmaForConditionalGeneration.from_pretrained(place).state_dict() for place in (last, folder))
    changed = {name for name, weight in start.items() if not torch.equal(weight, learned[name])}
    assert any("language_model.layers" in name for name in changed)
    assert any("vision_tower" in name for name in changed) == (method == "full")
