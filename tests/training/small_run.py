"""A folder with a tiny PaliGemma and its processor, pictures of plain colours with what is to be said of them."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gemlens import (
    GemmaConfig,
    GemmaTokenizerFast,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from gemlens.training.settings import Settings, settings_of
from processing.processor_pairs import backend

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


def model_folder(folder: Path) -> Path:
    """Writes the model that a training starts from."""
    pictures = SiglipImageProcessor(size={"height": 8, "width": 8}, image_seq_length=4)
    processor = PaliGemmaProcessor(pictures, GemmaTokenizerFast(tokenizer_object=backend(False)))
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    text = GemmaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    config = PaliGemmaConfig(vision, text, image_token_index=processor.image_token_id, projection_dim=32)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def data_file(folder: Path, count: int = 24) -> Path:
    """Writes examples in PaliGemma's JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": "caption en", "suffix": " ".join([name] * (1 + number % 2))})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, **said: Any) -> Settings:
    """A full training of 6 steps, in float32; `folder` gets model and data unless they are there."""
    model, data = folder / "model", folder / "data" / "train.jsonl"
    if not model.exists():
        model_folder(model)
        data_file(folder / "data")
    values = {
        "model": str(model), "data": str(data), "output": str(folder / "run"), "method": "full", "precision": "fp32",
        "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1,
    }  # fmt: skip
    made: Settings = settings_of({**values, **said})
    return made
