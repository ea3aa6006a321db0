"""The example that teaches a new question runs by every method, and LoRA learns it on the embedded model."""

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


@pytest.mark.timeout(900)  # without products of bfloat16 it takes some minutes
def test_lora_teaches_the_embedded_model_a_question_that_it_never_heard(tmp_path: Path) -> None:
    """On pictures of other photographs; how long it takes is told by benchmarks/new_question.py."""
    before, after, _ = new_question.learn(tmp_path, "lora", steps=300, count=2400, seed=1)
    assert before < 0.3
    assert after > 0.9
