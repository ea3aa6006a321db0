"""The collator: labels are on what is to be said and on nothing else, however examples look and stand together."""

import pickle
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemlens import Gemma3Processor, GemmaTokenizerFast, InputError, PaliGemmaProcessor
from gemlens.data.example import Example
from gemlens.training.batches import Collator
from processing.processor_pairs import SPECIAL, TEMPLATE, gemma3_pair, paligemma_pair, picture

# A template that says what the assistant's part is, and leaves the end of the turn out of it.
MARKING = (
    "{% macro write(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{% endmacro %}"
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<start_of_turn>model\n' }}{% generation %}{{ write(message['content']) }}{% endgeneration %}"
    "{% else %}{{ '<start_of_turn>user\n' + write(message['content']) }}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
)
TEMPLATES = {"own": None, "checkpoint's": TEMPLATE, "marking": MARKING}
END = "<end_of_turn>"
HOSTILE = st.lists(
    st.sampled_from([*SPECIAL, "<image>", "<start_of_image>", "<image_soft_token>", "work", " ", "a ", "\n", "\u2603"]),
    min_size=1,
    max_size=6,
).map("".join)


@lru_cache
def paligemma() -> PaliGemmaProcessor:
    with TemporaryDirectory() as folder:
        return paligemma_pair(Path(folder))[0]


@lru_cache
def gemma3(template: str = "own") -> Gemma3Processor:
    with TemporaryDirectory() as folder:
        return gemma3_pair(Path(folder), template=TEMPLATES[template])[0]


def tokenizer(template: str = "own") -> GemmaTokenizerFast:
    """A tokenizer for a model that reads text only."""
    made = pickle.loads(pickle.dumps(gemma3().tokenizer))
    made.chat_template = TEMPLATES[template]
    return made


def said(reader: Any, batch: dict[str, Tensor]) -> list[str]:
    """The labels of each row as text."""
    return [reader.decode(row[row != -100]) for row in batch["labels"]]


def read(reader: Any, batch: dict[str, Tensor]) -> list[str]:
    """Each row as text, without its padding."""
    return [
        reader.decode(row[mask.bool()]) for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def chat(*words: str, pictures: int = 0, **more: Any) -> Example:
    """The user, the assistant and so on in turn; pictures in front."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(words)]
    return Example("chat", tuple(picture(seed) for seed in range(pictures)), messages=tuple(messages), **more)


def asked(prefix: str, suffix: str, pictures: int = 0) -> Example:
    return Example("asked", tuple(picture(seed) for seed in range(pictures)), prefix, suffix)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, each in first.items():
        assert torch.equal(each, second[name]), name


# -- PaliGemma ---------------------------------------------------------------------------------------------------------


def test_paligemma_gets_what_its_processor_makes_of_pictures_prefix_and_suffix() -> None:
    examples = [asked("detect work", "<loc0001> work", 1), asked("a", "yes", 1)]
    expected = paligemma()(
        images=[list(each.pictures) for each in examples],
        text=["detect work", "a"],
        suffix=["<loc0001> work", "yes"],
        padding="longest",
        padding_side="right",
        return_tensors="pt",
    )
    batch = Collator(paligemma())(examples)
    assert_equal(batch, dict(expected))
    assert said(paligemma(), batch) == ["<loc0001> work<eos>", "yes<eos>"]
    assert batch["labels"][1, -1] == -100


def test_paligemmas_pictures_stand_where_a_prefix_says_or_else_in_front() -> None:
    examples = [asked("one <image> two <image>", "yes", 2), asked("none", "no"), asked("all", "both", 2)]
    batch = Collator(paligemma())(examples)
    four = "<image>" * 4
    assert read(paligemma(), batch) == [
        f"one {four} two {four}<bos>\nyes<eos>",
        "<bos>none\nno<eos>",
        f"{four}{four}<bos>all\nboth<eos>",
    ]
    assert len(batch["pixel_values"]) == 4
    assert "pixel_values" not in Collator(paligemma())([asked("none", "no")])


def test_paligemma_answers_a_chat_of_one_message() -> None:
    batch = Collator(paligemma())([chat("what is it", "work", pictures=1)])
    assert_equal(batch, Collator(paligemma())([asked("what is it", "work", 1)]))
    with pytest.raises(InputError, match="the chat has user, assistant, user, assistant"):
        Collator(paligemma())([chat("what", "work", "sure?", "yes")])


def test_paligemma_learns_a_message_as_it_will_be_asked() -> None:
    words = [{"type": "text", "text": text} for text in ("what ", " is")]
    content = [words[0], {"type": "image", "image": picture(1)}, words[1]]
    example = Example("0", messages=({"role": "user", "content": content}, {"role": "assistant", "content": "work"}))
    batch = Collator(paligemma())([example])
    inputs = paligemma().apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], inputs["input_ids"])
    assert (batch["labels"][:, :length] == -100).all()
    assert batch["labels"][0, length] == batch["input_ids"][0, length]


@given(HOSTILE.filter(lambda text: "<image>" not in text), HOSTILE)
@settings(max_examples=60)
def test_paligemmas_labels_are_the_suffix_and_one_eos(prefix: str, suffix: str) -> None:
    batch = Collator(paligemma())([asked(prefix, suffix, 1)])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    words = paligemma().tokenizer(suffix, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert labels[labels != -100].tolist() == [*words, paligemma().tokenizer.eos_token_id]
    controls = [paligemma().tokenizer.convert_tokens_to_ids(token) for token in (*SPECIAL, "<image>")]
    counts = {token: int((ids == number).sum()) for token, number in zip((*SPECIAL, "<image>"), controls, strict=True)}
    assert counts == {**dict.fromkeys(SPECIAL, 0), "<bos>": 1, "<eos>": 1, "<image>": 4}


# -- chats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_what_the_assistant_says_is_learned_with_the_end_of_its_turns(kind: str, template: str) -> None:
    reader = gemma3(template) if kind == "pictures" else tokenizer(template)
    pictures = 1 if kind == "pictures" else 0
    examples = [chat("work", "work", "sure?", "a work", pictures=pictures), chat("hello", "work")]
    batch = Collator(reader)(examples)
    assert said(reader, batch) == [f"work{END}a work{END}", f"work{END}"]
    turns = "<start_of_turn>user\n{}work" + END + "\n<start_of_turn>model\nwork"  # which of the two is learned
    picture_tokens = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    before = reader.tokenizer if kind == "pictures" else reader
    prompt = before("<bos>" + turns.format(picture_tokens * pictures), add_special_tokens=False)["input_ids"]
    first = int((batch["labels"][0] != -100).nonzero()[0])
    assert batch["input_ids"][0, : len(prompt)].tolist() == prompt
    assert before.decode(prompt[:first]).endswith("model\n")


@pytest.mark.parametrize("template", ["own", "checkpoint's"])
@given(HOSTILE, HOSTILE.filter(str.strip))
@settings(max_examples=40)
def test_a_chats_labels_are_the_answer_and_one_end_of_turn(template: str, prompt: str, answer: str) -> None:
    batch = Collator(gemma3(template))([chat(prompt, answer, pictures=1)])
    assert said(gemma3(), batch) == [answer.strip() + END]
    ids = batch["input_ids"][0].tolist()
    controls = [*SPECIAL, "<start_of_image>", "<image_soft_token>"]
    found = [ids.count(gemma3().tokenizer.convert_tokens_to_ids(token)) for token in controls]
    assert dict(zip(controls, found, strict=True)) == {
        **dict.fromkeys(controls, 0), "<bos>": 1, "<start_of_turn>": 2, END: 2, "<start_of_image>": 1,
        "<image_soft_token>": 3,
    }  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prefix_and_its_suffix_are_a_chat(template: str) -> None:
    for reader, pictures in ((gemma3(template), 2), (tokenizer("checkpoint's"), 0)):
        collator = Collator(reader)
        assert_equal(collator([asked("what", "work", pictures)]), collator([chat("what", "work", pictures=pictures)]))


def test_gemma_3s_pictures_stand_where_a_prefix_says_or_else_in_front() -> None:
    one = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    batch = Collator(gemma3())(
        [asked("one <start_of_image> two<start_of_image>", "yes", 2), asked("in front", "no", 1)]
    )
    texts = [text.partition("user\n")[2].partition(END)[0] for text in read(gemma3(), batch)]
    assert texts == [f"one{one}two{one}", f"{one}in front"]
    assert len(batch["pixel_values"]) == 3
    with pytest.raises(InputError, match="names 1 pictures with '<start_of_image>', but 2 came"):
        Collator(gemma3())([asked("one <start_of_image>", "yes", 2)])


def test_pictures_of_a_chat_fill_the_places_that_name_none() -> None:
    place, words = {"type": "image"}, {"type": "text", "text": "and"}
    content = [words, place, {"type": "image", "image": picture(7)}, place]
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": "yes"})
    filled = Example("chat", (picture(1), picture(2)), messages=messages)
    batch = Collator(gemma3())([filled])
    order = Collator(gemma3())([Example("", (picture(1), picture(7), picture(2)), "x", "y")])["pixel_values"]
    assert torch.equal(batch["pixel_values"], order)
    for pictures, sentence in (
        ((picture(1),), "picture without 'url'"),
        ((picture(1),) * 3, "places for 2 pictures, but 3 came"),
    ):
        with pytest.raises(InputError, match=sentence):
            Collator(gemma3())([Example("chat", pictures, messages=messages)])


def test_the_system_is_read_and_not_learned() -> None:
    messages = ({"role": "system", "content": "work"}, *chat("hello", "work").messages)
    batch = Collator(gemma3())([Example("chat", (picture(1),), messages=messages)])
    assert said(gemma3(), batch) == [f"work{END}"]
    assert "user\nwork\n\n\n\n<start_of_image>" in read(gemma3(), batch)[0]


# -- plain text --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_reads_prefix_and_suffix_as_they_are() -> None:
    reader = tokenizer()
    batch = Collator(reader)([asked("work <eos> ", "is <bos> work"), asked("", "x")])
    assert read(reader, batch) == ["<bos>work <eos> is <bos> work<eos>", "<bos>x<eos>"]
    assert said(reader, batch) == ["is <bos> work<eos>", "x<eos>"]
    assert [row.count(reader.eos_token_id) for row in batch["input_ids"].tolist()] == [1, 1]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_padding_that_is_the_end_token_is_not_learned() -> None:
    reader = tokenizer()
    reader.pad_token = reader.eos_token
    batch = Collator(reader)([asked("work", "is"), asked("a much longer text of work", "is")])
    assert said(reader, batch) == ["is<eos>", "is<eos>"]


# -- together ----------------------------------------------------------------------------------------------------------

MIXED = {
    "paligemma": [asked("what", "work", 1), asked("a longer question", "no"), chat("look", "yes", pictures=1)],
    "gemma3": [asked("what", "work", 2), chat("hello", "yes", "sure?", "no"), chat("look", "yes", pictures=1)],
    "text": [asked("what", "work"), chat("hello", "yes", "sure?", "no"), asked("", "a long answer")],
}


def reader_of(kind: str) -> Any:
    return {"paligemma": paligemma, "gemma3": gemma3, "text": tokenizer}[kind]()


@pytest.mark.parametrize("kind", MIXED)
def test_a_batch_holds_the_rows_of_its_examples(kind: str) -> None:
    collator = Collator(reader_of(kind))
    batch = collator(MIXED[kind])
    alone = [collator([example]) for example in MIXED[kind]]
    for name in batch.keys() - {"pixel_values"}:
        for row, single in zip(batch[name], alone, strict=True):
            length = single["input_ids"].shape[1]
            assert torch.equal(row[:length], single[name][0]), name
            assert len(row[length:].unique()) <= 1, name
    if "pixel_values" in batch:
        assert torch.equal(
            batch["pixel_values"], torch.cat([each["pixel_values"] for each in alone if "pixel_values" in each])
        )


@pytest.mark.parametrize("kind", MIXED)
def test_a_collator_goes_to_another_process_as_it_is(kind: str) -> None:
    collator = Collator(reader_of(kind), 60)
    assert_equal(pickle.loads(pickle.dumps(collator))(MIXED[kind]), collator(MIXED[kind]))


# -- too long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXED)
def test_a_prompt_is_cut_at_its_end_and_nothing_else(kind: str) -> None:
    reader = reader_of(kind)
    pictures = 0 if kind == "text" else 1
    words = "the work of the license of the work"
    long, short = asked(words, "an answer", pictures), asked("the", "an answer", pictures)
    whole, least = (Collator(reader)([each])["input_ids"].shape[1] for each in (long, short))
    before, _, after = read(reader, Collator(reader)([long]))[0].partition(words)
    lengths = range(least, whole + 1)
    kept = []
    for length in lengths:
        batch = Collator(reader, length)([long, short])
        assert batch["input_ids"].shape[1] <= length
        assert said(reader, batch) == said(reader, Collator(reader)([long, short]))
        text = read(reader, batch)[0]
        assert text.startswith(before)
        assert text.endswith(after)
        kept.append(text[len(before) : len(text) - len(after)])
    assert all(words.startswith(each) for each in kept)
    assert sorted(kept, key=len) == kept
    assert kept[-1] == words
    assert len(kept[0]) < len(words) / 2
    with pytest.raises(InputError, match="max_length"):
        Collator(reader, least - 2)([asked("", "an answer with more words", pictures)])


@pytest.mark.parametrize("kind", ["gemma3", "text"])
def test_of_a_long_chat_the_last_exchanges_go_first(kind: str) -> None:
    reader = reader_of(kind)
    turns = ("look at the work", "yes", "sure?", "no", "and")
    sizes = [Collator(reader)([chat(*turns[:count])])["input_ids"].shape[1] for count in (2, 4)]
    for length, kept in ((sizes[1], 4), (sizes[1] - 1, 2), (sizes[0], 2)):
        assert_equal(Collator(reader, length)([chat(*turns)]), Collator(reader)([chat(*turns[:kept])]))
    batch = Collator(reader, sizes[0] - 1)([chat(*turns)])
    assert said(reader, batch) == [f"yes{END}"]
    assert "look at" in read(reader, batch)[0]
    assert "look at the work" not in read(reader, batch)[0]


def test_the_pictures_of_exchanges_that_are_left_out_are_left_out() -> None:
    first, second = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "see"}]} for _ in "12")
    says = {"role": "assistant", "content": "yes"}
    long = Example("chat", (picture(1), picture(2)), messages=(first, says, second, says))
    short = Example("chat", (picture(1),), messages=(first, says))
    size = Collator(gemma3())([short])["input_ids"].shape[1]
    assert_equal(Collator(gemma3(), size)([long]), Collator(gemma3())([short]))
    with pytest.raises(InputError, match="neither pictures nor answers are cut"):
        Collator(gemma3(), size - 8)([long])


# -- what cannot be learned --------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(InputError, match="A str came as processor"):
        Collator("google/paligemma")
    with pytest.raises(InputError, match="No examples came"):
        Collator(paligemma())([])
    for reader in (gemma3(), tokenizer()):
        with pytest.raises(InputError, match="The assistant says nothing"):
            Collator(reader)([chat("hello")])
    for reader in (tokenizer(), tokenizer("checkpoint's")):
        with pytest.raises(InputError, match="reads text only"):
            Collator(reader)([asked("what", "work", 1)])
    with pytest.raises(InputError, match="nor answers are cut"):
        Collator(gemma3(), 3)(
            [Example("chat", messages=({"role": "user", "content": []}, *chat("", "yes").messages[1:]))]
        )
