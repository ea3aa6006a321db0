"""A small tokenizer with Gemma's rules, and each processor beside the reference's on the same files."""

import gc
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import gemlens
from gemlens.errors import InputError
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PICTURES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
# Gemma 3's published template does this; written anew from its description.
TEMPLATE = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- else -%}"
    "{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def backend(pictures: bool) -> Tokenizer:
    """BPE with byte fallback, spaces as U+2581, line breaks as tokens of their own: Gemma's rules on few words."""
    special = SPECIAL + ([*PICTURES.values()] if pictures else [])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    letters = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=letters, show_progress=False)
    words = (Path(gemlens.__file__).parents[2] / "LICENSE").read_text()[:6000].replace("\n", " ")
    trained.train_from_iterator(
        [words, "<start_of_turn>user", "<start_of_image>", "<image>", "</end_of_turn>"], trainer
    )
    model = json.loads(trained.to_str())["model"]  # once more, as the bytes are pieces, no special tokens
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    kept = [AddedToken(token, normalized=False, special=True) for token in special]
    tokenizer.add_special_tokens(kept)
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in range(1, 6)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def tokenizer_folder(folder: Path, pictures: bool, **settings: Any) -> Path:
    """A folder with the tokenizer's files, as both libraries read them."""
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    GemmaTokenizerFast(
        tokenizer_object=backend(pictures),
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        **named,
        **({"extra_special_tokens": PICTURES} if pictures else {}),
        **settings,
    ).save_pretrained(folder)
    return folder


def paligemma_pair(folder: Path, seq_length: int = 4, side: str = "left") -> tuple[Any, Any]:
    """Our PaliGemmaProcessor and the reference's."""
    tokenizer_folder(folder, False, padding_side=side)
    images = {"size": {"height": 14, "width": 14}, "image_seq_length": seq_length}
    ours = PaliGemmaProcessor(SiglipImageProcessor(**images), GemmaTokenizerFast.from_pretrained(folder))
    reference = transformers.SiglipImageProcessor(**images)
    reference.image_seq_length = seq_length
    theirs = transformers.GemmaTokenizerFast.from_pretrained(folder)
    return ours, transformers.PaliGemmaProcessor(reference, theirs)


def gemma3_pair(folder: Path, seq_length: int = 3, template: str | None = TEMPLATE, **images: Any) -> tuple[Any, Any]:
    """Our Gemma3Processor and the reference's."""
    tokenizer_folder(folder, True)
    images = {"size": {"height": 18, "width": 18}, **images}
    ours = Gemma3Processor(
        Gemma3ImageProcessor(**images),
        GemmaTokenizerFast.from_pretrained(folder),
        template,
        image_seq_length=seq_length,
    )
    theirs = transformers.GemmaTokenizerFast.from_pretrained(folder)
    reference = transformers.Gemma3ImageProcessor(**images)
    return ours, transformers.Gemma3Processor(reference, theirs, template, image_seq_length=seq_length)


def picture(seed: int, width: int = 20, height: int = 16, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def rows(value: Any) -> Any:
    """Lists of what a batch holds, to compare."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [rows(each) for each in value] if isinstance(value, (list, tuple)) else value


def assert_same(given: Any, expected: Any, *but: str) -> None:
    """Every entry of the reference's batch is ours, except those named."""
    for name in expected.keys() - set(but):
        ours = rows(given[name])
        if name == "pixel_values":
            assert np.array_equal(np.array(ours), np.array(rows(expected[name]))), name
        else:
            assert ours == rows(expected[name]), name


def refused(do: Any, *arguments: Any, **named: Any) -> str:
    """The sentence that a call ends with, in less than a second of this thread, with no other thread left behind."""
    gc.freeze()  # what other tests left is not searched for garbage meanwhile
    threads, begin, tracer = threading.active_count(), time.thread_time(), sys.gettrace()
    try:
        with pytest.raises(InputError) as caught:
            do(*arguments, **named)
        assert time.thread_time() - begin < 1
    finally:
        gc.unfreeze()
    assert threading.active_count() <= threads  # threads of other tests may have ended meanwhile
    assert sys.gettrace() is tracer
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


def without_addresses(value: object) -> str:
    """A name for a test's parameter that is the same in every process; pictures say where they lie in memory."""
    return re.sub(r" at 0x\w+", "", str(value))
