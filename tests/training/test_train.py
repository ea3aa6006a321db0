"""A training from a folder and a file to a folder: it learns, it can be killed, and it says what is wrong."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from gemlens import CheckpointError, InputError, PaliGemmaForConditionalGeneration, PictureError, pipeline
from gemlens.checkpoints import save
from gemlens.quantization import packed
from gemlens.training import checkpoints
from gemlens.training.settings import settings_of
from gemlens.training.train import settled, train
from training.small_run import COLOURS, data_file, settings


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(PaliGemmaForConditionalGeneration.from_pretrained(folder).state_dict())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_the_result_answers(tmp_path: Path) -> None:
    result = train(settings(tmp_path, steps=80, batch_size=8, learning_rate=2e-2))
    assert losses(tmp_path / "run")[-1] < 0.05 < losses(tmp_path / "run")[0]
    answer = pipeline("image-text-to-text", model=str(result))
    for number, name in enumerate(COLOURS):
        picture = tmp_path / "data" / f"{number}.png"
        said = answer(picture, text="caption en", max_new_tokens=5, return_full_text=False)[0]["generated_text"]
        assert said.split()[0] == name


def test_the_same_settings_give_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, second, third = (
        weights(train(settings(tmp_path, output=str(tmp_path / name), seed=seed)))
        for name, seed in (("first", 0), ("second", 0), ("third", 1))
    )
    assert same(first, second)
    assert not same(first, third)


def test_accumulated_batches_give_the_weights_of_the_large_batch(tmp_path: Path) -> None:
    """Answers have one and two tokens, so that a mean of means would differ; also where tokens count alike."""
    for mean in ("example", "token"):
        said = {"mean": mean, "clip": 0.0, "learning_rate": 1e-3}
        large = weights(train(settings(tmp_path, output=str(tmp_path / f"large-{mean}"), batch_size=8, **said)))
        small = weights(
            train(settings(tmp_path, output=str(tmp_path / f"small-{mean}"), batch_size=2, accumulate=4, **said))
        )
        worst = max(float((large[name] - small[name]).abs().max()) for name in large)
        assert worst < 2e-5, mean


def test_muon_changes_matrices_of_layers_by_steps_of_equal_strength_in_all_directions(tmp_path: Path) -> None:
    before = weights(Path(settings(tmp_path).model))
    after = weights(train(settings(tmp_path, optimizer="muon", steps=1, warmup=0.0, learning_rate=1e-2)))
    other = weights(train(settings(tmp_path, output=str(tmp_path / "adamw"), steps=1, warmup=0.0, learning_rate=1e-2)))
    for name, weight in before.items():
        if ".layers." in name and weight.dim() == 2:
            strengths = torch.linalg.svdvals(after[name] - weight) / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
            assert 0.5 < strengths[0] < 1.3, name
        else:
            assert torch.equal(after[name], other[name]), name


def test_muon_goes_on_after_a_stop_with_the_same_weights(tmp_path: Path) -> None:
    said = {"optimizer": "muon", "save_every": 2}
    straight = weights(train(settings(tmp_path, output=str(tmp_path / "straight"), **said)))
    wanted = settings(tmp_path, **said)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, stop=lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 3)
    assert same(weights(train(wanted)), straight)


def test_a_torch_without_muon_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"has no Muon; install torch 2\.9 or newer"):
        train(settings(tmp_path, optimizer="muon"))


def test_gradient_checkpointing_and_other_processes_change_nothing(tmp_path: Path) -> None:
    plain = weights(train(settings(tmp_path, output=str(tmp_path / "plain"))))
    again = weights(train(settings(tmp_path, output=str(tmp_path / "again"), gradient_checkpointing=True)))
    read = weights(train(settings(tmp_path, output=str(tmp_path / "read"), workers=1)))
    assert same(plain, read)
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what torch.compile does within
def test_compiled_layers_change_nothing_but_rounding_and_go_on_after_a_stop(tmp_path: Path) -> None:
    train(settings(tmp_path, output=str(tmp_path / "plain"), precision="fp32"))
    compiled = weights(train(settings(tmp_path, precision="fp32", compile=True)))
    said = {"precision": "fp32", "compile": True, "save_every": 2, "output": str(tmp_path / "stopped")}
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path, **said), stop=lambda: len(losses(tmp_path / "stopped")) == 3)
    assert same(weights(train(settings(tmp_path, **said))), compiled)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_each_layer_of_the_decoder_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **said: compiled.append(type(self).__name__))
    train(settings(tmp_path, steps=1, compile=True))
    assert compiled == ["DecoderLayer"] * len(compiled) != []


def test_no_compiler_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is no 'no-such-compiler'"):
        train(settings(tmp_path, compile=True))


def test_only_named_parts_learn(tmp_path: Path) -> None:
    before = weights(Path(settings(tmp_path).model))
    after = weights(train(settings(tmp_path, train=["projector"])))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}


def test_an_adapter_is_learned_and_the_model_stays(tmp_path: Path) -> None:
    result = train(settings(tmp_path, method="lora", lora={"rank": 4}))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in result.iterdir()}
    assert not (result / "model.safetensors").exists()


def test_the_best_of_the_evaluations_is_kept(tmp_path: Path) -> None:
    """At a rate that destroys what was learned, the last weights are not the best."""
    validation = str(tmp_path / "data" / "train.jsonl")
    result = train(settings(tmp_path, steps=30, learning_rate=0.5, warmup=1.0, validation=validation, evaluate_every=2))
    assert result.name == "best"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scored = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert set(scored) == set(range(2, 31, 2))
    assert min(scored.values()) < scored[30]
    assert not same(weights(result), weights(tmp_path / "run" / "last"))


# -- taken up again ----------------------------------------------------------------------------------------------------


def told(wanted: dict[str, Any], steps: Connection) -> None:
    """Trains in another process and says each step."""
    torch.set_num_threads(1)
    steps.send(0)
    train(settings_of(wanted), watch=lambda step, of, values: steps.send(step))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that have torch loaded when they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gemlens.training.train", "gemlens.models.auto", "gemlens.processing.paligemma"])
    return context


def test_a_run_killed_at_20_points_ends_with_the_same_weights(tmp_path: Path, processes: ForkServerContext) -> None:
    """At random times: within steps, while a checkpoint is written or an old one removed."""
    said = {"steps": 40, "save_every": 1}
    wanted = settings(tmp_path, output=str(tmp_path / "killed"), **said)
    chance = random.Random(0)
    for _ in range(20):
        ours, theirs = processes.Pipe()
        process = processes.Process(target=told, args=(wanted.to_dict(), theirs))
        process.start()
        for _ in range(chance.choice((1, 2, 2, 3))):
            assert ours.poll(60)
            ours.recv()
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    result = train(wanted)
    assert same(weights(result), weights(train(settings(tmp_path, output=str(tmp_path / "straight"), **said))))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_dropout_draws_the_same_after_a_stop(tmp_path: Path) -> None:
    said = {"method": "lora", "lora": {"rank": 4, "dropout": 0.5}, "save_every": 2}
    straight = train(settings(tmp_path, output=str(tmp_path / "straight"), **said))
    wanted = settings(tmp_path, output=str(tmp_path / "stopped"), **said)

    def stop(step: int, steps: int, values: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, watch=stop)
    again = train(wanted)
    name = "adapter_model.safetensors"
    assert (straight / name).read_bytes() == (again / name).read_bytes()


def test_a_run_that_is_told_to_stop_saves_and_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    straight = weights(train(settings(tmp_path, output=str(tmp_path / "straight"))))
    wanted = settings(tmp_path)
    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(wanted, say=asked.append, stop=lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 3)
    assert asked == ["Stopped after step 3; the same training goes on from there."]
    assert [place.name for place in checkpoints.found(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    assert same(weights(train(wanted)), straight)


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    train(settings(tmp_path))
    with pytest.raises(InputError, match=r"learning_rate = 0.01, but 0.02 is asked for now; give another output"):
        train(settings(tmp_path, learning_rate=0.02))
    train(settings(tmp_path, log_every=3))


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path: Path) -> None:
    train(settings(tmp_path, save_every=2, keep=2))
    places = checkpoints.found(tmp_path / "run" / "checkpoints")
    assert [place.name for place in places] == ["step-00000004", "step-00000006"]
    assert {path.name for place in places for path in place.iterdir()} == {"model.safetensors", "state.json"}


def test_a_damaged_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    train(wanted)
    place = checkpoints.found(tmp_path / "run" / "checkpoints")[-1]
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        train(wanted)
    (place / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not say where a training stands"):
        train(wanted)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings(tmp_path, save_every=2)
    straight = weights(train(settings(tmp_path, output=str(tmp_path / "straight"), save_every=2)))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(step: int, steps: int, values: object) -> None:
        if step == 4:
            monkeypatch.setattr(save, "write_chunks", refuse)

    with pytest.raises(CheckpointError, match=r"No space left on device.*the same training again"):
        train(wanted, watch=full)
    monkeypatch.undo()
    assert [place.name for place in checkpoints.found(tmp_path / "run" / "checkpoints")] == ["step-00000002"]
    assert same(weights(train(wanted)), straight)


def test_an_unreadable_picture_stops_or_is_skipped(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    (tmp_path / "data" / "5.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"5\.png|train\.jsonl"):
        train(wanted)
    said: list[str] = []
    train(settings(tmp_path, on_error="skip"), say=said.append)
    assert sum("Skipped" in sentence for sentence in said) == 1


def test_unreadable_examples_of_other_processes_are_the_same_sentence(tmp_path: Path) -> None:
    wanted = settings(tmp_path, workers=1)
    (tmp_path / "data" / "5.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"5\.png|train\.jsonl"):
        train(wanted)


def test_a_loss_that_is_no_number_stops_before_the_weights_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The loss of step \d+ is (nan|inf)"):
        train(settings(tmp_path, learning_rate=1e30, steps=20, warmup=0.0, clip=0.0))


def test_data_without_examples_is_a_sentence(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    data_file(tmp_path / "data", count=0)
    with pytest.raises(InputError, match="no examples"):
        train(wanted)


def test_nothing_that_learns_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing-like-this"):
        train(settings(tmp_path, train=["nothing-like-this"]))


@pytest.mark.parametrize("multiplies", [True, False])
def test_numbers_are_those_that_are_fast_here_unless_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: multiplies)
    assert settled(settings(tmp_path, precision="auto")).precision == ("bf16" if multiplies else "fp32")
    assert settled(settings(tmp_path, precision="bf16")).precision == "bf16"
    train(settings(tmp_path, precision="auto", steps=1))
    told = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert told["precision"] == ("bf16" if multiplies else "fp32")
