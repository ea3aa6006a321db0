"""What goes wrong is one sentence on standard error and an exit code; --debug shows where it comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gemlens.cli import inspect

Call = Callable[..., Result]
Folder = Callable[[str], str]


def told(result: Result, code: int = 1) -> str:
    """The sentence of a command that failed."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


COMMANDS = [
    ("run", "{}", "Hello"),
    ("chat", "{}"),
    ("inspect", "{}"),
    ("mask", "{}", "Hi"),
    ("convert", "{}", "out"),
    ("quantize", "{}", "out", "--type", "int8_weight_only"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("place", ["no/such/place", "empty", "file.txt", "there/no.gguf"])
def test_what_is_no_model_is_a_sentence(
    gemlens: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    sentence = told(gemlens(*(word.format(place) for word in command)))
    assert sentence.startswith("gemlens: ")
    assert place in sentence
    assert not (tmp_path / "out").exists()


def test_a_folder_of_gguf_files_says_which_to_pass(gemlens: Call, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    assert f"pass the path of one, as in '{tmp_path}/a.gguf'" in told(gemlens("run", tmp_path, "Hello"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"no gguf at all"])
def test_a_broken_gguf_file_is_a_sentence(gemlens: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    assert "broken.gguf" in told(gemlens("run", tmp_path / "broken.gguf", "Hello"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_checkpoint_is_a_sentence(gemlens: Call, checkpoint: Folder, tmp_path: Path, file: str) -> None:
    for path in Path(checkpoint("gemma3-text")).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-100])
    assert file in told(gemlens("run", tmp_path, "Hello"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--image", "no.png"), "no.png"),
        (("--image", "{cow}"), "This model reads text only"),
        (("--device", "mars"), "There is no device 'mars'"),
        (("--device", "cuda:99"), "There is no device 'cuda:99'"),
        (("--raw", "--system", "Be kind."), "--system has no place, as --raw was given"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    gemlens: Call, checkpoint: Folder, cow: str, arguments: tuple[str, ...], sentence: str
) -> None:
    given = [word.format(cow=cow) for word in arguments]
    assert sentence in told(gemlens("run", checkpoint("gemma3-text"), "Hello", *given))


def test_a_system_prompt_needs_a_chat_template(gemlens: Call, checkpoint: Folder) -> None:
    sentence = told(gemlens("run", checkpoint("base"), "Hello", "--system", "Be kind."))
    assert "--system has no place, as this model has no chat template" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("run",),
        ("run", "m", "p", "--nonsense"),
        ("run", "m", "p", "--greedy", "--temperature", "1"),
        ("run", "m", "p", "--temperature", "0", "--top-k", "5"),
        ("run", "m", "p", "--max-new-tokens", "0"),
        ("run", "m", "p", "--top-p", "1.5"),
        ("run", "m", "p", "--top-p", "0"),
        ("run", "m", "p", "--temperature", "nan"),
        ("chat", "m", "--stop", ""),
        ("run", "m", "p", "--dtype", "int3"),
        ("run", "m", ""),
        ("quantize", "m", "out"),
        ("inspect", "m", "--batch", "0"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_shows_the_usage(gemlens: Call, arguments: tuple[str, ...]) -> None:
    result = gemlens(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments", [("--debug", "inspect", "nowhere/at/all"), ("inspect", "nowhere/at/all", "--debug")]
)
def test_debug_shows_where_an_error_comes_from(gemlens: Call, arguments: tuple[str, ...]) -> None:
    result = gemlens(*arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("gemlens: 'nowhere/at/all' is neither")


def test_debug_behind_two_dashes_is_a_text(gemlens: Call, checkpoint: Folder) -> None:
    arguments = ("run", "--greedy", "--max-new-tokens", 4, checkpoint("base"))
    assert gemlens(*arguments, "--", "--debug").stdout == gemlens(*arguments, "-", stdin="--debug").stdout


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            RuntimeError("CUDA out of memory.\nmore"),
            1,
            "gemlens: Something unforeseen happened (RuntimeError: CUDA out of memory.); --debug shows where.",
        ),
        (ZeroDivisionError(), 1, "gemlens: Something unforeseen happened (ZeroDivisionError); --debug shows where."),
        (PermissionError(13, "Permission denied", "/x"), 1, "gemlens: Permission denied: '/x'"),
        (OSError(), 1, "gemlens: Something unforeseen happened (OSError); --debug shows where."),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),  # a reader such as `head` that has enough
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_everything_else_is_a_sentence_too(
    gemlens: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(inspect, "parameters_by_part", fail)
    monkeypatch.setattr(inspect.Checkpoint, "config", fail)
    result = gemlens("inspect", "anything/there")
    assert result.exit_code == code
    assert result.stderr.strip() == sentence


def test_escape_sequences_of_files_do_not_reach_the_terminal_in_a_sentence(gemlens: Call) -> None:
    assert "\x1b" not in gemlens("inspect", "evil\x1b[31m/name").output
