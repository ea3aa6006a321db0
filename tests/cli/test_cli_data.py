"""`gemlens data`: what it prints, how it ends, and what it leaves."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import Result

from gemlens.cli.help_pages import pages

Call = Callable[..., Result]
Folder = Callable[[str], str]
BOX = "<loc0100><loc0200><loc0300><loc0400>"


def write(path: Path, *rows: Any) -> Path:
    Image.radial_gradient("L").convert("RGB").save(path.parent / "cow.png")
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"image": "cow.png", "prefix": f"detect cow{number}", "suffix": f"{BOX} cow{number}", **fields}


def test_fine_data_ends_with_0(gemlens: Call, tmp_path: Path) -> None:
    result = gemlens("data", "check", write(tmp_path / "train.jsonl", row(1), row(2)))
    assert result.exit_code == 0
    assert "examples  2: 2 detect" in result.stdout
    assert "256 x 256" in result.stdout
    assert result.stdout.endswith("Nothing is wrong.\n")


def test_wrong_data_ends_with_1_and_says_where(gemlens: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", row(1), row(2, suffix="<eos>"), row(3, image="gone.png"))
    result = gemlens("data", "check", path)
    assert result.exit_code == 1
    assert "train.jsonl:2: the answer spells out <eos>" in result.stdout
    assert "train.jsonl:3: the picture 'gone.png' is not in" in result.stdout
    assert "missing picture      1  pictures that are not there" in result.stdout


def test_remarks_count_when_that_is_wanted(gemlens: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", row(1), row(1))
    assert gemlens("data", "check", path).exit_code == 0
    assert gemlens("data", "check", path, "--strict").exit_code == 1


def test_json_is_one_object(gemlens: Call, tmp_path: Path) -> None:
    result = gemlens("data", "check", write(tmp_path / "train.jsonl", row(1), row(2, suffix="")), "--json")
    told = json.loads(result.stdout)
    assert (told["examples"], told["fine"], told["problems"][0]["name"]) == (2, True, "nothing found")


def test_pictures_of_other_data_are_found(gemlens: Call, tmp_path: Path) -> None:
    train, other = write(tmp_path / "train.jsonl", row(1)), write(tmp_path / "val.jsonl", row(2))
    result = gemlens("data", "check", train, "--against", other)
    assert result.exit_code == 1
    assert "val.jsonl:1: the picture is that of train.jsonl:1." in result.stdout


def test_pictures_outside_take_a_flag(gemlens: Call, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "unused.jsonl")
    path = write(tmp_path / "inner" / "train.jsonl", row(1, image="../cow.png"))
    assert "is outside" in gemlens("data", "check", path).stdout
    assert gemlens("data", "check", path, "--allow-outside").exit_code == 0


def test_text_of_the_data_cannot_steer_the_terminal(gemlens: Call, tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.jsonl", row(1, prefix="say \x1b[31mred now please", suffix="say \x1b[31mred now please")
    )
    assert "\x1b" not in gemlens("data", "check", path).stdout


@pytest.mark.parametrize("name", ["paligemma", "gemma3-pictures"])
def test_tokens_are_those_of_training(gemlens: Call, checkpoint: Folder, tmp_path: Path, name: str) -> None:
    from gemlens import AutoProcessor
    from gemlens.data.sources import open_source
    from gemlens.training.batches import Collator

    path = write(tmp_path / "train.jsonl", row(1), row(2, suffix=f"{BOX} a much longer name of a cow"))
    told = json.loads(gemlens("data", "check", path, "--model", checkpoint(name), "--json").stdout)
    source = open_source(path)
    batch = Collator(AutoProcessor.from_pretrained(checkpoint(name)))([source[0], source[1]])
    assert told["tokens"]["together"]["longest"] == batch["attention_mask"].sum(1).max()
    assert told["tokens"]["answer"]["longest"] == (batch["labels"] != -100).sum(1).max()
    shown = gemlens("data", "check", path, "--processor", checkpoint(name)).stdout
    assert "the longest" in shown


def test_a_preview_is_written(gemlens: Call, checkpoint: Folder, tmp_path: Path) -> None:
    path, page = write(tmp_path / "train.jsonl", *map(row, range(9))), tmp_path / "page.html"
    result = gemlens("data", "preview", path, page, "--count", 4, "--model", checkpoint("paligemma"))
    assert result.exit_code == 0
    assert f"Wrote 4 of 9 examples to {page}." in result.stderr
    assert page.read_text().count("<article>") == 4
    assert " tokens</h3>" in page.read_text()


def test_a_codec_draws_masks(gemlens: Call, tmp_path: Path) -> None:
    import torch

    from gemlens.tasks.mask_codec import MaskCodec

    codec = MaskCodec()
    for weight in codec.parameters():  # whatever the codes are, everything in the box is mask
        torch.nn.init.ones_(weight)
    codec.save(tmp_path / "codec.npz", torch.float32)
    path = write(tmp_path / "train.jsonl", row(1, prefix="segment cow", suffix=f"{BOX}{'<seg000>' * 16} cow"))
    plain, drawn = tmp_path / "plain.html", tmp_path / "drawn.html"
    gemlens("data", "preview", path, plain)
    gemlens("data", "preview", path, drawn, "--codec", tmp_path / "codec.npz")
    assert plain.read_text() != drawn.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["check", "gone.jsonl"], 1, "does not exist"),
        (["check"], 2, "Missing argument 'DATA'"),
        (["preview", "gone.jsonl"], 2, "Missing argument 'PAGE.html'"),
        (["preview", "gone.jsonl", "page.html", "--count", "0"], 2, "--count"),
        (["check", "scenes:train", "--allow-outside"], 1, "'allow_outside' means nothing for scenes"),
    ],
)
def test_mistakes_are_sentences(gemlens: Call, arguments: list[str], code: int, sentence: str) -> None:
    result = gemlens("data", *arguments)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_the_page_in_docs_tells_both_commands() -> None:
    page = pages()["data.md"]
    assert "\n## gemlens data check\n" in page
    assert "\n## gemlens data preview\n" in page
    assert "--against DATA" in page


def test_its_help_needs_nothing_slow() -> None:
    program = "import sys, gemlens.cli.data\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "rich", "PIL", "numpy", "pyarrow"}
