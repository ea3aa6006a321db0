"""Tiny checkpoints without weights: config.json and the files of a tokenizer and, with pictures, of a processor.

A picture has 4 tokens; layers are, where the family has windows: sliding, full, sliding.
"""

import atexit
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import tiny
import torch
from processor_pairs import gemma3_pair, paligemma_pair, tokenizer_folder

import gemlens
from gemlens import AttentionMaskVisualizer, AutoConfig, AutoTokenizer, Gemma3Config, PaliGemmaConfig

WINDOW = 4
ROOM = Path(mkdtemp(prefix="gemlens-"))
atexit.register(shutil.rmtree, ROOM)


@lru_cache
def folder(family: str, window: int) -> Path:
    place = ROOM / f"{family}-{window}"
    place.mkdir()
    if family in tiny.TEXT_FAMILIES:
        tokenizer_folder(place, pictures=False)
        tiny.text_config(family, window, vocab_size=len(AutoTokenizer.from_pretrained(place))).save_pretrained(place)
        return place
    processor = (gemma3_pair(place, seq_length=4) if family == "gemma3-pictures" else paligemma_pair(place))[0]
    processor.save_pretrained(place)
    size = processor.image_processor.size["height"]
    vision = tiny.vision_config(patch_size=size // 2, image_size=size)
    kind = {"paligemma": "gemma", "paligemma2": "gemma2", "gemma3-pictures": "gemma3"}[family]
    text = tiny.text_config(kind, window, vocab_size=len(processor.tokenizer))
    config: Any
    if family == "gemma3-pictures":
        ids = processor.tokenizer.convert_tokens_to_ids
        named = {"boi_token_index": ids(processor.boi_token), "eoi_token_index": ids(processor.eoi_token)}
        token = processor.image_token_id
        config = Gemma3Config(text, vision, mm_tokens_per_image=4, image_token_index=token, **named)
    else:
        token = processor.image_token_id
        config = PaliGemmaConfig(vision, text, image_token_index=token, projection_dim=text.hidden_size)
    config.save_pretrained(place)
    return place


def copied(family: str, place: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(folder(family, WINDOW), place, dirs_exist_ok=True))


@lru_cache
def visualizer(family: str, window: int = WINDOW) -> AttentionMaskVisualizer:
    return AttentionMaskVisualizer(folder(family, window))


@lru_cache
def model(family: str, window: int = WINDOW) -> Any:
    """The model that the folder describes, with random weights."""
    config = AutoConfig.from_pretrained(folder(family, window))
    return tiny.build(tiny.MODELS[family], config).requires_grad_(False)


def seen_in_model(family: str, inputs: Any, window: int = WINDOW) -> list[torch.Tensor]:
    """By layer, [S, S] bool: where attention in the running model gives weight, in every head alike."""
    by_layer = []
    for weights in model(family, window)(**inputs, output_attentions=True).attentions:
        seen = weights[0] > 0  # [N, S, S]
        assert torch.equal(seen.all(0), seen.any(0))
        by_layer.append(seen[0])
    return by_layer


def inputs_of(family: str, prompt: str, pictures: list[Any], suffix: str | None) -> dict[str, torch.Tensor]:
    """What a person who follows the documentation gives the model."""
    if family in tiny.TEXT_FAMILIES:
        tokenizer = AutoTokenizer.from_pretrained(folder(family, WINDOW))
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        return {"input_ids": _longer(tokenizer, ids, suffix)}
    processor = gemlens.AutoProcessor.from_pretrained(folder(family, WINDOW))
    if family != "gemma3-pictures":
        prompt = prompt.replace("<img>", "<image>")
        answers = {} if suffix is None else {"suffix": [suffix]}
        return dict(processor(images=[pictures], text=[prompt], return_tensors="pt", **answers))
    text = prompt.replace("<img>", "<start_of_image>")
    batch = processor(images=[pictures], text=[text], return_tensors="pt")
    pixels = {"pixel_values": batch["pixel_values"]} if pictures else {}
    return {"input_ids": _longer(processor.tokenizer, batch["input_ids"], suffix), **pixels}


def _longer(tokenizer: Any, ids: torch.Tensor, suffix: str | None) -> torch.Tensor:
    """The prompt and what was generated after it."""
    more = [] if suffix is None else tokenizer(suffix, add_special_tokens=False)["input_ids"]
    return torch.cat([ids, torch.tensor([more], dtype=ids.dtype)], dim=1)
