"""Prompts are written as PaliGemma was trained with them, and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemlens.errors import InputError
from gemlens.tasks import labels, prompts

LABELS = ["Dr. Pepper", "A&W", "caf\u00e9", "\u732b", "7 up", "AC; DC", "&amp;x", "cat", "\u043a\u043e\u0442"]


def writable(label: str) -> bool:
    try:
        labels.check(label)
    except InputError:
        return False
    return bool(label)


any_label = st.text(min_size=1).map(str.strip).filter(writable)
with_semicolons = st.text(alphabet="a ;\n", min_size=1)


def test_prompts_are_those_of_the_original() -> None:
    assert prompts.caption() == "caption en"
    assert prompts.caption("zh-hans") == "caption zh-hans"
    assert prompts.answer(" how many cats? ") == "answer en how many cats?"
    assert prompts.answer("wie viele?", language="de") == "answer de wie viele?"
    assert prompts.detect("cat", "dog") == "detect cat ; dog"
    assert prompts.segment("the left cat") == "segment the left cat"
    assert prompts.ocr() == "ocr"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (prompts.caption(), "caption"),
        ("cap en", "caption"),
        ("describe en", "caption"),
        (prompts.answer("detect cat"), "answer"),
        (prompts.detect("ocr"), "detect"),
        (prompts.segment("caption"), "segment"),
        (prompts.ocr(), "ocr"),
        ("<image><image>detect cat\n", "detect"),
        ("  ocr\n", "ocr"),
        ("detector", "other"),
        ("Detect cat", "other"),
        ("answer", "other"),
        ("what is this?", "other"),
        ("", "other"),
    ],
)
def test_the_first_word_says_the_task(prompt: str, kind: str) -> None:
    assert prompts.kind_of(prompt) == kind


@given(st.lists(any_label | st.sampled_from(LABELS), min_size=1, max_size=5))
def test_labels_come_back_from_a_prompt(names: list[str]) -> None:
    assert prompts.labels_of(prompts.detect(*names)) == names
    assert prompts.labels_of(prompts.segment(*names)) == names


@given(st.lists(with_semicolons, min_size=1, max_size=3))
def test_labels_come_back_or_are_refused_when_they_are_written(names: list[str]) -> None:
    """No third way: none is split, joined or lost without a word."""
    try:
        prompt = prompts.detect(*names)
    except InputError:
        assert any(labels.split(name) != [name] for name in names)
    else:
        assert prompts.labels_of(prompt) == names


@pytest.mark.parametrize("prompt", ["caption en", "answer en a ; b", "ocr", "what ; is", "", "detect", "segment ; ;"])
def test_other_prompts_and_empty_ones_name_no_labels(prompt: str) -> None:
    assert prompts.labels_of(prompt) == []


@pytest.mark.parametrize("label", ["cat ; dog", " cat", "cat ", "cat ;", "; cat", ";", "cat\n;\ndog"])
def test_labels_that_would_not_come_back_are_refused(label: str) -> None:
    with pytest.raises(InputError, match=r"The label .* (spaces around it|' ; ' in it)"):
        prompts.detect("mouse", label)


def test_what_cannot_be_asked_is_a_sentence() -> None:
    with pytest.raises(InputError, match="No label was passed"):
        prompts.detect()
    with pytest.raises(InputError, match="A label is empty"):
        prompts.segment("")
    with pytest.raises(InputError, match="The question is empty"):
        prompts.answer(" \n")
    for language in ("", "e", "en us", "english please", "<loc0000>"):
        with pytest.raises(InputError, match="is no code of a language"):
            prompts.caption(language)
