"""`gemlens run`: the answer is generate's, and only the answer is on standard output."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

import gemlens as library
from gemlens.cli.answer import Speaker
from gemlens.cli.prompts import Inputs
from gemlens.cli.settings import Sampling
from gemlens.cli.terminal import plain

Call = Callable[..., Result]
Folder = Callable[[str], str]
SHORT = ("--greedy", "--max-new-tokens", "8")


def expected(folder: str, inputs: Any, **settings: Any) -> str:
    """What the library says, without the command line and without control characters."""
    auto: Any = library.AutoModelForCausalLM
    if library.AutoConfig.from_pretrained(folder).model_type == "paligemma":
        auto = library.AutoModelForImageTextToText
    model = auto.from_pretrained(folder)
    ids = model.generate(**inputs, **{"do_sample": False, "max_new_tokens": 8, **settings})
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    return plain(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_a_base_models_prompt_is_continued_as_it_is(gemlens: Call, checkpoint: Folder) -> None:
    folder = checkpoint("base")
    inputs = {"input_ids": library.AutoTokenizer.from_pretrained(folder)("The work", return_tensors="pt").input_ids}
    result = gemlens("run", folder, "The work", *SHORT)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == expected(folder, inputs) + "\n"


def test_an_instruction_tuned_model_gets_its_chat_template_unless_raw(gemlens: Call, checkpoint: Folder) -> None:
    folder = checkpoint("gemma3-text")
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    written = "<bos><start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n<start_of_turn>model\n"
    chat = expected(folder, {"input_ids": tokenizer(written, return_tensors="pt").input_ids})
    assert gemlens("run", folder, "Hello", "--system", "Be kind.", *SHORT).stdout == chat + "\n"
    raw = expected(folder, {"input_ids": tokenizer("Hello", return_tensors="pt").input_ids})
    assert gemlens("run", folder, "Hello", "--raw", *SHORT).stdout == raw + "\n"
    assert raw != chat


@pytest.mark.parametrize("family", ["gemma3-pictures", "paligemma"])
def test_pictures_are_seen(gemlens: Call, checkpoint: Folder, cow: str, family: str) -> None:
    folder = checkpoint(family)
    processor = library.AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image", "path": cow}, {"type": "text", "text": "What is it?"}]
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([{"role": "user", "content": parts}], **how)
    assert gemlens("run", folder, "What is it?", "--image", cow, *SHORT).stdout == expected(folder, inputs) + "\n"


def test_json_is_one_object_with_counts_seconds_and_the_reason(gemlens: Call, checkpoint: Folder) -> None:
    result = gemlens("run", checkpoint("base"), "The work", "--json", *SHORT)
    said = json.loads(result.stdout)
    assert said.keys() == {"text", "stop_reason", "prompt_tokens", "new_tokens", "prefill_seconds", "decode_seconds",
                           "load_seconds", "model"}  # fmt: skip
    assert said["text"] + "\n" == gemlens("run", checkpoint("base"), "The work", *SHORT).stdout
    assert (said["stop_reason"], said["new_tokens"]) == ("length", 8)
    assert said["prompt_tokens"] == len(library.AutoTokenizer.from_pretrained(checkpoint("base")).encode("The work"))
    assert said["prefill_seconds"] > 0


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_may_come_from_standard_input(gemlens: Call, checkpoint: Folder, arguments: tuple[str, ...]) -> None:
    piped = gemlens("run", checkpoint("base"), *arguments, *SHORT, stdin="The work\n")
    assert piped.stdout == gemlens("run", checkpoint("base"), "The work", *SHORT).stdout


def test_a_stop_string_ends_the_answer_and_is_not_shown(gemlens: Call, checkpoint: Folder) -> None:
    whole = json.loads(gemlens("run", checkpoint("base"), "The work", "--json", *SHORT).stdout)["text"]
    stop = whole[len(whole) // 2 :][:3]
    said = json.loads(gemlens("run", checkpoint("base"), "The work", "--json", "--stop", stop, *SHORT).stdout)
    assert said["text"] == whole[: whole.index(stop)]
    assert said["stop_reason"] == "stop"


def test_a_seed_gives_the_same_draws_again_and_another_seed_others(gemlens: Call, checkpoint: Folder) -> None:
    def draw(seed: int) -> str:
        return gemlens("run", checkpoint("base"), "The", "--temperature", 2, "--top-k", 200, "--seed", seed,
                       "--max-new-tokens", 8).stdout  # fmt: skip

    assert draw(1) == draw(1) != draw(2)


def test_without_options_generation_config_decides(checkpoint: Folder) -> None:
    model: Any = library.AutoModelForCausalLM.from_pretrained(checkpoint("base"))
    tokenizer = library.AutoTokenizer.from_pretrained(checkpoint("base"))
    model.generation_config.update(max_new_tokens=3, do_sample=True, temperature=3.0)
    inputs = Inputs(tokenizer("The", return_tensors="pt").input_ids)
    drawn = {Speaker(model, tokenizer).answer(inputs, Sampling(seed=n), lambda text: None).tokens for n in range(5)}
    assert len(drawn) > 1
    assert {len(tokens) for tokens in drawn} <= {1, 2, 3}
    greedy = [Speaker(model, tokenizer).answer(inputs, Sampling(greedy=True), lambda text: None) for _ in range(2)]
    assert greedy[0].tokens == greedy[1].tokens


def test_an_answer_ends_where_the_model_was_made_for_no_more(checkpoint: Folder) -> None:
    model: Any = library.AutoModelForCausalLM.from_pretrained(checkpoint("endless"))
    model.config.max_position_embeddings = 12
    tokenizer = library.AutoTokenizer.from_pretrained(checkpoint("endless"))
    inputs = Inputs(tokenizer("The", return_tensors="pt").input_ids)
    answer = Speaker(model, tokenizer).answer(inputs, Sampling(greedy=True), lambda text: None)
    assert (answer.stop_reason, answer.prompt_tokens + len(answer.tokens)) == ("context", 12)


def test_escape_sequences_of_the_model_do_not_reach_the_terminal(gemlens: Call, checkpoint: Folder) -> None:
    arguments = ("run", checkpoint("escapes"), "The", "--temperature", 9, "--seed", 0, "--max-new-tokens", 20)
    assert "\x1b" in json.loads(gemlens(*arguments, "--json").stdout)["text"]
    assert re.fullmatch(r"T+\n", gemlens(*arguments).stdout)


def test_speed_is_told_on_standard_error_only(gemlens: Call, checkpoint: Folder) -> None:
    quiet, verbose = (gemlens("run", checkpoint("base"), "The", *SHORT, *more) for more in ((), ("--verbose",)))
    assert quiet.stdout == verbose.stdout
    assert "answer: 8 tokens" in verbose.stderr
    assert "ended by length" in verbose.stderr
