"""Every example of the two documentation pages runs, with `gemlens` where they say `transformers`.

Checkpoints are small ones of the right kind, pictures are drawn here, and nothing asks the network. Examples that build
models of default configs, which have billions of weights, run on the meta device.
"""

import io
import re
import socket
import textwrap
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import small_checkpoints
import torch
from PIL import Image

from gemlens import InputError
from gemlens.processing.pictures import picture_urls

HERE = Path(__file__).parent
Block = tuple[str, int]  # the page and the number of the block in it

CHECKPOINTS = {
    "google/paligemma2-3b-mix-224": "paligemma2",
    "google/paligemma2-28b-mix-224": "paligemma2",
    "google/paligemma-3b-ft-nlvr2-448": "paligemma",
    "google/gemma-3-4b-pt": "gemma3-pictures",
    "google/gemma-3-4b-it": "gemma3-pictures",
    "google/gemma-3-27b-it": "gemma3-pictures",
    "google/gemma32-3b-mix-224": "gemma3-pictures",  # there is none of this name; loaded as Gemma 3 with pictures
    "google/gemma-3-1b-pt": "gemma3-text",
    "google/gemma-2-9b": "gemma3-text",  # loaded as Gemma3ForCausalLM
    "google/gemma-3-4b": "gemma3-classifier",
}
# Blocks that go on with names of earlier ones: the inputs of a model shown before, other messages for it.
CONTINUES: dict[Block, tuple[int, ...]] = {("paligemma", 3): (1,), ("gemma3", 4): (1, 3)}
# The only changes of the pages' words, each with its reason.
CORRECTIONS: dict[Block, tuple[str, str]] = {
    # A config is made of a config and called a model: the next line, `model.config`, fails in the reference too; see
    # test_the_corrected_example_fails_in_the_reference.
    ("gemma3", 7): ("Gemma3TextConfig(configuration)", "Gemma3ForConditionalGeneration(configuration)"),
}
DEFAULT_CONFIGS = {("paligemma", 5), ("gemma3", 6), ("gemma3", 7)}
NO_ACCELERATOR = "this machine has none; the model runs on the CPU"
WARNINGS: dict[Block, str] = {("gemma3", 8): "names no picture but 1 came"}
if not torch.accelerator.is_available():
    WARNINGS |= {("paligemma", 0): NO_ACCELERATOR, ("gemma3", 0): NO_ACCELERATOR}


def blocks_of(page: str) -> list[str]:
    """The code of all fenced blocks: dedented, without prompts, outputs and the marks of added lines."""
    text = (HERE / f"{page}.md").read_text(encoding="utf-8")
    fenced = re.findall(r"^( *)```\w*\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    assert 2 * len(fenced) == len(re.findall(r"^ *```", text, flags=re.MULTILINE))
    return [_code(textwrap.dedent(block)) for _, block in fenced]


def _code(block: str) -> str:
    lines = block.splitlines()
    if any(line.startswith(">>>") for line in lines):
        lines = [line[4:] for line in lines if re.match(r"(>>>|\.\.\.)( |$)", line)]
    return "\n".join(re.sub(r"^\+", " ", line) for line in lines)


BLOCKS: dict[Block, str] = {
    (page, number): code for page in ("paligemma", "gemma3") for number, code in enumerate(blocks_of(page))
}
each_block = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}-{block[1]}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    @lru_cache
    def folder(name: str) -> str:
        return str(small_checkpoints.MAKERS[name](tmp_path_factory.mktemp(name)))

    return folder


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers for `requests.get` and for URLs of pictures; anything else that asks the network fails."""

    def png(url: str) -> bytes:
        assert url.startswith("https://")
        file = io.BytesIO()
        Image.effect_noise((40, 30) if "cat" in url else (900, 300), 90).convert("RGB").save(file, "PNG")
        return file.getvalue()

    def get(url: str, stream: bool) -> Any:
        assert stream
        return SimpleNamespace(raw=io.BytesIO(png(url)))

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(picture_urls, "fetch", lambda url, most_bytes, rules: png(url))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it asked the network"))


def run(block: Block, checkpoint: Callable[[str], str], library: str = "gemlens") -> dict[str, Any]:
    """Runs a block behind those that it continues; gives all names."""
    page, number = block
    names: dict[str, Any] = {}
    for earlier in (*CONTINUES.get(block, ()), number):
        code = re.sub(r"\btransformers\b", library, BLOCKS[page, earlier])
        wrong, right = CORRECTIONS.get((page, earlier), ("", ""))
        assert wrong in code
        if library == "gemlens":
            code = code.replace(wrong, right)
        code = re.sub(r'"(google/.*?)"', lambda match: repr(checkpoint(CHECKPOINTS[match[1]])), code)
        with torch.device("meta" if (page, earlier) in DEFAULT_CONFIGS else "cpu"):
            exec(compile(code, f"{page}.md, block {earlier}", "exec"), names)
    return names


@each_block
def test_the_example_runs(block: Block, checkpoint: Callable[[str], str]) -> None:
    if block in WARNINGS:
        with pytest.warns(UserWarning, match=WARNINGS[block]):
            names = run(block, checkpoint)
    else:
        names = run(block, checkpoint)
    if "model.generate" in BLOCKS[block]:
        prompt = (names.get("inputs") or names["input_ids"])["input_ids"]
        answer = names["output"] if "output" in names else names["generate_ids"]
        assert torch.equal(answer[:, : prompt.shape[1]], prompt)
        assert answer.shape[1] > prompt.shape[1]


def test_the_examples_of_inputs_give_what_the_pages_say(checkpoint: Callable[[str], str]) -> None:
    names = run(("paligemma", 3), checkpoint)
    answer = names["inputs"]["labels"][names["inputs"]["labels"] != -100]
    assert names["processor"].decode(answer, skip_special_tokens=True) == names["answer"]
    assert names["model"](**names["inputs"]).loss > 0
    names = run(("gemma3", 4), checkpoint)
    assert names["inputs"].num_crops == [[3, 0]], "the cow's picture is wide"
    answer = names["model"].generate(**names["inputs"], max_new_tokens=2)
    assert answer.shape[1] == names["inputs"]["input_ids"].shape[1] + 2


@pytest.mark.parametrize("number", [11, 12])
def test_the_examples_of_classes_run_on_a_checkpoint_without_classes(
    number: int, checkpoint: Callable[[str], str]
) -> None:
    """The published ones are such."""
    run(("gemma3", number), lambda name: checkpoint("gemma3-pictures"))


# Left out: what differs on purpose (PaliGemma 2's soft caps, PaliGemma with a static cache) and other ways to quantize.
SAME = [("gemma3", 5), ("gemma3", 9), ("gemma3", 10)]


@pytest.mark.parametrize("block", SAME, ids=lambda block: f"{block[0]}-{block[1]}")
def test_the_example_gives_the_tokens_of_the_reference(
    block: Block, checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = io.BytesIO()
    Image.effect_noise((40, 30), 90).convert("RGB").save(drawn, "PNG")
    monkeypatch.setattr(picture_urls, "fetch", lambda *_: drawn.getvalue())
    monkeypatch.setattr(
        requests, "get", lambda *_, **__: SimpleNamespace(content=drawn.getvalue(), raise_for_status=lambda: None)
    )
    found, expected = (run(block, checkpoint, library) for library in ("gemlens", "transformers"))
    name = "output" if "output" in found else "generate_ids"
    assert torch.equal(found[name], expected[name])


def test_the_corrected_example_fails_in_the_reference(checkpoint: Callable[[str], str]) -> None:
    block = ("gemma3", 7)
    assert block in CORRECTIONS
    with pytest.raises(AttributeError, match="'Gemma3TextConfig' object has no attribute 'config'"):
        run(block, checkpoint, "transformers")
    code = re.sub(r"\btransformers\b", "gemlens", BLOCKS[block])
    with pytest.raises(InputError, match="Gemma3TextConfig"):
        exec(code, {})


def test_the_pages_are_whole() -> None:
    """All examples of a page are cases, and no table names one that is not there."""
    assert [sum(page == name for page, _ in BLOCKS) for name in ("paligemma", "gemma3")] == [8, 13]
    named = {*CONTINUES, *CORRECTIONS, *DEFAULT_CONFIGS, *WARNINGS, *SAME}
    assert named <= BLOCKS.keys()
    assert {name for code in BLOCKS.values() for name in re.findall(r'"(google/.*?)"', code)} == CHECKPOINTS.keys()
    assert all("transformers" not in line or "import" in line for code in BLOCKS.values() for line in code.splitlines())
