"""TextStream: pieces of text that add up to what decode gives, whatever tokens come."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_vocabulary import PROBES, small_tokenizer

from gemlens.errors import InputError
from gemlens.processing.text.streaming import TextStream

TOKENIZER = small_tokenizer()
IDS = st.lists(st.integers(0, len(TOKENIZER) + 2), max_size=30)
BYTES = {byte: TOKENIZER.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)}


def bytes_of(text: str) -> list[int]:
    return [BYTES[byte] for byte in text.encode()]


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text up to the stop string that is complete first, and that string; of several the longest."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            stop = max(met, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(IDS, st.booleans())
@example(bytes_of("\u2603"), True)
@example(bytes_of("\u2603")[:2], True)
@example([*bytes_of("\u2603")[:2], 2, *bytes_of("\u2603")[2:]], True)
@example([*bytes_of("\u2603"), BYTES[0xFF]], True)
def test_pieces_add_up_to_the_decoded_text(ids: list[int], skip: bool) -> None:
    stream = TextStream(TOKENIZER, skip_special_tokens=skip)
    shown = "".join(stream.put(token) for token in ids) + stream.finish()
    assert shown == TOKENIZER.decode(ids, skip_special_tokens=skip)


@given(PROBES)
def test_no_half_character_is_ever_shown(text: str) -> None:
    stream = TextStream(TOKENIZER)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces = [*(stream.put(token) for token in ids), stream.finish()]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(PROBES, st.lists(st.text("abthe cow<>\n", min_size=1, max_size=6), min_size=1, max_size=3))
@example("aab", ["ab"])
@example("aabaabaac", ["aabaac"])
@example("abcd", ["bcd", "c"])
@example("abcd", ["cd", "bcd"])
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(TOKENIZER, stops)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    shown = "".join(stream.put(token) for token in ids) + stream.finish()
    whole = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert (shown, stream.stop_string) == expected(whole, stops)


def test_what_may_begin_a_stop_string_waits_and_the_rest_does_not() -> None:
    stream = TextStream(TOKENIZER, "</b>")
    ids = [TOKENIZER.convert_tokens_to_ids(character) for character in "a<</c</b>x"]
    assert [stream.put(token) for token in ids] == ["a", "", "<", "", "</c", "", "", "", "", ""]
    assert stream.stop_string == "</b>"
    assert stream.finish() == ""


def test_finish_gives_what_waited() -> None:
    stream = TextStream(TOKENIZER, ["<end>"])
    ids = [TOKENIZER.convert_tokens_to_ids(character) for character in "a<e"]
    assert [stream.put(token) for token in ids] == ["a", "", ""]
    assert stream.finish() == "<e"
    assert stream.finish() == ""


def test_a_stop_string_may_be_spelt_in_bytes() -> None:
    stream = TextStream(TOKENIZER, "\u2603")
    assert "".join(stream.put(token) for token in bytes_of("a\u2603")) + stream.finish() == "a"
    assert stream.stop_string == "\u2603"


def test_special_tokens_are_shown_when_asked_for() -> None:
    assert TextStream(TOKENIZER).put(2) == ""
    assert TextStream(TOKENIZER, skip_special_tokens=False).put(2) == "<bos>"
    assert TextStream(TOKENIZER).put(4) == "<mask>"


@pytest.mark.parametrize("stops", ["", [""], ["a", ""], [3]])
def test_stop_strings_without_characters_are_refused(stops: list[str]) -> None:
    with pytest.raises(InputError, match=r"stop_strings=.*at least one character"):
        TextStream(TOKENIZER, [*stops] or [""])


def test_a_long_answer_costs_no_more_per_token_than_a_short_one() -> None:
    def seconds(count: int) -> float:
        stream = TextStream(TOKENIZER, ["a" * 500 + "b"])
        ids = [TOKENIZER.convert_tokens_to_ids("a")] * count
        started = time.process_time()
        for token in ids:
            stream.put(token)
        return time.process_time() - started

    assert min(seconds(20_000) for _ in range(3)) < 40 * min(seconds(1_000) for _ in range(3))
