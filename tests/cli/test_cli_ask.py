"""`gemlens ask`: the question in the words of the model's kind, and only the answers on standard output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import gemlens as library
from gemlens.cli.terminal import plain

Call = Callable[..., Result]
Folder = Callable[[str], str]
QUESTION = "how many cows are there?"
SHORT = ("--max-new-tokens", "6")


def answer(folder: str, picture: str, text: str, conversation: bool = False) -> str:
    """The library's most probable answer."""
    model: Any = library.AutoModelForImageTextToText.from_pretrained(folder)
    processor = library.AutoProcessor.from_pretrained(folder)
    if conversation:
        parts = [{"type": "image", "path": picture}, {"type": "text", "text": text}]
        how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        inputs = processor.apply_chat_template([{"role": "user", "content": parts}], **how)
    else:
        inputs = processor(images=library.processing.pictures.pictures.open_picture(picture), text=text,
                           return_tensors="pt")  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return plain(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_paligemma_reads_answer_and_the_language(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("paligemma")
    for more, prompt in (((), f"answer en {QUESTION}"), (("--language", "de"), f"answer de {QUESTION}")):
        result = gemlens("ask", cow, QUESTION, "--model", folder, *more, *SHORT)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == answer(folder, cow, f"<image>{prompt}") + "\n"


def test_a_model_with_a_chat_template_reads_a_message(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("gemma3-pictures")
    assert gemlens("ask", cow, QUESTION, "-m", folder, *SHORT).stdout == answer(folder, cow, QUESTION, True) + "\n"
    told = f"{QUESTION} (Answer in the language with the code 'de'.)"
    result = gemlens("ask", cow, QUESTION, "-m", folder, "--language", "de", *SHORT)
    assert result.stdout == answer(folder, cow, told, True) + "\n"


def test_a_base_model_reads_the_question_behind_the_picture(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("base-pictures")
    expected = answer(folder, cow, f"<start_of_image>{QUESTION}")
    assert gemlens("ask", cow, QUESTION, "-m", folder, *SHORT).stdout == expected + "\n"


def test_answers_about_several_pictures_begin_with_their_names(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("paligemma")
    one = gemlens("ask", cow, QUESTION, "-m", folder, *SHORT).stdout
    assert gemlens("ask", cow, cow, QUESTION, "-m", folder, *SHORT).stdout == f"{cow}: {one}" * 2


def test_json_is_one_object_per_picture(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("paligemma")
    lines = gemlens("ask", cow, cow, QUESTION, "-m", folder, "--json", *SHORT).stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["picture"] for each in told] == [cow, cow]
    assert {"text", "stop_reason", "new_tokens"} < told[0].keys()
    assert plain(told[0]["text"]) + "\n" == gemlens("ask", cow, QUESTION, "-m", folder, *SHORT).stdout


def test_a_picture_may_come_from_standard_input(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("paligemma")
    piped = gemlens("ask", "-", QUESTION, "-m", folder, *SHORT, stdin=Path(cow).read_bytes())
    assert piped.stdout == gemlens("ask", cow, QUESTION, "-m", folder, *SHORT).stdout != ""


def test_a_broken_picture_is_told_and_the_others_go_on(gemlens: Call, checkpoint: Folder, cow: str) -> None:
    folder = checkpoint("paligemma")
    result = gemlens("ask", "none.png", cow, QUESTION, "-m", folder, *SHORT)
    assert result.exit_code == 1
    assert result.stderr == (
        "gemlens: The picture 'none.png' does not exist; check the spelling and the current folder.\n"
    )
    assert result.stdout.startswith(f"{cow}: ")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{cow}", "{cow}"], 2, "is a file; this comes behind the pictures"),
        (["{cow}", " "], 1, "The question is empty"),
        (["{cow}", "what?", "--language", "e n"], 1, "'e n' is no code of a language"),
        (["{cow}", "what?", "-m", "{text}"], 1, "This model reads text only"),
    ],
)
def test_mistakes_are_sentences(
    gemlens: Call, checkpoint: Folder, cow: str, arguments: list[str], code: int, told: str
) -> None:
    places = {"cow": cow, "text": checkpoint("gemma3-text")}
    result = gemlens("ask", "-m", checkpoint("paligemma"), *(each.format(**places) for each in arguments))
    assert result.exit_code == code
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
