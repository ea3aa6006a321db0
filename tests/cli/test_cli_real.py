"""The real Gemma 3 270M, a base model, at the command line: text that a person would accept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pseudo_terminal import CTRL_C, CTRL_D, PseudoTerminal
from typer.testing import Result

FILE = Path(__file__).resolve().parents[2] / "real" / "gemma-3-270m-q4_k_m.gguf"
Call = Callable[..., Result]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FILE.exists(), reason="real/ has no Gemma 3 270M; run `make real`"),
]


def test_a_sentence_is_completed(gemlens: Call) -> None:
    sentence = "Plants create energy through a process known as"
    result = gemlens("run", FILE, sentence, "--greedy", "--max-new-tokens", 12, "--json")
    told = json.loads(result.stdout)
    assert told["text"].startswith(" photosynthesis")
    assert (told["stop_reason"], told["new_tokens"]) == ("length", 12)


def test_a_chat_answers_remembers_can_be_interrupted_and_goes_on() -> None:
    with PseudoTerminal("chat", str(FILE), "--greedy", "--verbose") as terminal:
        terminal.wait_for("it is shown a transcript and continues it.")
        terminal.wait_for("> ")
        terminal.send("What is the capital of France?\n")
        terminal.wait_for("The capital of France is Paris.\n")
        terminal.wait_for("ended by stop\n> ")
        terminal.send("And what is the capital of Italy?\n")  # no tie: "And of Italy?" is one, which rounding decides
        assert "Rome" in terminal.wait_for("ended by stop\n> ")
        terminal.send("Please tell me a long story about a fox and a hen.\n")
        terminal.wait_for("hen.\n")
        terminal.wait_for_more(15)
        terminal.send(CTRL_C)
        terminal.wait_for("> ")
        terminal.send("/reset\n")
        terminal.wait_for("(Forgotten.)\n> ")
        terminal.send("What is the capital of Germany?\n")
        assert "Berlin" in terminal.wait_for("ended by stop\n> ")
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert "from the cache" in terminal.screen
    assert "Traceback" not in terminal.screen


def test_what_the_file_holds_is_told_without_reading_its_weights(gemlens: Call) -> None:
    told = json.loads(gemlens("inspect", FILE, "--json", "--tensors").stdout)
    assert told["parameters"] == {
        "embedding": 262144 * 640,
        "decoder": 268_098_176 - 262144 * 640,
        "total": 268_098_176,
    }
    assert sum(tensor["nbytes"] for tensor in told["tensors"]) < FILE.stat().st_size
    assert {tensor["format"] for tensor in told["tensors"]} == {"F32", "Q8_0", "Q6_K", "Q5_0", "Q4_K"}
