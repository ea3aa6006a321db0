"""PaliGemmaProcessor beside the reference's, and where it does better."""

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_pairs import assert_same, paligemma_pair, picture, rows, without_addresses

from gemlens.errors import InputError
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.pictures.image_processors import SiglipImageProcessor

A, B = picture(1), picture(2, 9, 31)
PROMPTS = ["answer en Where is the License?", "", "caption\n\n the work", " any  person "]
SUFFIXES = ["on the Work", "granted <loc0001><seg127>", "no", ""]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return paligemma_pair(tmp_path_factory.mktemp("paligemma"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The reference advises on every call."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)


# Prompts and pictures in every documented form.
INPUTS: dict[str, dict[str, Any]] = {
    "one": {"images": A, "text": PROMPTS[0]},
    "one empty": {"images": A, "text": ""},
    "one in a list": {"images": [A], "text": [PROMPTS[0]]},
    "several pictures": {"images": [[A, B]], "text": PROMPTS[2]},
    "batch": {"images": [A, B], "text": PROMPTS[:2]},
    "nested batch": {"images": [[A], [B]], "text": PROMPTS[2:]},
    "one and two": {"images": [[A], [B, A]], "text": PROMPTS[:2]},
    "marked": {"images": [A], "text": [f"<image>{PROMPTS[0]}"]},
    "marked twice": {"images": [A, B], "text": [f"<image><image>{PROMPTS[0]}"]},
    "marked within": {"images": [[A, B]], "text": [f"see <image> and <image> {PROMPTS[0]}"]},
    "marked batch": {"images": [A, B, A], "text": [f"<image>{PROMPTS[0]}", f"<image><image>{PROMPTS[1]}"]},
    "marked and none": {"images": [[A]], "text": [f"<image>{PROMPTS[0]}", PROMPTS[2]]},
}
PADDINGS = [
    {},
    {"padding": True},
    {"padding": "longest", "padding_side": "right"},
    {"padding": "max_length", "max_length": 40},
    {"padding": True, "pad_to_multiple_of": 16, "padding_side": "left"},
    {"padding": "max_length", "max_length": 60, "truncation": True, "padding_side": "right"},
]


def call(processor: Any, keywords: dict[str, Any]) -> Any:
    return processor(**copy.copy(keywords))


class TestParity:
    """Every entry of the reference's batch is the same in ours."""

    @pytest.mark.parametrize("padding", PADDINGS, ids=str)
    @pytest.mark.parametrize("name", INPUTS)
    def test_prompts_and_pictures(self, pair: tuple[Any, Any], name: str, padding: dict[str, Any]) -> None:
        ours, theirs = pair
        keywords = {**INPUTS[name], **padding}
        expected = call(theirs, keywords)
        if name == "marked and none":
            keywords["images"] = [*keywords["images"], []]
        given = call(ours, keywords)
        assert_same(given, expected)
        assert rows(given["token_type_ids"]) == [[0] * len(row) for row in rows(given["input_ids"])]

    @pytest.mark.parametrize("padding", PADDINGS, ids=str)
    @pytest.mark.parametrize("name", INPUTS)
    def test_suffixes_give_labels(self, pair: tuple[Any, Any], name: str, padding: dict[str, Any]) -> None:
        ours, theirs = pair
        keywords = {**INPUTS[name], **padding}
        many = len(keywords["text"]) if isinstance(keywords["text"], list) else 1
        keywords["suffix"] = SUFFIXES[:many] if many > 1 else SUFFIXES[0]
        if many > 1 and not padding:  # the reference makes an array of the labels, which needs rows of one length
            padded = call(theirs, {**keywords, "padding": True})
            expected = [
                [label for label, seen in zip(*row, strict=True) if seen]
                for row in zip(padded["labels"], padded["attention_mask"], strict=True)
            ]
        else:
            expected = call(theirs, keywords)
        if name == "marked and none":
            keywords["images"] = [*keywords["images"], []]
        given = call(ours, keywords)
        if isinstance(expected, list):
            assert given["labels"] == expected
        else:
            assert_same(given, expected)

    @pytest.mark.parametrize(("prompt", "suffix"), list(product(PROMPTS, SUFFIXES)))
    def test_every_prompt_with_every_suffix(self, pair: tuple[Any, Any], prompt: str, suffix: str) -> None:
        ours, theirs = pair
        for text in (prompt, f"<image>{prompt}"):
            keywords = {"images": [A], "text": [text], "suffix": [suffix]}
            assert_same(call(ours, keywords), call(theirs, keywords))

    def test_more_entries_on_demand(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        more = {"return_mm_token_type_ids": True, "return_attention_mask": True}
        keywords = {**INPUTS["one and two"], "padding": True, **more}
        assert_same(call(ours, keywords), call(theirs, keywords))
        given = call(ours, {**INPUTS["one"], "return_length": True, "return_special_tokens_mask": True, "suffix": "a"})
        assert given["length"] == [len(given["input_ids"][0])]
        assert given["special_tokens_mask"][0] == [0] * (given["length"][0] - 1) + [1]
        fewer = call(ours, {**INPUTS["one"], "return_attention_mask": False, "return_token_type_ids": False})
        assert fewer.keys() == {"input_ids", "pixel_values"}

    def test_tensors(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {**INPUTS["batch"], "padding": True, "suffix": SUFFIXES[:2]}
        for kind, made in (("pt", torch.Tensor), ("np", np.ndarray)):
            given = call(ours, {**keywords, "return_tensors": kind})
            assert all(isinstance(value, made) for value in given.values())
            assert_same(given, call(theirs, {**keywords, "return_tensors": kind}))
            assert [str(given[name].dtype).split(".")[-1] for name in given][-1] == "float32"
            assert str(given["labels"].dtype).endswith("int64")

    @given(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30), st.text("ab \n.", max_size=12))
    @settings(max_examples=60)
    def test_any_prompt(self, pair: tuple[Any, Any], prompt: str, suffix: str) -> None:
        ours, theirs = pair
        keywords = {"images": A, "text": prompt, "suffix": suffix}
        assert_same(call(ours, keywords), call(theirs, keywords))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"text": "a"},
            {"images": [A, B], "text": "a"},
            {"images": [A], "text": ["a", "b"]},
            {"images": [[A], [B]], "text": ["a"]},
            {"images": "", "text": "a"},
            {"images": A, "text": "a", "max_length": 3, "truncation": True},
        ],
        ids=without_addresses,
    )
    def test_what_the_reference_refuses_is_refused(self, pair: tuple[Any, Any], wrong: dict[str, Any]) -> None:
        ours, theirs = pair
        with pytest.raises(Exception):  # noqa: B017, PT011 - the reference raises what comes
            call(theirs, wrong)
        with pytest.raises(InputError, match=r"\.$"):
            call(ours, wrong)


class TestReferencesTests:
    """The reference's own tests of its processor, for ours."""

    def test_image_seq_length_tokens_stand_for_a_picture(self, tmp_path: Path) -> None:
        ours, _ = paligemma_pair(tmp_path, seq_length=14)
        ids = ours(images=A, text="lower newer", padding="max_length", max_length=112)["input_ids"][0]
        assert len(ids) == 112
        assert ids.count(ours.image_token_id) == 14

    def test_texts_with_and_without_marks_are_the_same(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        texts = ["Dummy text!", "Dummy text!"]
        plain = ours(images=A, text=texts[0])
        assert rows(plain["input_ids"]) == rows(ours(images=A, text=f"<image>{texts[0]}")["input_ids"])
        two = ours(images=[[A, A]], text=texts[0])
        assert rows(two["input_ids"]) == rows(ours(images=[A, A], text=f"<image><image>{texts[0]}")["input_ids"])
        with pytest.raises(InputError, match=r"pass images=\[\[first, second\]\]"):
            ours(images=[A, A], text=texts[0])
        flat = ours(images=[A, A], text=texts)["input_ids"]
        assert flat == ours(images=[[A], [A]], text=texts)["input_ids"]
        assert flat == ours(images=[A, A], text=[f"<image>{text}" for text in texts])["input_ids"]

    def test_names_of_the_entries(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        given, expected = ours(images=A, text="a"), call(theirs, {"images": A, "text": "a"})
        assert {*given} == {*ours.model_input_names}
        assert {*given} - {*expected} == {"token_type_ids"}  # which the reference gives only beside a suffix

    def test_two_hundred_line_breaks(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {"images": A, "text": "\n" * 200}
        assert_same(call(ours, keywords), call(theirs, keywords))


class TestArguments:
    """Call beats stored beats defaults; nobody's dicts change."""

    def test_the_call_beats_what_is_stored(self, tmp_path: Path) -> None:
        ours, _ = paligemma_pair(tmp_path, side="right")
        assert ours(images=[A, A], text=["a b c d", "a"], padding=True)["input_ids"][1][-1] == 0
        left = ours(images=[A, A], text=["a b c d", "a"], padding=True, padding_side="left")
        assert left["input_ids"][1][0] == 0
        assert ours(images=A, text="a")["pixel_values"][0].shape == (3, 14, 14)
        assert ours(images=A, text="a", size={"height": 5, "width": 7})["pixel_values"][0].shape == (3, 5, 7)

    def test_dicts_and_flat_keywords_mean_the_same(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        flat = ours(images=A, text="a", padding="max_length", max_length=30, do_rescale=False, return_tensors="pt")
        text, images = {"padding": "max_length", "max_length": 30}, {"do_rescale": False}
        dicts = ours(images=A, text="a", text_kwargs=text, images_kwargs=images, common_kwargs={"return_tensors": "pt"})
        assert_same(dicts, flat)
        mixed = ours(images=A, text="a", text_kwargs=text, do_rescale=False, return_tensors="pt")
        assert_same(mixed, flat)

    def test_the_callers_dicts_stay_as_they_are(self, pair: tuple[Any, Any]) -> None:
        """The reference empties them, so that the second call forgets what the first was told."""
        ours, theirs = pair
        for processor, lengths in ((ours, [30, 30]), (theirs, [30, 8])):
            text = {"padding": "max_length", "max_length": 30}
            found = [len(processor(images=A, text="no", text_kwargs=text)["input_ids"][0]) for _ in range(2)]
            assert found[0] == lengths[0]
            assert (found[1] == 30) == (lengths[1] == 30)
            assert bool(text) == (processor is ours)

    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"paddding": True}, "did you mean 'padding'"),
            (
                {"text_kwargs": {"max_lenght": 3}},
                "text_kwargs takes no argument 'max_lenght'; did you mean 'max_length'",
            ),
            ({"images_kwargs": {"padding": True}}, "images_kwargs takes no argument 'padding'"),
            ({"padding": True, "text_kwargs": {"padding": True}}, "'padding' came twice"),
            ({"size": 3, "images_kwargs": {"size": 3}}, "'size' came twice"),
            ({"text_kwargs": 3}, "text_kwargs is a int"),
            ({"videos_kwargs": {"fps": 1}}, "text and pictures only"),
            ({"do_pan_and_scan": True}, "no argument 'do_pan_and_scan'"),
            ({"padding_side": "top"}, "pass 'left' or 'right'"),
            ({"padding": "all"}, "padding='all'"),
            ({"return_tensors": "tf"}, "makes no TensorFlow tensors"),
            ({"suffix": 3}, "suffix must be a text"),
            ({"suffix": ["a", "b"]}, "1 text but 2 of suffix came"),
            ({"text": 3}, "text must be a text or a list of texts"),
            ({"text": []}, "text must be"),
            ({"text": "<image><image>a"}, "Text 1 names 2 pictures but 1 came; write '<image>' once per picture"),
            ({"images": [A, B], "text": ["<image>a"]}, "Text 1 names 1 picture but 2 came"),
            ({"images": [[A], A], "text": ["a", "b"]}, "mixes pictures and lists"),
            ({"truncation": "only_second", "max_length": 20}, "cuts the suffix, but none came"),
        ],
        ids=without_addresses,
    )
    def test_mistakes_are_named(self, pair: tuple[Any, Any], wrong: dict[str, Any], sentence: str) -> None:
        ours, _ = pair
        with pytest.raises(InputError) as caught:
            ours(**{"images": A, "text": "a", **wrong})
        assert sentence in str(caught.value)
        assert str(caught.value).endswith((".", "?"))

    def test_rows_of_different_lengths_make_no_tensor(self, pair: tuple[Any, Any]) -> None:
        with pytest.raises(InputError, match="pass padding=True"):
            pair[0](images=[A, A], text=["a", "a License"], return_tensors="pt")

    def test_parts_are_checked(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        tokenizer = ours.tokenizer
        with pytest.raises(InputError, match="image_processor of this PaliGemmaProcessor is missing"):
            PaliGemmaProcessor(tokenizer=tokenizer)
        with pytest.raises(InputError, match="tokenizer of this PaliGemmaProcessor is missing"):
            PaliGemmaProcessor(ours.image_processor)
        with pytest.raises(InputError, match="image_processor first"):
            PaliGemmaProcessor(tokenizer, ours.image_processor)
        with pytest.raises(InputError, match="no image_seq_length"):
            PaliGemmaProcessor(SiglipImageProcessor(), tokenizer)


class TestTokens:
    """Where tokens come from."""

    def test_locations_and_segments_are_ordinary_words_that_stay(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        words = [f"<loc{number:04}>" for number in range(1024)] + [f"<seg{number:03}>" for number in range(128)]
        ids = ours.tokenizer.convert_tokens_to_ids(words)
        assert ids == theirs.tokenizer.convert_tokens_to_ids(words)
        assert len(set(ids)) == 1152
        text = "detect " + "".join(words)
        given = ours(images=A, text=text, suffix=text)
        assert [token for token in given["input_ids"][0] if token in set(ids)] == ids * 2
        assert ours.decode(given["input_ids"][0], skip_special_tokens=True) == f"{text}\n{text}"
        assert ours.batch_decode(given["input_ids"], skip_special_tokens=True) == [f"{text}\n{text}"]

    def test_there_is_exactly_one_bos(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        for text in ("a", "<bos>a", "<image>a", "<image><bos>a"):
            assert ours(images=[A], text=[text])["input_ids"][0].count(2) == 1

    def test_control_tokens_in_a_suffix_stay_text_unless_asked_for(self, pair: tuple[Any, Any]) -> None:
        """In the reference `<image>` in an answer is an error, and `<eos>` ends it early."""
        ours, theirs = pair
        given = ours(images=A, text="a", suffix="an <image> and <eos>!")
        ids = given["input_ids"][0]
        assert ids.count(ours.image_token_id) == 4
        assert ids.count(1) == 1
        assert ours.decode([token for token in given["labels"][0] if token != -100][:-1]) == "an <image> and <eos>!"
        assert ours(images=A, text="a", suffix="<eos>!", split_special_tokens=False)["input_ids"][0].count(1) == 2
        with pytest.raises(ValueError, match="Mismatch in `image` token count"):
            theirs(images=A, text="a", suffix="an <image>")

    def test_control_tokens_in_a_prompt_act_unless_told_not_to(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {"images": [A], "text": ["<image>a<start_of_turn>b"]}
        assert_same(call(ours, keywords), call(theirs, keywords))
        ids = ours(**keywords, split_special_tokens=True)["input_ids"][0]
        assert ours.tokenizer.convert_tokens_to_ids("<start_of_turn>") not in ids
        assert ids.count(ours.image_token_id) == 4
        assert ours.decode(ids, skip_special_tokens=True) == "a<start_of_turn>b\n"

    def test_labels_come_from_where_tokens_come_from(self, pair: tuple[Any, Any]) -> None:
        """Also where pictures stand within the prompt, and with every padding: -100 up to the suffix, and on pads."""
        ours, _ = pair
        for name, side in product(INPUTS, ("left", "right")):
            keywords = {**INPUTS[name], "padding": True, "padding_side": side}
            many = len(keywords["text"]) if isinstance(keywords["text"], list) else 1
            if name == "marked and none":
                keywords["images"] = [*keywords["images"], []]
            given = ours(**keywords, suffix=SUFFIXES[:many])
            for ids, labels, types, mask, suffix in zip(
                given["input_ids"],
                given["labels"],
                given["token_type_ids"],
                given["attention_mask"],
                SUFFIXES,
                strict=False,
            ):
                answer = [*ours.tokenizer(suffix, add_special_tokens=False)["input_ids"], 1]
                real = [label for label, seen in zip(labels, mask, strict=True) if seen]
                assert real[-len(answer) :] == answer
                assert set(real[: -len(answer)]) == {-100}
                assert types == [int(label != -100) for label in labels]
                assert all(token in (0, label) or label == -100 for token, label in zip(ids, labels, strict=True))


class TestPictures:
    """Pictures of every kind."""

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P", "CMYK"])
    def test_every_mode_is_seen_in_colour(self, pair: tuple[Any, Any], mode: str) -> None:
        """The reference crashes, or passes channels on that the model does not have."""
        ours, theirs = pair
        odd = picture(3).convert("RGB").convert(mode) if mode != "LA" else picture(3).convert("LA")
        assert ours(images=odd, text="a", return_tensors="pt")["pixel_values"].shape == (1, 3, 14, 14)
        try:
            shape = theirs(images=odd, text="a", return_tensors="pt")["pixel_values"].shape
        except Exception:
            shape = None
        assert shape != (1, 3, 14, 14) or mode in ("CMYK", "1", "P")

    def test_arrays_tensors_bytes_and_data_urls(self, pair: tuple[Any, Any], tmp_path: Path) -> None:
        ours, _ = pair
        expected = rows(ours(images=A, text="a")["pixel_values"])
        path = tmp_path / "a.png"
        A.save(path)
        array = np.array(A)
        for source in (array, torch.tensor(array).permute(2, 0, 1), path, str(path), path.read_bytes()):
            assert rows(ours(images=source, text="a")["pixel_values"]) == expected
        several = ours(images=np.stack([array, array]), text=["a", "b"])
        assert rows(several["pixel_values"]) == [expected[0], expected[0]]

    def test_captions_need_no_text(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        assert_same(ours(images=A), theirs(images=A))
        assert rows(ours(images=[A, B])["input_ids"]) == rows(ours(images=[A, B], text=["", ""])["input_ids"])
        assert rows(ours(A, "a")["input_ids"]) == rows(ours(images=A, text="a")["input_ids"])

    def test_a_prompt_of_a_batch_may_have_no_picture(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        for nothing in ([], None):
            given = ours(images=[[A], nothing], text=["a", "b"], padding=True)
            assert [row.count(ours.image_token_id) for row in given["input_ids"]] == [4, 0]
            assert len(given["pixel_values"]) == 1


class TestTruncation:
    """Pictures, the line break and `<eos>` are never cut, and nothing is dropped silently."""

    def test_what_fits_is_the_references(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        for length in range(17, 30):
            keywords = {"images": A, "text": "answer en", "truncation": True, "max_length": length}
            assert_same(call(ours, keywords), call(theirs, keywords))

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_prompts_are_cut_before_their_line_break(self, pair: tuple[Any, Any], side: str) -> None:
        """The reference cuts the line break, by which the model knows where the prompt ends."""
        ours, theirs = pair
        whole = ours(images=A, text=PROMPTS[0])["input_ids"][0]
        head, body, last = whole[:5], whole[5:-1], whole[-1]
        for length in range(6, len(whole)):
            keywords = {
                "images": A,
                "text": PROMPTS[0],
                "truncation": True,
                "max_length": length,
                "truncation_side": side,
            }
            room = length - 6
            kept = body[:room] if side == "right" else body[len(body) - room :]
            assert ours(**keywords)["input_ids"][0] == [*head, *kept, last]
        cut = theirs(images=A, text=PROMPTS[0], truncation=True, max_length=len(whole) - 1)["input_ids"][0]
        assert cut[-1] != last

    def test_suffixes_keep_their_end(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        keywords = {"images": A, "text": PROMPTS[0], "suffix": SUFFIXES[0]}
        whole = ours(**keywords)
        answer = [label for label in whole["labels"][0] if label != -100]
        least = 4 + 1 + 1 + len(answer)
        for length in range(least, len(whole["input_ids"][0]) + 1):
            given = ours(**keywords, truncation=True, max_length=length)
            assert len(given["input_ids"][0]) == length
            assert [label for label in given["labels"][0] if label != -100] == answer
        with pytest.raises(InputError, match=f"needs {least} tokens for what may not be cut"):
            ours(**keywords, truncation=True, max_length=least - 1)

    def test_a_long_suffix_loses_its_end_there_and_not_here(self, pair: tuple[Any, Any]) -> None:
        """The reference cuts the longer of the two, which is then the answer."""
        ours, theirs = pair
        keywords = {"images": A, "text": "a", "suffix": "the cow " * 9}
        whole = call(theirs, keywords)["input_ids"][0]
        eos = ours.tokenizer.eos_token_id
        assert whole[-1] == eos
        shorter = {**keywords, "truncation": True, "max_length": len(whole) - 1, "truncation_side": "right"}
        assert ours(**shorter)["input_ids"][0][-1] == eos
        shorter.pop("truncation_side")
        assert call(theirs, shorter)["input_ids"][0][-1] != eos

    def test_suffixes_are_cut_where_asked(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        keywords = {"images": A, "text": "a", "suffix": SUFFIXES[0], "truncation": "only_second"}
        whole = ours(images=A, text="a", suffix=SUFFIXES[0])["input_ids"][0]
        assert ours(**keywords, max_length=len(whole) - 1)["input_ids"][0] == [*whole[:-2], 1]
        with pytest.raises(InputError, match="one token of the suffix"):
            ours(**keywords, max_length=8)

    def test_pictures_are_never_cut(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        with pytest.raises(InputError, match="pass a larger max_length or truncation=False"):
            ours(images=A, text="a", truncation=True, max_length=5)
        with pytest.raises(ValueError, match="Mismatch"):
            theirs(images=A, text="a", truncation=True, max_length=3)


class TestChats:
    """One message is a prompt."""

    def test_one_message(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        parts = [{"type": "image", "image": A}, {"type": "text", "text": "where"}, {"type": "image", "image": B}]
        chat = [{"role": "user", "content": parts}]
        assert ours.apply_chat_template(chat) == "<image><image>where"
        given = ours.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        assert_same(given, ours(images=[[A, B]], text="where", return_tensors="pt"))
        injected = [{"role": "user", "content": "see <image><bos>"}]
        ids = ours.apply_chat_template(injected, tokenize=True)[0]
        assert ours.image_token_id not in ids
        assert ids.count(2) == 1
