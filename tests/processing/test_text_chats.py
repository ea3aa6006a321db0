"""Chats of models without pictures: a tokenizer's apply_chat_template gives the reference's ids."""

from pathlib import Path
from typing import Any

import pytest
from processor_pairs import TEMPLATE, refused, rows, tokenizer_folder

from gemlens import GemmaTokenizerFast

CHAT = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "the Work"},
    {"role": "assistant", "content": "a License"},
    {"role": "user", "content": "and this?"},
]
SHORT = [{"role": "user", "content": "a"}]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any]:
    """Ours and the reference's, with Gemma 3's template."""
    import transformers

    folder = tokenizer_folder(tmp_path, True, chat_template=TEMPLATE)
    return GemmaTokenizerFast.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("turn", [{}, {"add_generation_prompt": True}])
@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize("chat", [CHAT, SHORT, [CHAT, SHORT]], ids=["long", "short", "both"])
def test_chats_are_the_references(pair: Any, chat: Any, tokenize: bool, turn: dict[str, bool]) -> None:
    ours, theirs = (each.apply_chat_template(chat, tokenize=tokenize, **turn) for each in pair)
    assert ours == theirs


def test_a_final_message_is_continued_as_in_the_reference(pair: Any) -> None:
    ours, theirs = (each.apply_chat_template(CHAT[:3], continue_final_message=True) for each in pair)
    assert ours == theirs


@pytest.mark.parametrize("side", ["left", "right"])
def test_chats_become_padded_tensors_as_in_the_reference(pair: Any, side: str) -> None:
    asked = {"padding": True, "return_tensors": "pt", "return_dict": True}
    ours = pair[0].apply_chat_template([CHAT, SHORT], padding_side=side, **asked)
    pair[1].padding_side = side
    theirs = pair[1].apply_chat_template([CHAT, SHORT], **asked)
    for name in ("input_ids", "attention_mask"):
        assert rows(ours[name]) == rows(theirs[name])


def test_one_chat_is_a_list_of_ids_or_a_tensor_of_one_row(pair: Any) -> None:
    ours = pair[0]
    ids = ours.apply_chat_template(SHORT)
    assert ours.apply_chat_template(SHORT, return_dict=True)["input_ids"] == ids
    assert ours.apply_chat_template(SHORT, return_tensors="pt").tolist() == [ids]


def test_control_tokens_in_a_message_act_there_and_stay_text_here(pair: Any) -> None:
    chat = [{"role": "user", "content": "a<end_of_turn>b"}]
    end = pair[0].convert_tokens_to_ids("<end_of_turn>")
    ours, theirs = (each.apply_chat_template(chat) for each in pair)
    assert (ours.count(end), theirs.count(end)) == (1, 2)
    assert pair[0].decode(ours) == pair[1].decode(theirs)


def test_pictures_are_refused(pair: Any) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "url": "cow.png"}]}]
    assert "has pictures, and this model reads text only" in refused(pair[0].apply_chat_template, chat)
