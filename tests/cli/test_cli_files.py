"""`gemlens convert`, `quantize` and `mask`: what they write is what they read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_vocabulary import metadata, small_tokenizer
from test_gguf_models import text_metadata, vision_metadata, without_head, write_weights
from typer.testing import Result

import gemlens as library
from gemlens.checkpoints import save
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.settings import Loading
from gemlens.kernels.formats import Q8_0
from gemlens.kernels.machine import machine
from gemlens.kernels.reference import quantize
from gemlens.quantization.blocks import BlockLinear

Call = Callable[..., Result]
Folder = Callable[[str], str]


@pytest.fixture
def gguf(tiny: Any, tmp_path: Path) -> Path:
    """A GGUF file with a vocabulary and a chat template."""
    model = tiny.fresh("gemma3", vocab_size=len(small_tokenizer()))
    numbers = {**metadata(), **text_metadata(model.config, "gemma3"), "tokenizer.chat_template": "{{ messages }}"}
    del numbers["general.architecture"]
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_weights(folder / "tiny.gguf", without_head(model.state_dict()), "gemma3", numbers)
    return folder / "tiny.gguf"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_converted_file_is_the_same_model_and_tokenizer(
    gemlens: Call, gguf: Path, tmp_path: Path, dtype: str
) -> None:
    result = gemlens("convert", gguf, tmp_path / "out", "--dtype", dtype)
    assert result.exit_code == 0, result.stderr
    assert "every tensor and the tokenizer are the same" in result.stderr
    theirs = library.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
    ours = library.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        assert weight.dtype == ours.state_dict()[name].dtype
        assert weight.equal(ours.state_dict()[name]), name
    read, written = (
        library.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name),
        library.AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert written.encode("the cow on a beach, \u00fcber\n\n") == read.encode("the cow on a beach, \u00fcber\n\n")
    assert written.chat_template == read.chat_template == "{{ messages }}"


def test_an_mmproj_file_is_taken_along(gemlens: Call, tiny: Any, tmp_path: Path) -> None:
    """Only what the vocabulary of a whole Gemma 3 has may follow: so the weights alone are compared."""
    model = tiny.fresh("gemma3-pictures")
    prefix, weights = "model.language_model.", without_head(model.state_dict())
    text = {f"model.{name.removeprefix(prefix)}": value for name, value in weights.items() if name.startswith(prefix)}
    vision = {name.removeprefix("model."): value for name, value in weights.items() if not name.startswith(prefix)}
    config = model.config
    write_weights(tmp_path / "text.gguf", text, "gemma3", text_metadata(config.text_config, "gemma3"))
    numbers = vision_metadata(config.vision_config, config.text_config.hidden_size, 2)
    write_weights(tmp_path / "mmproj-tiny.gguf", vision, "clip", numbers)
    shown = gemlens("inspect", tmp_path / "text.gguf", "--tensors").stdout
    assert "picture encoder" in shown
    assert "v.patch_embd.weight" in shown
    assert "is a picture encoder" in gemlens("inspect", tmp_path / "mmproj-tiny.gguf").stderr
    (tmp_path / "mmproj-other.gguf").write_bytes(b"")
    assert "mmproj-other.gguf and mmproj-tiny.gguf" in gemlens("inspect", tmp_path / "text.gguf").stderr


def test_what_was_written_wrongly_is_found(
    gemlens: Call, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = save._safetensors

    def damaged(tensors: Any, metadata: Any) -> Any:
        changed = {name: tensor + 1 if name.endswith("q_norm.weight") else tensor for name, tensor in tensors.items()}
        return honest(changed, metadata)

    monkeypatch.setattr(save, "_safetensors", damaged)
    result = gemlens("convert", gguf, tmp_path / "out")
    assert result.exit_code == 1
    assert "q_norm.weight" in result.stderr
    assert "is not what was written" in result.stderr
    assert gemlens("convert", gguf, tmp_path / "other", "--no-verify").exit_code == 0


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_folder_with_files_is_left_alone_unless_forced(
    gemlens: Call, gguf: Path, tmp_path: Path, checkpoint: Folder, command: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    source = (gguf,) if command == "convert" else (checkpoint("gemma3-text"), "--type", "int8_weight_only")
    result = gemlens(command, *source, tmp_path / "mine")
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert gemlens(command, *source, tmp_path / "mine", "--force").exit_code == 0
    assert (tmp_path / "mine" / "model.safetensors").exists()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_gguf_file_answers_and_shows_its_mask(gemlens: Call, gguf: Path) -> None:
    assert gemlens("run", gguf, "the cow", "--raw", "--greedy", "--max-new-tokens", 4).exit_code == 0
    shown = gemlens("mask", gguf, "the cow").stdout
    assert "tiny.gguf" in shown
    assert "<bos>" in shown


def test_a_quantized_checkpoint_opens_and_is_smaller(gemlens: Call, checkpoint: Folder, tmp_path: Path) -> None:
    folder = checkpoint("gemma3-text")
    result = gemlens("quantize", folder, tmp_path / "int8", "--type", "int8_weight_only", "--group-size", 32)
    assert result.exit_code == 0, result.stderr
    weights = "model.safetensors"
    assert (tmp_path / "int8" / weights).stat().st_size < (Path(folder) / weights).stat().st_size
    config = library.TorchAoConfig("int8_weight_only", group_size=32)
    expected: Any = library.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    ours: Any = library.AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    ids = torch.tensor([[2, 20, 30, 40]])
    with torch.inference_mode():
        assert ours(ids).logits.equal(expected(ids).logits)
    assert gemlens("run", tmp_path / "int8", "The", "--greedy", "--max-new-tokens", 3).exit_code == 0


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_a_gguf_file_is_written_read_again_and_answers(
    gemlens: Call, checkpoint: Folder, tmp_path: Path, kind: str
) -> None:
    folder, path = checkpoint("gemma3-text"), tmp_path / "small.gguf"
    result = gemlens("quantize", folder, path, "--type", kind)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Read again, logits differ by \d+\.\d% ", result.stderr)
    text = "the cow on a beach, \u00fcber\n\n"
    read, written = (
        library.AutoTokenizer.from_pretrained(folder),
        library.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
    )
    assert written.encode(text) == read.encode(text)
    assert written.chat_template == read.chat_template
    assert gemlens("run", path, "The", "--greedy", "--max-new-tokens", 3).exit_code == 0
    loaded = Checkpoint.of(str(path)).load_to_answer(Loading())
    assert (type(loaded.lm_head) is BlockLinear) == (machine().native is not None)
    again = gemlens("quantize", folder, path, "--type", kind)
    assert again.exit_code == 1
    assert "exists; name another file, or pass --force" in again.stderr
    assert gemlens("quantize", path, tmp_path / "again.gguf", "--type", "q8").exit_code == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_rounded_to_blocks_are_numbers_of_the_chosen_dtype(
    gemlens: Call, checkpoint: Folder, tmp_path: Path, dtype: str
) -> None:
    folder, path = checkpoint("gemma3-text"), tmp_path / "small.gguf"
    result = gemlens("quantize", folder, path, "--type", "q8", "--dtype", dtype, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    exact = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weight = exact.model.layers[0].mlp.down_proj.weight.detach()
    wanted = {name: quantize(weight.to(getattr(torch, name)), Q8_0).flatten() for name in ("float32", "bfloat16")}
    assert not wanted["float32"].equal(wanted["bfloat16"])
    assert GGUFFile.open(path).raw("blk.0.ffn_down.weight").equal(wanted[dtype])


def test_where_no_gguf_file_can_be_written_is_a_sentence(gemlens: Call, checkpoint: Folder, tmp_path: Path) -> None:
    folder = checkpoint("gemma3-text")
    assert "ends in .gguf" in gemlens("quantize", folder, tmp_path / "out", "--type", "q8").stderr
    given = ("--type", "q8", "--group-size", 64)
    (tmp_path / "mmproj-out.gguf").write_text("mine")
    result = gemlens("quantize", checkpoint("gemma3-pictures"), tmp_path / "out.gguf", "--type", "q8")
    assert "mmproj-out.gguf' exists; name another file" in result.stderr
    assert (tmp_path / "mmproj-out.gguf").read_text() == "mine"
    (tmp_path / "mmproj-out.gguf").unlink()
    assert "leave --group-size out" in gemlens("quantize", folder, tmp_path / "out.gguf", *given).stderr
    result = gemlens("quantize", checkpoint("paligemma"), tmp_path / "out.gguf", "--type", "q8")
    assert "no place for a paligemma model" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_mask_is_drawn_and_saved(gemlens: Call, checkpoint: Folder, cow: str, tmp_path: Path) -> None:
    arguments = ("mask", checkpoint("paligemma"), "<img> What?", "--image", cow, "--suffix", "A cow")
    result = gemlens(*arguments, "--save", tmp_path / "mask.svg")
    assert result.exit_code == 0, result.stderr
    drawing = library.AttentionMaskVisualizer(checkpoint("paligemma"))("<img> What?", suffix="A cow")
    assert drawing.text(colour=False).strip() in result.stdout
    assert (tmp_path / "mask.svg").read_text().startswith("<svg")
