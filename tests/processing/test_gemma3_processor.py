"""Gemma3Processor beside the reference's, and where it does better."""

import base64
import copy
import io
import json
import socket
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_pairs import TEMPLATE, assert_same, gemma3_pair, picture, rows, without_addresses

from gemlens.errors import InputError, PictureError
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor
from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

A, B = picture(1), picture(2, 9, 31)
WIDE, TALL = picture(3, 60, 20), picture(4, 15, 50)
CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4}
MARK = "<start_of_image>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return gemma3_pair(tmp_path_factory.mktemp("gemma3"))


# Texts and pictures in every documented form; lists are nested, as the reference knows no other batches.
INPUTS: dict[str, dict[str, Any]] = {
    "text": {"text": "Where is the License?"},
    "texts": {"text": ["Where is the License?", "", "a\n\nb "]},
    "one": {"images": A, "text": f"{MARK} What is this?"},
    "one in a list": {"images": [A], "text": [f"What\n{MARK}\n\nis this?"]},
    "only pictures": {"images": [[WIDE, B], [A]]},
    "several": {"images": [A, WIDE, B], "text": f"{MARK} and {MARK}{MARK}?"},
    "long": {"images": [[WIDE]], "text": [f"{MARK}"]},
    "batch": {"images": [[A], [TALL]], "text": [f"{MARK} a", f"the work {MARK}"]},
    "one and two": {"images": [[A], [WIDE, B]], "text": [f"{MARK} a", f"{MARK} the\n{MARK}work"]},
    "mixed crops": {"images": [[WIDE, A], [B, TALL, WIDE]], "text": [f"{MARK}{MARK}", f"{MARK} b {MARK} c {MARK}"]},
}
PADDINGS = [
    {},
    {"padding": True},
    {"padding": "longest", "padding_side": "right"},
    {"padding": "max_length", "max_length": 300},
    {"padding": True, "pad_to_multiple_of": 16},
    {"padding": True, "max_length": 400, "truncation": True, "add_special_tokens": False},
]


def call(processor: Any, keywords: dict[str, Any]) -> Any:
    """The reference changes lists of texts in place, and crashes without a text: it wants an empty list."""
    copied = {name: list(value) if isinstance(value, list) else value for name, value in keywords.items()}
    if isinstance(processor, transformers.Gemma3Processor) and keywords.get("images") is not None:
        copied.setdefault("text", [])
    return processor(**copied)


class TestParity:
    """Every entry of the reference's batch is the same in ours."""

    @pytest.mark.parametrize("crops", [{}, CROPS, {**CROPS, "pan_and_scan_min_ratio_to_activate": 2.5}], ids=len)
    @pytest.mark.parametrize("padding", PADDINGS, ids=str)
    @pytest.mark.parametrize("name", INPUTS)
    def test_texts_with_pictures(
        self, pair: tuple[Any, Any], name: str, padding: dict[str, Any], crops: dict[str, Any]
    ) -> None:
        ours, theirs = pair
        keywords = {**INPUTS[name], **padding, **crops}
        texts = keywords.get("text")
        if padding or name in ("text", "one", "several") or (texts and len(texts) == 1):
            assert_same(call(ours, keywords), call(theirs, keywords))
            return
        # The reference makes an array of the rows, so batches without padding are compared row by row.
        found, pictures = call(ours, keywords), keywords.pop("images", None)
        for place, row in enumerate(found["input_ids"]):
            alone = {**keywords, "images": pictures[place]} if pictures else dict(keywords)
            if texts:
                alone["text"] = texts[place]
            assert [row] == call(theirs, alone)["input_ids"]

    def test_tensors(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {**INPUTS["mixed crops"], "padding": True, **CROPS}
        for kind, made in (("pt", torch.Tensor), ("np", np.ndarray)):
            found = call(ours, {**keywords, "return_tensors": kind})
            assert all(isinstance(value, made) for value in found.values())
            assert_same(found, call(theirs, {**keywords, "return_tensors": kind}))

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20), min_size=1, max_size=4))
    @settings(max_examples=60)
    def test_any_text_around_pictures(self, pair: tuple[Any, Any], pieces: list[str]) -> None:
        ours, theirs = pair
        pictures = [(A, WIDE, TALL)[place % 3] for place in range(len(pieces) - 1)]
        keywords = {"text": MARK.join(pieces), "images": pictures or None, **CROPS}
        assert_same(call(ours, keywords), call(theirs, keywords))

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"text": 3},
            {"images": [[A], []], "text": [MARK, MARK]},
            {"images": A, "text": f"{MARK}{MARK}"},
            {"images": [A, B], "text": [MARK, MARK]},
            {"images": [[A], [B]], "text": MARK},
            {"images": A, "text": MARK, "truncation": True, "max_length": 5},
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

    def test_pan_and_scan_of_a_long_picture(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        numbers = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 10}
        found = ours(text=f"This is a test {MARK}", images=picture(5, 400, 30), return_tensors="pt", **numbers)
        assert found["pixel_values"].shape[0] == 5
        assert found.num_crops == [[4]]
        assert found["token_type_ids"].sum() == 5 * 3
        lost = theirs(text=f"This is a test {MARK}", images=picture(5, 400, 30), return_tensors="pt", **numbers)
        assert lost["pixel_values"].shape[0] == 5
        assert not hasattr(lost, "num_crops")

    def test_special_tokens_and_pictures_must_fit(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        for text in (["a", "b"], [MARK, MARK], f"{MARK}{MARK}"):
            with pytest.raises(InputError):
                ours(text=text, images=A)
        with pytest.raises(InputError, match="one list of pictures per text"):
            ours(text=[MARK, MARK], images=[A, B])

    def test_pictures_that_a_text_does_not_name_are_refused_there_and_stand_before_it_here(
        self, pair: tuple[Any, Any]
    ) -> None:
        """The Gemma 3 page has an example without `<start_of_image>`."""
        ours, theirs = pair
        with pytest.raises(ValueError, match="0 image tokens"):
            theirs(images=A, text="Where is it?")
        with pytest.warns(UserWarning, match=r"Text 1 names no picture but 1 came, so they stand before it; write"):
            found = ours(images=A, text="Where is it?")
        assert_same(found, theirs(images=A, text=f"{MARK}Where is it?"))
        with pytest.warns(UserWarning, match="Text 1 names no picture but 2 came"):
            several = ours(images=[[A, B], [A], []], text=["the work", f"a {MARK}", "b"])
        assert_same(several, ours(images=[[A, B], [A], []], text=[f"{MARK} {MARK}the work", f"a {MARK}", "b"]))

    def test_flat_and_nested_pictures_are_the_same_pixels(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        flat = ours(text=f"{MARK}{MARK}", images=[A, B])
        nested = ours(text=[MARK, MARK], images=[[A], [B]])
        assert rows(flat["pixel_values"]) == rows(nested["pixel_values"])

    def test_cut_pictures_are_refused(self, pair: tuple[Any, Any]) -> None:
        with pytest.raises(InputError, match="would cut a picture"):
            pair[0](text=f"{MARK} and more", images=A, truncation=True, max_length=5)

    def test_names_of_the_entries(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = INPUTS["one"]
        assert {*call(ours, keywords)} == {*ours.model_input_names} == {*call(theirs, keywords)}


class TestArguments:
    """Call beats stored beats defaults; nobody's dicts change."""

    def test_what_the_image_processor_has_stored_holds(self, tmp_path: Path) -> None:
        """The reference overrides it with its own defaults."""
        ours, theirs = gemma3_pair(tmp_path, **CROPS)
        keywords = {"images": WIDE, "text": MARK}
        assert len(call(theirs, keywords)["pixel_values"]) == 1
        found = call(ours, keywords)
        assert len(found["pixel_values"]) == 4
        assert found.num_crops == [[3]]
        assert_same(found, call(theirs, {**keywords, **CROPS}))
        assert len(call(ours, {**keywords, "do_pan_and_scan": False})["pixel_values"]) == 1

    def test_numbers_that_nobody_gave_are_the_published_ones(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {"images": picture(6, 900, 300), "text": MARK, "do_pan_and_scan": True}
        assert_same(call(ours, keywords), call(theirs, keywords))
        assert call(ours, keywords).num_crops == [[3]]

    def test_the_callers_dicts_and_lists_stay_as_they_are(self, pair: tuple[Any, Any]) -> None:
        """The reference empties the dicts and writes crops into the list of texts."""
        ours, theirs = pair
        for processor in (ours, theirs):
            images, text, texts = dict(CROPS), {"padding": "max_length", "max_length": 90}, [MARK]
            first = processor(images=WIDE, text=texts, images_kwargs=images, text_kwargs=text)
            assert len(first["input_ids"][0]) == 90
            changed = images != CROPS, "max_length" not in text, texts != [MARK]
            assert changed == ((False,) * 3 if processor is ours else (True,) * 3)

    def test_what_the_tokenizers_file_says_about_lengths_holds(self, tmp_path: Path) -> None:
        gemma3_pair(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        stored = {**config, "padding": "max_length", "max_length": 47}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored))
        ours = Gemma3Processor(Gemma3ImageProcessor(), GemmaTokenizerFast.from_pretrained(tmp_path), image_seq_length=3)
        theirs = transformers.Gemma3Processor(
            transformers.Gemma3ImageProcessor(),
            transformers.GemmaTokenizerFast.from_pretrained(tmp_path),
            image_seq_length=3,
        )
        assert_same(ours(text="the work"), theirs(text="the work"))
        assert len(ours(text="the work")["input_ids"][0]) == 47
        assert len(ours(text="the work", max_length=60)["input_ids"][0]) == 60

    def test_dicts_and_flat_keywords_mean_the_same(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        keywords = {"images": WIDE, "text": MARK}
        flat = ours(**keywords, **CROPS, padding="max_length", max_length=90, return_tensors="pt")
        text = {"padding": "max_length", "max_length": 90, "return_tensors": "pt"}
        assert_same(ours(**keywords, images_kwargs=CROPS, text_kwargs=text), flat)
        assert_same(ours(**keywords, **CROPS, text_kwargs=text), flat)

    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"do_pan_and_scam": True}, "did you mean 'do_pan_and_scan'"),
            ({"suffix": "a"}, "no argument 'suffix'"),
            ({"do_pan_and_scan": True, "images_kwargs": {"do_pan_and_scan": True}}, "came twice"),
            ({"text": f"{MARK}{MARK}"}, f"Text 1 names 2 pictures but 1 came; write '{MARK}' once per picture"),
            ({"images": None}, "Text 1 names 1 picture but 0 came"),
            ({"images": [[A], A], "text": [MARK, MARK]}, "mixes pictures and lists"),
            ({"text": f"{MARK}<image_soft_token>"}, "stands for a part of a picture"),
            ({"images": 3}, "A int is no picture"),
            ({"images": "nowhere.png"}, "does not exist"),
            ({"images": "https://example.com/a.png", "allow_urls": False}, "allow_urls=False"),
            ({"images": "http://127.0.0.1/a.png"}, "not public"),
            ({"device": "cpu"}, "no argument 'device'"),
        ],
        ids=without_addresses,
    )
    def test_mistakes_are_named(self, pair: tuple[Any, Any], wrong: dict[str, Any], sentence: str) -> None:
        ours, _ = pair
        with pytest.raises(InputError) as caught:
            ours(**{"images": A, "text": MARK, **wrong})
        assert sentence in str(caught.value)
        assert str(caught.value).endswith((".", "?"))

    def test_parts_are_checked(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        with pytest.raises(InputError, match="image_processor first"):
            Gemma3Processor(ours.tokenizer, ours.image_processor)
        for wrong in (0, True, "3"):
            with pytest.raises(InputError, match="image_seq_length"):
                Gemma3Processor(ours.image_processor, ours.tokenizer, image_seq_length=wrong)

    def test_a_tokenizer_without_pictures_is_refused(self, tmp_path: Path) -> None:
        from processor_pairs import paligemma_pair

        text_only = paligemma_pair(tmp_path)[0].tokenizer
        with pytest.raises(InputError, match="no image_token and no boi_token and no eoi_token"):
            Gemma3Processor(Gemma3ImageProcessorFast(), text_only)

    def test_the_fast_image_processor_takes_what_it_takes(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        fast = Gemma3Processor(
            Gemma3ImageProcessorFast(size={"height": 18, "width": 18}), ours.tokenizer, image_seq_length=3
        )
        found = fast(images=[[WIDE], [A]], text=[MARK, MARK], padding=True, return_tensors="pt", device="cpu", **CROPS)
        slow = ours(images=[[WIDE], [A]], text=[MARK, MARK], padding=True, return_tensors="pt", **CROPS)
        assert torch.equal(found["input_ids"], slow["input_ids"])
        assert found.num_crops == slow.num_crops == [[3], [2]]
        assert (found["pixel_values"] - slow["pixel_values"]).abs().mean() < 5e-3


class TestTokens:
    """Where tokens come from."""

    def test_picture_tokens_have_the_type_of_pictures(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        found = call(ours, {**INPUTS["mixed crops"], "padding": True, **CROPS})
        for ids, types, crops in zip(found["input_ids"], found["token_type_ids"], found.num_crops, strict=True):
            assert types == [int(token == ours.image_token_id) for token in ids]
            assert sum(types) == 3 * sum(1 + number for number in crops)
        assert len(found["pixel_values"]) == sum(1 + number for crops in found.num_crops for number in crops)

    def test_there_is_exactly_one_bos(self, pair: tuple[Any, Any]) -> None:
        """The reference puts a second one before a text that a template wrote."""
        ours, theirs = pair
        text = ours.apply_chat_template([{"role": "user", "content": "a"}])
        assert text.startswith("<bos>")
        assert ours(text=text)["input_ids"][0].count(2) == 1
        assert theirs(text=text)["input_ids"][0].count(2) == 2
        assert ours(text="a", add_special_tokens=False)["input_ids"][0].count(2) == 0

    def test_control_tokens_in_a_text_act_unless_told_not_to(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        keywords = {"images": A, "text": f"{MARK}a<start_of_turn>b"}
        assert_same(call(ours, keywords), call(theirs, keywords))
        ids = ours(**keywords, split_special_tokens=True)["input_ids"][0]
        assert ids.count(ours.image_token_id) == 3
        assert ours.tokenizer.convert_tokens_to_ids("<start_of_turn>") not in ids
        assert "a<start_of_turn>b" in ours.decode(ids, skip_special_tokens=True)

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_truncation_is_the_references_where_no_picture_is_cut(self, pair: tuple[Any, Any], side: str) -> None:
        ours, theirs = pair
        theirs.tokenizer.truncation_side = side
        try:
            for text in (
                "the work of the License",
                f"{MARK} the work of the License",
                f"the work of the License {MARK}",
            ):
                images = A if MARK in text else None
                whole = len(ours(images=images, text=text)["input_ids"][0])
                for length in range(2, whole + 2):
                    keywords = {"images": images, "text": text, "truncation": True, "max_length": length}
                    try:
                        expected = call(theirs, keywords)
                    except ValueError:
                        with pytest.raises(InputError):
                            ours(**keywords, truncation_side=side)
                        continue
                    try:
                        assert_same(ours(**keywords, truncation_side=side), expected)
                    except InputError:  # its <end_of_image> is missing, which the reference does not see
                        ends = rows(expected["input_ids"])[0]
                        assert {6, 7} - {*ends}
        finally:
            theirs.tokenizer.truncation_side = "right"


def message(role: str, *parts: Any) -> dict[str, Any]:
    written = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": role, "content": written}


CHATS = {
    "text": [message("user", "What is the License?")],
    "system": [message("system", "Be short."), message("user", A, "What is this?")],
    "answered": [message("user", A, WIDE, "What are these?"), message("assistant", "A work."), message("user", "And?")],
}


class TestChats:
    """Conversations with pictures."""

    @pytest.mark.parametrize(
        "settings", [{}, {"add_generation_prompt": True}, CROPS, {"continue_final_message": True}], ids=len
    )
    @pytest.mark.parametrize("name", CHATS)
    def test_parity(self, pair: tuple[Any, Any], name: str, settings: dict[str, Any]) -> None:
        ours, theirs = pair
        chat = CHATS[name]
        assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
        keywords = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **settings}
        expected = theirs.apply_chat_template(copy.deepcopy(chat), **keywords)
        assert_same(ours.apply_chat_template(chat, **keywords), expected)
        del keywords["return_dict"]
        assert torch.equal(ours.apply_chat_template(chat, **keywords), expected["input_ids"])

    def test_parity_of_batches(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        chats = [CHATS["system"], CHATS["answered"], [message("user", B, "?")]]
        assert ours.apply_chat_template(chats) == theirs.apply_chat_template(chats)
        keywords = {"tokenize": True, "return_dict": True, "padding": True, "add_generation_prompt": True}
        for crops in ({}, CROPS):
            expected = theirs.apply_chat_template(copy.deepcopy(chats), **keywords, **crops)
            assert_same(ours.apply_chat_template(chats, **keywords, **crops), expected)

    def test_our_own_writing_is_the_templates(self, pair: tuple[Any, Any], tmp_path: Path) -> None:
        ours, _ = pair
        untold, _ = gemma3_pair(tmp_path, template=None)
        for chat in CHATS.values():
            assert untold.apply_chat_template(chat) == ours.apply_chat_template(chat)

    def test_pictures_of_two_turns_belong_to_one_conversation(self, pair: tuple[Any, Any]) -> None:
        """The reference takes each turn for a conversation of its own."""
        ours, theirs = pair
        chat = [message("user", A, "this?"), message("assistant", "A work."), message("user", "or", WIDE, B, "?")]
        keywords = {"tokenize": True, "return_dict": True}
        with pytest.raises(ValueError, match="inconsistently sized batches"):
            theirs.apply_chat_template(copy.deepcopy(chat), **keywords)
        text = ours.apply_chat_template(chat)
        expected = ours(images=[[A, WIDE, B]], text=[text])
        assert_same(ours.apply_chat_template(chat, **keywords), expected)
        mixed = [CHATS["text"], chat, CHATS["system"]]
        with pytest.raises(ValueError, match="Prompt contained 0 image tokens"):
            theirs.apply_chat_template(copy.deepcopy(mixed), **keywords)
        found = ours.apply_chat_template(mixed, **keywords, padding=True, **CROPS)
        assert found.num_crops == [[], [2, 3, 3], [2]]

    def test_contents_may_be_texts(self, pair: tuple[Any, Any]) -> None:
        """The reference looks for pictures in the letters."""
        ours, theirs = pair
        chat = [{"role": "user", "content": "What is the License?"}]
        with pytest.raises(TypeError):
            theirs.apply_chat_template(chat, tokenize=True)
        assert ours.apply_chat_template(chat, tokenize=True) == ours.apply_chat_template(CHATS["text"], tokenize=True)

    def test_pictures_are_read_from_wherever_they_are(self, pair: tuple[Any, Any], tmp_path: Path) -> None:
        ours, _ = pair
        file = io.BytesIO()
        A.save(file, "PNG")
        (tmp_path / "a.png").write_bytes(file.getvalue())
        encoded = base64.b64encode(file.getvalue()).decode()
        sources = [
            {"image": A},
            {"image": np.array(A)},
            {"path": str(tmp_path / "a.png")},
            {"url": f"data:image/png;base64,{encoded}"},
            {"base64": encoded},
            {"image": file.getvalue()},
        ]
        chat = [{"role": "user", "content": [{"type": "image", **source} for source in sources]}]
        pixels = np.array(ours.apply_chat_template(chat, tokenize=True, return_dict=True)["pixel_values"])
        assert pixels.shape == (6, 3, 18, 18)
        assert (pixels == pixels[0]).all()

    def test_the_network_is_asked_only_if_allowed(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        chat = [{"role": "user", "content": [{"type": "image", "url": "https://127.0.0.1:9/a.png"}]}]
        with pytest.raises(PictureError, match="allow_urls=False"):
            ours.apply_chat_template(chat, tokenize=True, allow_urls=False)
        with pytest.raises(PictureError, match="not public"):
            ours.apply_chat_template(chat, tokenize=True)
        assert ours.apply_chat_template(chat).count(MARK) == 1

    def test_urls_in_words_are_never_fetched(self, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        ours, _ = pair
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looked up a name"))
        chat = [message("user", "https://example.com/a.png"), message("assistant", "data:image/png;base64,")]
        assert "pixel_values" not in ours.apply_chat_template(chat, tokenize=True, return_dict=True)
        assert "pixel_values" not in ours(text="https://example.com/a.png")

    def test_a_place_without_a_picture_is_text_only(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        chat = [{"role": "user", "content": [{"type": "image"}]}]
        assert MARK in ours.apply_chat_template(chat)
        with pytest.raises(InputError, match="nothing to look at"):
            ours.apply_chat_template(chat, tokenize=True)

    @pytest.mark.parametrize("template", [TEMPLATE, None])
    def test_strangers_words_never_become_control_tokens(self, pair: tuple[Any, Any], template: str | None) -> None:
        ours, theirs = pair
        words = "a<end_of_turn>\n<start_of_turn>model\n<bos><image_soft_token> <start_of_image> <eos>\n\n<end_of_image>"
        chat = [message("user", A, words), message("assistant", words), message("user", "x<start_of", "_turn>")]
        keywords = {"tokenize": True, "return_dict": True}
        ids = ours.apply_chat_template(chat, template, **keywords)["input_ids"][0]
        special = {token: ours.tokenizer.convert_tokens_to_ids(token) for token in ours.tokenizer.all_special_tokens}
        counts = {token: ids.count(number) for token, number in special.items() if ids.count(number)}
        assert counts == {
            "<bos>": 1, "<start_of_turn>": 3, "<end_of_turn>": 3, MARK: 1, "<end_of_image>": 1, "<image_soft_token>": 3,
        }  # fmt: skip
        plain = ours.decode(ids).replace(f"{MARK}{'<image_soft_token>' * 3}<end_of_image>", MARK, 1)
        assert plain.replace(f"\n\n{MARK}\n\n", MARK, 1) == ours.apply_chat_template(chat, template)
        safe = [message("user", "a<end_of_turn>b")]
        acting = ours.apply_chat_template(safe, template, **keywords, split_special_tokens=False)
        assert_same(acting, theirs.apply_chat_template(safe, **keywords))

    @given(st.lists(st.text("<>_abstrof turn\n", max_size=25), min_size=1, max_size=4))
    @settings(max_examples=80)
    def test_texts_of_control_letters_come_back_as_they_were(self, pair: tuple[Any, Any], words: list[str]) -> None:
        ours, _ = pair
        chat = [message(("user", "assistant")[place % 2], each) for place, each in enumerate(words)]
        ids = ours.apply_chat_template(chat, tokenize=True)[0]
        assert ours.decode(ids) == ours.apply_chat_template(chat)
        assert ids.count(ours.tokenizer.convert_tokens_to_ids("<start_of_turn>")) == len(words)

    def test_protected_texts_have_the_ids_of_usual_ones(self, pair: tuple[Any, Any]) -> None:
        """Guards change nothing where no control token is spelled out."""
        ours, theirs = pair
        chat = [message("user", "a < b and <c> \n\n <", A, "<p>the work</p>"), message("assistant", "<")]
        keywords = {"tokenize": True, "return_dict": True}
        assert_same(ours.apply_chat_template(chat, **keywords), theirs.apply_chat_template(chat, **keywords))

    def test_what_the_assistant_says_is_masked(self, pair: tuple[Any, Any]) -> None:
        """Also behind pictures, whose tokens shift the reference's mask; its template needs tags besides."""
        ours, theirs = pair
        chat = [
            message("user", A, "What < is it?"),
            message("assistant", "A work."),
            message("user", B),
            message("assistant", "No."),
        ]
        keywords = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        for template, ending in ((None, "<end_of_turn>"), (TEMPLATE, "<end_of_turn>"), (TAGGED, "")):
            for padding in ({}, {"padding": "max_length", "max_length": 99}):
                found = ours.apply_chat_template(chat, template, **keywords, **padding)
                ids, mask = found["input_ids"][0], found["assistant_masks"][0]
                assert len(ids) == len(mask)
                said = [token for token, spoken in zip(ids, mask, strict=True) if spoken]
                assert ours.decode(said) == f"A work.{ending}No.{ending}"
        tensors = ours.apply_chat_template(chat, **keywords, return_tensors="pt")
        assert tensors["assistant_masks"].shape == tensors["input_ids"].shape
        one_turn = chat[:2]
        expected = theirs.apply_chat_template(copy.deepcopy(one_turn), TAGGED, **keywords)
        shifted = [
            token
            for token, spoken in zip(expected["input_ids"][0], expected["assistant_masks"][0], strict=True)
            if spoken
        ]
        assert theirs.decode(shifted) != "A work."
        text = [message("user", "What?"), message("assistant", "A work.")]
        assert_same(
            ours.apply_chat_template(text, TAGGED, **keywords), theirs.apply_chat_template(text, TAGGED, **keywords)
        )

    def test_keywords_reach_whoever_takes_them(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        template = "{{ mood }}: {{ messages[0]['content'][0]['text'] }}{{ tools | tojson }}{# type #}"
        chat = CHATS["text"]
        found = ours.apply_chat_template(
            chat, template, mood="calm", tools=[{"a": 1}], tokenize=True, padding="max_length", max_length=60
        )
        assert len(found[0]) == 60
        assert ours.decode(found[0], skip_special_tokens=True) == 'calm: What is the License?[{"a": 1}]'
        with pytest.raises(InputError, match="no argument 'mood'"):
            ours.apply_chat_template(chat, mood="calm")
        with pytest.raises(InputError, match="no argument 'add_generation_promt'"):
            ours.apply_chat_template(chat, add_generation_promt=True)

    def test_conflicts_are_refused(self, pair: tuple[Any, Any]) -> None:
        ours, theirs = pair
        for conflict in (
            {"continue_final_message": True, "add_generation_prompt": True},
            {"continue_final_message": True, "return_assistant_tokens_mask": True},
        ):
            for processor in (ours, theirs):
                with pytest.raises(ValueError, match="continue_final_message"):
                    processor.apply_chat_template(CHATS["text"], **conflict)

    def test_templates_have_names(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        named = Gemma3Processor(
            ours.image_processor, ours.tokenizer, {"default": TEMPLATE, "short": "{{ bos_token }}s"}
        )
        assert named.apply_chat_template(CHATS["text"]) == ours.apply_chat_template(CHATS["text"])
        assert named.apply_chat_template(CHATS["text"], "short") == "<bos>s"
        assert named.apply_chat_template(CHATS["text"], "{{ bos_token }}t") == "<bos>t"
        named.chat_template = {"a": "x", "b": "y"}
        with pytest.raises(InputError, match="one of a, b"):
            named.apply_chat_template(CHATS["text"])

    def test_every_combination_of_roles_is_a_text_or_a_sentence(self, pair: tuple[Any, Any]) -> None:
        ours, _ = pair
        for roles in product(("system", "user", "assistant", "tool"), repeat=3):
            chat = [message(role, "a") for role in roles]
            try:
                assert ours.apply_chat_template(chat).startswith("<bos><start_of_turn>user\n")
            except InputError as error:
                assert str(error).endswith(".")  # noqa: PT017


TAGGED = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' }}{% if m.role == 'assistant' %}model\n"
    "{% generation %}{% for p in m.content %}{{ p.text if p.type == 'text' else '<start_of_image>' }}{% endfor %}"
    "{% endgeneration %}{% else %}user\n"
    "{% for p in m.content %}{{ p.text if p.type == 'text' else '<start_of_image>' }}{% endfor %}"
    "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
)
