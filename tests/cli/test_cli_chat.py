"""`gemlens chat`, fed line by line: the history is what the model reads, and a cache changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import gemlens as library
from gemlens.cli.answer import Answer, Speaker
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.dialogue import Dialogue, dialogue_for
from gemlens.cli.prompts import Inputs, Message, Picture, Reader
from gemlens.cli.session import Memory, Session
from gemlens.cli.settings import Loading, Sampling
from gemlens.cli.terminal import plain
from gemlens.errors import InputError

Call = Callable[..., Result]
Folder = Callable[[str], str]
SHORT = ("--greedy", "--max-new-tokens", "6")


def session(folder: str, **settings: Any) -> Session:
    checkpoint = Checkpoint.of(folder)
    reader = Reader(checkpoint.reader(checkpoint.config()))
    speaker = Speaker(checkpoint.load(Loading()), reader.tokenizer)
    return Session(speaker, dialogue_for(reader), Sampling(**{"greedy": True, "max_new_tokens": 6, **settings}))


def quiet(text: str) -> None:
    """Shows nothing."""


def without_cache(talk: Session, question: str) -> str:
    """What a model that reads everything anew answers."""
    fresh = Session(talk.speaker, talk.dialogue, talk.sampling, talk.system)
    fresh.messages, fresh.pictures = list(talk.messages), list(talk.pictures)
    return fresh.ask(question, quiet).text


@pytest.mark.parametrize("name", ["gemma3-text", "base", "gemma3-pictures", "base-pictures", "paligemma"])
def test_every_turn_answers_as_if_all_were_read_anew(checkpoint: Folder, cow: str, name: str) -> None:
    talk = session(checkpoint(name))
    for turn, question in enumerate(["The work", "and the license", "of any"]):
        if name.endswith("-pictures") or (name == "paligemma" and turn == 0):
            talk.pictures.append(Picture.open(cow))
        expected = without_cache(talk, question)
        assert talk.ask(question, quiet).text == expected


class Verbatim:
    """A dialogue that gives the model back the very tokens it chose, as a template's text may not."""

    grows, note = True, ""
    stops: tuple[str, ...] = ()

    def __init__(self, inner: Dialogue) -> None:
        self.inner, self.last = inner, Inputs(torch.zeros(1, 0, dtype=torch.int64))

    def inputs(self, messages: Any) -> Inputs:
        new = self.inner.inputs(messages[-1:])
        pixels = [each for each in (self.last.pixel_values, new.pixel_values) if each is not None]
        ids = torch.cat([self.last.input_ids, new.input_ids], dim=1)
        self.last = Inputs(ids, torch.cat(pixels) if pixels else None)
        return self.last

    def hear(self, answer: Answer) -> None:
        ids = torch.cat([self.last.input_ids, torch.tensor([answer.tokens])], dim=1)
        self.last = Inputs(ids, self.last.pixel_values)


@pytest.mark.parametrize("name", ["base", "gemma3-pictures"])
def test_what_was_read_before_comes_from_the_cache_and_gives_the_same_answer(
    checkpoint: Folder, cow: str, name: str
) -> None:
    talk = session(checkpoint(name))
    talk.dialogue = dialogue = Verbatim(talk.dialogue)
    read = 0
    for question in ("The work", "and the license", "of any"):
        talk.pictures += [Picture.open(cow)] if name == "gemma3-pictures" else []
        answer = talk.ask(question, quiet)
        assert answer.tokens == talk.speaker.answer(dialogue.last, talk.sampling, quiet).tokens
        assert answer.cached_tokens == read
        read = answer.prompt_tokens + len(answer.tokens) - 1
        dialogue.hear(answer)
    assert read > 0


def test_a_cache_of_other_pictures_is_not_used(checkpoint: Folder, cow: str) -> None:
    talk = session(checkpoint("gemma3-pictures"))
    memory, inputs = Memory(), talk.dialogue.inputs([Message("user", "a", (Picture.open(cow),))])
    assert inputs.pixel_values is not None
    cache = memory.take(talk.speaker, inputs)
    answer = talk.speaker.answer(inputs, talk.sampling, quiet, cache=cache)
    longer = torch.cat([inputs.input_ids, torch.tensor([[*answer.tokens, 5]])], dim=1)
    for pixels, same in ((inputs.pixel_values, True), (inputs.pixel_values + 1, False), (None, False)):
        memory.keep(cache, inputs, answer)
        assert (memory.take(talk.speaker, Inputs(longer, pixels)) is cache) is same


def test_the_model_reads_the_history_and_the_system(checkpoint: Folder) -> None:
    talk = session(checkpoint("gemma3-text"))
    talk.system = "Be kind."
    answer = talk.ask("Hello", quiet).text
    read = talk.dialogue.inputs([*talk.told, Message("user", "More")]).input_ids[0]
    written = f"user\nBe kind.\n\nHello\nmodel\n{answer}\nuser\nMore\nmodel\n"
    assert talk.speaker.tokenizer.decode(read, skip_special_tokens=True) == written


def test_a_base_model_continues_a_transcript_up_to_the_next_question(checkpoint: Folder) -> None:
    talk = session(checkpoint("base"))
    talk.messages = [Message("user", "Hello"), Message("assistant", "Hi.")]
    text = talk.speaker.tokenizer.decode(talk.dialogue.inputs([*talk.messages, Message("user", "More")]).input_ids[0])
    assert text.endswith("User: Hello\nAssistant: Hi.\nUser: More\nAssistant:")
    assert "\nUser:" in talk.dialogue.stops


def test_what_a_person_writes_cannot_be_a_control_token(checkpoint: Folder) -> None:
    for name in ("gemma3-text", "base"):
        talk = session(checkpoint(name))
        one = talk.dialogue.inputs([Message("user", "a")]).input_ids[0].tolist()
        other = talk.dialogue.inputs([Message("user", "<end_of_turn>")]).input_ids[0].tolist()
        end = talk.speaker.tokenizer.convert_tokens_to_ids("<end_of_turn>")
        assert other.count(end) == one.count(end)


def test_an_interrupted_answer_is_kept_as_far_as_it_went_and_the_talk_goes_on(checkpoint: Folder) -> None:
    talk = session(checkpoint("endless"), max_new_tokens=50)
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    answer = talk.ask("The work", interrupt)
    assert answer.stop_reason == "interrupted"
    assert len(answer.tokens) < 50
    assert [message.text for message in talk.messages] == ["The work", "".join(said).strip()]
    assert talk.ask("and more", quiet).text == without_cache_before(talk)


def without_cache_before(talk: Session) -> str:
    """The last answer, from a model that reads everything anew."""
    fresh = Session(talk.speaker, talk.dialogue, talk.sampling, talk.system)
    fresh.messages = talk.messages[:-2]
    return fresh.ask(talk.messages[-2].text, quiet).text


def test_an_answer_that_is_interrupted_before_its_first_word_leaves_no_trace(checkpoint: Folder) -> None:
    talk = session(checkpoint("endless"))

    class Stopped:
        def generate(self, *arguments: Any, **named: Any) -> None:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    model = talk.speaker.model
    talk.speaker = Speaker(Stopped(), talk.speaker.tokenizer)  # type: ignore[arg-type]
    assert talk.ask("The work", quiet).stop_reason == "interrupted"
    assert talk.messages == []


def test_a_conversation_that_no_longer_fits_is_told_with_the_numbers(checkpoint: Folder) -> None:
    talk = session(checkpoint("gemma3-text"))
    talk.ask("Hello", quiet)
    with pytest.raises(InputError, match=r"There are 6\d\d tokens to read, but the model was made for 512.*/reset"):
        talk.ask("word " * 150, quiet)
    assert len(talk.messages) == 2
    assert talk.ask("More", quiet).text == without_cache_before(talk)


def test_a_seed_makes_a_conversation_repeatable_but_its_turns_differ(checkpoint: Folder) -> None:
    def talk(seed: int) -> list[str]:
        said = session(checkpoint("gemma3-text"), greedy=False, temperature=3.0, seed=seed)
        return [said.ask("Hello", quiet).text, said.ask("Hello", quiet).text]

    assert talk(1) == talk(1) != talk(2)


# -- line by line ------------------------------------------------------------------------------------------------------


def test_answers_are_on_standard_output_and_all_else_is_not(gemlens: Call, checkpoint: Folder) -> None:
    talk = session(checkpoint("gemma3-text"))
    said = [talk.ask(question, quiet).text for question in ("Hello", "The work")]
    result = gemlens("chat", checkpoint("gemma3-text"), *SHORT, stdin="Hello\n\nThe work\n")
    assert result.exit_code == 0
    assert [line.strip() for line in result.stdout.split("\n")] == [*(plain(text) for text in said), ""]
    assert "/help" in result.stderr


def test_reset_forgets_and_system_is_kept(gemlens: Call, checkpoint: Folder, tmp_path: Path) -> None:
    lines = f"/system Be kind.\nHello\n/save {tmp_path}/one.json\n/reset\nHello\n/save {tmp_path}/two.json\n/exit\nno\n"
    result = gemlens("chat", checkpoint("gemma3-text"), *SHORT, stdin=lines)
    assert result.exit_code == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert [message["role"] for message in one] == ["system", "user", "assistant"]


def test_save_writes_json_that_a_chat_template_takes_and_markdown(
    gemlens: Call, checkpoint: Folder, cow: str, tmp_path: Path
) -> None:
    lines = f"/image {cow}\nWhat is it?\n/save {tmp_path}/talk.json\n/save {tmp_path}/talk.md\nMore\n"
    lines += f"/save {tmp_path}/talk.json\n"
    result = gemlens("chat", checkpoint("gemma3-pictures"), *SHORT, stdin=lines)
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved[0]["content"] == [{"type": "image", "path": cow}, {"type": "text", "text": "What is it?"}]
    assert len(saved) == 4
    processor: Any = library.AutoProcessor.from_pretrained(checkpoint("gemma3-pictures"))
    assert (
        processor.apply_chat_template(saved, tokenize=True, return_dict=True, return_tensors="pt")["pixel_values"].ndim
        == 4
    )
    markdown = (tmp_path / "talk.md").read_text()
    assert f"## user\n\n![picture]({cow})\n\nWhat is it?\n\n## assistant\n" in markdown
    assert result.stderr.count("(Saved to") == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/bogus", "There is no command /bogus; there are /image, /system, /reset, /save, /help, /exit."),
        ("/image", "This model reads text only"),
        ("/save", "/save needs the name of a file"),
        ("/save talk.txt", "name a file that ends in .json or .md"),
        ("/save {folder}/there.md", "is there already"),
        ("/save {folder}/no/where.md", "cannot be written"),
    ],
)
def test_a_wrong_command_is_a_sentence_and_the_chat_goes_on(
    gemlens: Call, checkpoint: Folder, tmp_path: Path, line: str, sentence: str
) -> None:
    (tmp_path / "there.md").write_text("mine")
    result = gemlens("chat", checkpoint("gemma3-text"), *SHORT, stdin=f"{line.format(folder=tmp_path)}\nHello\n")
    assert result.exit_code == 0
    assert sentence in result.stderr
    assert result.stdout.strip()
    assert (tmp_path / "there.md").read_text() == "mine"


def test_a_picture_that_cannot_be_opened_is_a_sentence(gemlens: Call, checkpoint: Folder, tmp_path: Path) -> None:
    (tmp_path / "not.png").write_text("no picture")
    result = gemlens("chat", checkpoint("gemma3-pictures"), *SHORT, stdin=f"/image {tmp_path}/not.png\nHello\n")
    assert "not.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip()


def test_paligemma_says_that_it_needs_a_picture_and_that_it_holds_no_conversation(
    gemlens: Call, checkpoint: Folder, cow: str
) -> None:
    result = gemlens("chat", checkpoint("paligemma"), *SHORT, stdin=f"answer en What?\n/image {cow}\nanswer en What?\n")
    assert "PaliGemma holds no conversations" in result.stderr
    assert "PaliGemma answers about pictures, and none came" in result.stderr
    assert result.exit_code == 0


def test_an_answer_that_was_cut_off_says_why(gemlens: Call, checkpoint: Folder) -> None:
    result = gemlens("chat", checkpoint("endless"), "--greedy", "--max-new-tokens", 3, stdin="Hello\n")
    assert "(Ended after 3 tokens; --max-new-tokens sets how many.)" in result.stderr
