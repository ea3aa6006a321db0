"""What a run writes down: lines, events, a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from gemlens.training.metrics import FILE, Metrics, read
from gemlens.training.plot import draw_loss
from gemlens.training.train import train
from training.small_run import settings


def test_lines_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    first = Metrics(tmp_path, step=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 2})
    first.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # torn by a crash
    again = Metrics(tmp_path, step=2)
    again.write(3, {"loss": 9.0})
    again.close()
    assert read(tmp_path / FILE) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_tensorboard_reads_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(tmp_path, tensorboard=True, steps=4))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = read(tmp_path / "run" / FILE)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_metric_of_evals_chooses_the_best(tmp_path: Path) -> None:
    """Half of the answers are one word: right ones can be counted."""
    data = tmp_path / "data" / "train.jsonl"
    said = {"metric": "exact_match", "validation": str(data), "evaluate_every": 20, "evaluate_limit": 8}
    train(settings(tmp_path, steps=60, batch_size=8, learning_rate=2e-2, **said))
    scored = [line["exact_match"] for line in read(tmp_path / "run" / FILE) if "exact_match" in line]
    assert len(scored) == 3
    assert scored[-1] >= 0.5
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000060" / "state.json").read_text())
    assert state["best"] == max(scored)


def test_the_loss_is_drawn(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / step, **({"validation_loss": 0.5} if step == 4 else {})} for step in range(1, 9)]
    assert draw_loss(rows, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (880, 495)
        assert len(picture.convert("RGB").getcolors(1_000_000) or ()) > 20
