"""Folders as the published checkpoints are, with tiny models and tokenizers, that both libraries open.

Widths are multiples of 128, so that weights can be quantized in groups of so many.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from processor_pairs import TEMPLATE, tokenizer_folder

from gemlens import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaTokenizerFast,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from gemlens.generation.config import GenerationConfig

TOKENS_PER_PICTURE = 4
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": False,  # a tied head says the last token again and again
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 32}


def paligemma(folder: Path, version: int = 1) -> Path:
    """PaliGemma of version 1 or 2: pictures of 14 x 14 pixels."""
    tokenizer_folder(folder, False)
    images = SiglipImageProcessor(size={"height": 14, "width": 14}, image_seq_length=TOKENS_PER_PICTURE)
    processor = PaliGemmaProcessor(images, GemmaTokenizerFast.from_pretrained(folder))
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    config = PaliGemmaConfig(
        SiglipVisionConfig(**VISION, image_size=14, patch_size=7),
        GemmaConfig(**text) if version == 1 else Gemma2Config(**text, sliding_window=16, query_pre_attn_scalar=32),
        image_token_index=processor.image_token_id,
        projection_dim=128,
        tie_word_embeddings=False,
    )
    return _saved(PaliGemmaForConditionalGeneration, config, processor, folder)


def gemma3_pictures(folder: Path, model_class: Any = Gemma3ForConditionalGeneration, **fields: Any) -> Path:
    """Gemma 3 with pictures of 18 x 18 pixels, instruction-tuned: it has a chat template."""
    tokenizer_folder(folder, True)
    tokenizer = GemmaTokenizerFast.from_pretrained(folder)
    images = Gemma3ImageProcessor(size={"height": 18, "width": 18})
    processor = Gemma3Processor(images, tokenizer, TEMPLATE, image_seq_length=TOKENS_PER_PICTURE)
    ids = {f"{name}_token_index": getattr(tokenizer, f"{name}_token_id") for name in ("boi", "eoi", "image")}
    config = Gemma3Config(
        Gemma3TextConfig(**TEXT, **GEMMA3, vocab_size=len(tokenizer)),
        SiglipVisionConfig(**VISION, image_size=18, patch_size=3),
        mm_tokens_per_image=TOKENS_PER_PICTURE,
        tie_word_embeddings=False,
        **ids,
        **fields,
    )
    return _saved(model_class, config, processor, folder)


def gemma3_classifier(folder: Path, **fields: Any) -> Path:
    """Gemma 3's classifier, of three classes unless `fields` of the config say otherwise."""
    names = {0: "cat", 1: "cow", 2: "car"}
    fields = {"id2label": names, "label2id": {name: number for number, name in names.items()}, **fields}
    return gemma3_pictures(folder, Gemma3ForSequenceClassification, **fields)


def gemma3_text(folder: Path) -> Path:
    """Gemma 3 without pictures, instruction-tuned."""
    tokenizer_folder(folder, False, chat_template=TEMPLATE)
    tokenizer = GemmaTokenizerFast.from_pretrained(folder)
    config = Gemma3TextConfig(**TEXT, **GEMMA3, vocab_size=len(tokenizer))
    return _saved(Gemma3ForCausalLM, config, tokenizer, folder)


def _saved(model_class: Any, config: Any, encoder: Any, folder: Path) -> Path:
    model = tiny.build(model_class, config)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 0.1  # else the last token alone decides what comes next
    model.save_pretrained(folder)
    encoder.save_pretrained(folder)
    tokenizer = getattr(encoder, "tokenizer", encoder)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    GenerationConfig(bos_token_id=2, pad_token_id=0, eos_token_id=ends).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "paligemma": paligemma,
    "paligemma2": lambda folder: paligemma(folder, version=2),
    "gemma3-pictures": gemma3_pictures,
    "gemma3-classifier": gemma3_classifier,
    "gemma3-text": gemma3_text,
}
