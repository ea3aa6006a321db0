"""Pipelines of both libraries on the same small checkpoints: the same records, whatever form a call has."""

import base64
import copy
import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import gemlens

SHORT = {"max_new_tokens": 6}
MARK = "<start_of_image>"


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], str]) -> Callable[[str, str], tuple[Any, Any]]:
    """Our pipeline of a task and the reference's, on the CPU."""

    @lru_cache
    def both(task: str, name: str) -> tuple[Any, Any]:
        ours, theirs = (
            library.pipeline(task, model=checkpoint(name), device=-1) for library in (gemlens, transformers)
        )
        return ours, theirs

    return both


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal, tensors and pictures in them too; numbers nearly."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


def say(role: str, *parts: Any) -> dict[str, Any]:
    """A message; a dict among the parts is as it is."""
    written = [
        part if isinstance(part, dict) else {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image", "image": part} for part in parts
    ]  # fmt: skip
    return {"role": role, "content": written}


A, B, C = (Image.effect_noise(size, 90).convert("RGB") for size in ((20, 16), (9, 31), (60, 20)))
ONE, TWO = f"{MARK} What is the Work", f"a {MARK} and {MARK} of"
CHAT = [say("system", "Be short."), say("user", A, "What is the Work")]
LONGER = [*CHAT, say("assistant", "the Work"), say("user", "and this")]
OPEN = [*CHAT, say("assistant", "It is")]

PALIGEMMA = {
    "one": ((A, "What is the Work"), {}),
    "by name": ((), {"images": A, "text": "What is the Work"}),
    "with <image>": ((A, "<image>What is the Work"), {}),
    "several texts": (([A, B], ["What is the Work", "a"]), {}),
    "several pictures of a text": (([[A, B]],), {"text": ["the same"]}),
    "only the answer": ((A, "What is the Work"), {"return_full_text": False}),
    "all of it": ((A, "What is the Work"), {"return_full_text": True}),
    "ids": (([A, B], ["What is the Work", "a"]), {"return_tensors": True, "batch_size": 2}),
    "with special tokens": (([A, B], ["What is the Work", "a"]), {"skip_special_tokens": False}),
    "cleaned up": ((A, "What is this ?"), {"clean_up_tokenization_spaces": True}),
}
GEMMA3 = {
    "one": ((A, ONE), {}),
    "two pictures": (([A, B], TWO), {}),
    "nested pictures": (([[A], [B, C]], [ONE, TWO]), {}),
    "only the answer": ((A, ONE), {"return_full_text": False}),
    "a text without pictures": ((), {"text": "What is the Work"}),
    "texts without pictures": ((), {"text": ["What is the Work", "a"]}),
    "chat": ((), {"text": CHAT}),
    "chat by place": ((LONGER,), {}),
    "only the answer to a chat": ((CHAT,), {"return_full_text": False}),
    "chats": ((), {"text": [CHAT, LONGER, OPEN]}),
    "a message to continue": ((OPEN,), {}),
    "a message of the assistant that is not continued": (([say("user", "a")],), {"continue_final_message": False}),
    "only what continues a message": ((OPEN,), {"return_full_text": False}),
}
DIALOGUE = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is the Work?"}]
PREFILL = [*DIALOGUE, {"role": "assistant", "content": "It is"}]
TEXT = {
    "one": (("the Work",), {}),
    "several": ((["the Work", "a"],), {}),
    "chat": ((DIALOGUE,), {}),
    "chats": (([DIALOGUE, PREFILL],), {}),
    "a message to continue": ((PREFILL,), {}),
    "only the answer": ((DIALOGUE,), {"return_full_text": False}),
    "only what continues a message": ((PREFILL,), {"return_full_text": False}),
    "only new words": ((["the Work", "a"],), {"return_full_text": False}),
    "not cleaned up": (("the Work ?",), {"clean_up_tokenization_spaces": False}),
    "several answers": (("the Work",), {"num_beams": 3, "num_return_sequences": 2}),
    "arguments of the tokenizer": (("the Work",), {"tokenizer_encode_kwargs": {"add_special_tokens": False}}),
}


@pytest.mark.parametrize("name", PALIGEMMA)
def test_paligemma_answers_as_the_references_pipeline(pair: Any, name: str) -> None:
    ours, theirs = pair("image-text-to-text", "paligemma")
    given, keywords = PALIGEMMA[name]
    assert_same(ours(*given, **keywords, **SHORT), theirs(*given, **keywords, **SHORT))


@pytest.mark.parametrize("name", GEMMA3)
def test_gemma_3_answers_as_the_references_pipeline(pair: Any, name: str) -> None:
    ours, theirs = pair("image-text-to-text", "gemma3-pictures")
    given, keywords = GEMMA3[name]
    assert_same(ours(*given, **keywords, **SHORT), theirs(*given, **keywords, **SHORT))


@pytest.mark.parametrize("name", TEXT)
def test_text_is_continued_as_by_the_references_pipeline(pair: Any, name: str) -> None:
    ours, theirs = pair("text-generation", "gemma3-text")
    given, keywords = TEXT[name]
    keywords = {**keywords, **SHORT, "do_sample": False}
    found, expected = ours(*given, **keywords), theirs(*given, **keywords)
    assert_same(found, expected)
    ids = ours(*given, **{**keywords, "return_full_text": None}, return_tensors=True)
    assert_same(_lists(ids), theirs(*given, **{**keywords, "return_full_text": None}, return_tensors=True))


def _lists(records: Any) -> Any:
    """The reference gives the ids of this task as lists."""
    if isinstance(records, list):
        return [_lists(each) for each in records]
    return {"generated_token_ids": records["generated_token_ids"].tolist()}


def test_gemma_3_with_pictures_continues_plain_text_too(pair: Any) -> None:
    ours, theirs = pair("text-generation", "gemma3-pictures")
    keywords = {**SHORT, "do_sample": False}
    assert_same(ours(["the Work", "a"], **keywords), theirs(["the Work", "a"], **keywords))
    assert_same(ours(DIALOGUE, **keywords), theirs(DIALOGUE, **keywords))


def test_ids_of_a_chat_are_the_same(pair: Any) -> None:
    ours, theirs = pair("image-text-to-text", "gemma3-pictures")
    ((found,), (expected,)) = ours(CHAT, return_tensors=True, **SHORT), theirs(CHAT, return_tensors=True, **SHORT)
    assert_same(found["generated_token_ids"], expected["generated_token_ids"])
    assert found["input_text"] == CHAT  # the reference gives an object of its own


def test_pictures_beside_a_chat_take_the_places_that_have_none(pair: Any) -> None:
    ours, theirs = pair("image-text-to-text", "gemma3-pictures")
    chat = [say("user", {"type": "image"}, "and", {"type": "image"}, "of")]
    untouched = copy.deepcopy(chat)
    found = ours([A, B], chat, **SHORT)
    assert chat == untouched
    assert_same(found, theirs([A, B], copy.deepcopy(chat), **SHORT))
    several = ours([A, [B]], [[say("user", {"type": "image"})]] * 2, **SHORT)
    assert_same(several[0], theirs(A, [say("user", {"type": "image"})], **SHORT))


def test_chats_of_other_interfaces_are_understood(pair: Any) -> None:
    ours, theirs = pair("image-text-to-text", "gemma3-pictures")
    file = io.BytesIO()
    A.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    chat = [say("user", {"type": "image_url", "image_url": {"url": url}}, "What is the Work")]
    found, expected = ours(chat, **SHORT), theirs(copy.deepcopy(chat), **SHORT)
    assert found[0]["generated_text"][-1] == expected[0]["generated_text"][-1]


@pytest.mark.parametrize(
    ("task", "name", "inputs"),
    [
        ("image-text-to-text", "paligemma", ([A, B, C], ["What is the Work", "a", "the Work"])),
        ("image-text-to-text", "gemma3-pictures", ([CHAT, OPEN, LONGER, PREFILL, DIALOGUE],)),
        ("text-generation", "gemma3-text", (["the Work", "a", "What is the Work"],)),
        ("text-generation", "gemma3-text", ([DIALOGUE, PREFILL, DIALOGUE[1:]],)),
    ],
)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_give_what_single_calls_give(pair: Any, task: str, name: str, inputs: Any, batch_size: int) -> None:
    ours, _ = pair(task, name)
    keywords = {**SHORT, "generate_kwargs": {"do_sample": False}}
    assert_same(ours(*inputs, batch_size=batch_size, **keywords), ours(*inputs, **keywords))


# -- classes -----------------------------------------------------------------------------------------------------------

CLASSES = {
    "one": (("the Work",), {}),
    "several": ((["the Work", "a"],), {}),
    "a pair": (({"text": "the Work", "text_pair": "a"},), {}),
    "pairs": (([{"text": "the Work", "text_pair": "a"}, {"text": "a"}],), {}),
    "all of one": (("the Work",), {"top_k": None}),
    "two of several": ((["the Work", "a"],), {"top_k": 2}),
    "one of one": (("the Work",), {"top_k": 1}),
    "sigmoid": (("the Work",), {"top_k": None, "function_to_apply": "sigmoid"}),
    "softmax": (("the Work",), {"top_k": None, "function_to_apply": "softmax"}),
    "logits": ((["the Work", "a"],), {"top_k": None, "function_to_apply": "none"}),
    "cut": (("the Work and the License",), {"truncation": True, "max_length": 3}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_those_of_the_references_pipeline(pair: Any, name: str) -> None:
    ours, theirs = pair("text-classification", "gemma3-classifier")
    given, keywords = CLASSES[name]
    assert_same(ours(*given, **keywords), theirs(*given, **keywords))
    assert_same(ours(*given, **keywords, batch_size=2), theirs(*given, **keywords))


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_scores_depend_on_the_problem(checkpoint: Any, problem: str) -> None:
    found = []
    for library, auto in ((gemlens, gemlens.AutoTokenizer), (transformers, transformers.AutoTokenizer)):
        folder = checkpoint("gemma3-classifier")
        model = library.Gemma3ForSequenceClassification.from_pretrained(folder, problem_type=problem)
        pipe = library.pipeline("text-classification", model=model, tokenizer=auto.from_pretrained(folder), device=-1)
        found.append(pipe("the Work", top_k=None))
    assert_same(*found)


def test_a_default_for_all_calls_is_wrapped_as_in_the_reference(checkpoint: Any) -> None:
    found = [
        library.pipeline("text-classification", model=checkpoint("gemma3-classifier"), device=-1, top_k=2)
        for library in (gemlens, transformers)
    ]
    for given in ("the Work", ["the Work", "a"]):
        assert_same(found[0](given), found[1](given))
