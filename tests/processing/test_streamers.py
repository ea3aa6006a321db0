"""TextStreamer and TextIteratorStreamer: what they show adds up, is never taken back, and the reader never hangs."""

import queue
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from processor_pairs import gemma3_pair
from small_vocabulary import PROBES, small_tokenizer

from gemlens import TextIteratorStreamer, TextStreamer
from gemlens.errors import InputError

TOKENIZER = small_tokenizer()
IDS = st.lists(st.integers(0, len(TOKENIZER) + 2), max_size=12)
SNOWMAN = TOKENIZER.encode("\u2603", add_special_tokens=False)


def feed(streamer: Any, prompt: list[int], answer: list[int]) -> None:
    """As `generate` does: the prompt [1, S], then one token after the other."""
    streamer.put(torch.tensor([prompt]))
    for token in answer:
        streamer.put(torch.tensor([token]))
    streamer.end()


@given(IDS, IDS, st.booleans(), st.booleans())
@example([2], SNOWMAN, True, True)
@example(SNOWMAN[:2], SNOWMAN[2:], False, True)
def test_what_is_streamed_is_what_decode_makes_of_all(
    prompt: list[int], answer: list[int], skip_prompt: bool, skip_special: bool
) -> None:
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt, timeout=5, skip_special_tokens=skip_special)
    feed(streamer, prompt, answer)
    shown = [*streamer]
    ids = answer if skip_prompt else prompt + answer
    assert "".join(shown) == TOKENIZER.decode(ids, skip_special_tokens=skip_special)
    assert all(shown), "no empty texts"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The processors of both libraries."""
    return gemma3_pair(tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize("settings", [{}, {"skip_prompt": True}, {"skip_special_tokens": True}], ids=str)
def test_the_references_streamers_show_the_same_text(
    pair: tuple[Any, Any], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pair
    prompt = ours.tokenizer.encode("Where is the License?")
    answer = ours.tokenizer.encode("In the work, \u4f60\u597d\nunder a \u2603.<end_of_turn>", add_special_tokens=False)
    shown = []
    for streamer in (TextStreamer(ours, **settings), transformers.TextStreamer(theirs.tokenizer, **settings)):
        feed(streamer, prompt, answer)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    handed = []
    for library, part in ((TextIteratorStreamer, ours), (transformers.TextIteratorStreamer, theirs.tokenizer)):
        streamer = library(part, timeout=5, **settings)
        feed(streamer, prompt, answer)
        handed.append("".join(streamer))
    assert handed[0] == handed[1] == shown[0].removesuffix("\n")


@given(PROBES)
def test_text_comes_with_its_token(text: str) -> None:
    """Nothing waits but bytes and what they could belong to; the reference waits for spaces."""

    class Recorder(TextStreamer):
        shown = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.shown += text

    recorder, ids = Recorder(TOKENIZER), TOKENIZER.encode(text, add_special_tokens=False)
    for place, token in enumerate(ids):
        recorder.put(torch.tensor([token]))
        whole = TOKENIZER.decode(ids[: place + 1])
        assert whole.startswith(recorder.shown) or "\ufffd" in whole
        if not TOKENIZER.convert_ids_to_tokens(token).startswith("<0x"):
            assert recorder.shown == whole


def test_a_streamer_can_be_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(TOKENIZER, skip_prompt=True)
    prompt, answer = TOKENIZER.encode("the"), TOKENIZER.encode("cow", add_special_tokens=False)
    for _ in range(2):
        feed(streamer, prompt, answer)
    assert capsys.readouterr().out == "cow\ncow\n"


def test_another_thread_reads_while_tokens_come() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=5)
    answer = TOKENIZER.encode("the cow on the beach", add_special_tokens=False)
    thread = Thread(target=feed, args=(streamer, [2], answer))
    thread.start()
    assert "".join(streamer) == "<bos>the cow on the beach"
    thread.join()


def test_a_reader_waits_no_longer_than_its_timeout() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=0.01)
    with pytest.raises(queue.Empty):
        next(streamer)


def fails_after(length: int) -> Any:
    """A logits processor that fails when a text has so many tokens."""

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] >= length:
            raise RuntimeError("it failed")
        return scores

    return process


def streamed(model: Any, timeout: float = 5, **arguments: Any) -> tuple[list[str], list[BaseException]]:
    """What a reader gets of an answer in another thread, and what failed there."""
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=timeout)
    failures: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(torch.tensor([[2, 5, 6]]), streamer=streamer, **arguments)
        except Exception as error:
            failures.append(error)

    thread = Thread(target=generate)
    thread.start()
    try:
        return [*streamer], failures
    finally:
        thread.join()


def test_a_failure_while_generating_ends_the_stream(tiny: ModuleType) -> None:
    model = tiny.model("gemma3")
    whole, failures = streamed(model, max_new_tokens=6)
    assert not failures
    ids = model.generate(torch.tensor([[2, 5, 6]]), max_new_tokens=6)
    assert "".join(whole) == TOKENIZER.decode(ids[0, 3:])
    part, failures = streamed(model, max_new_tokens=6, logits_processor=[fails_after(5)])
    assert [str(error) for error in failures] == ["it failed"]
    assert "".join(part) == TOKENIZER.decode(ids[0, 3:5])


@pytest.mark.parametrize("wrong", [{"num_beams": 2}, {"max_new_token": 3}, {"max_new_tokens": -1}], ids=str)
def test_arguments_that_generate_refuses_end_the_stream(tiny: ModuleType, wrong: dict[str, Any]) -> None:
    shown, failures = streamed(tiny.model("gemma3"), timeout=0.5, **wrong)
    assert shown == []
    assert len(failures) == 1


def test_several_answers_are_refused_by_both() -> None:
    two = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="batch size 1"):
        transformers.TextStreamer(TOKENIZER).put(two)
    with pytest.raises(InputError, match=r"2 answers are generated together, but one can be streamed"):
        TextStreamer(TOKENIZER).put(two)


def test_arguments_that_cannot_be_acted_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A str came as tokenizer"):
        TextStreamer("google/gemma-3-4b-it")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes spaces back"):
        TextStreamer(TOKENIZER, clean_up_tokenization_spaces=True)
    with pytest.raises(TypeError, match="skip_special_token"):
        TextIteratorStreamer(TOKENIZER, skip_special_token=True)  # type: ignore[call-arg]
