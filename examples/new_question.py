"""Teaches gemlens-tiny a question that it never heard, by LoRA, in about two minutes on two cores.

    python examples/new_question.py [FOLDER] [--method lora|full|frozen]

Four shapes lie on photographs: "answer en which shape is there?". Pictures and answers are written as JSONL, as anybody
would have them, trained with `gemlens.training`, and asked on pictures of other photographs before and after.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from gemlens import AutoModelForImageTextToText, AutoProcessor
from gemlens.data.sources import open_source
from gemlens.evals.run import evaluate
from gemlens.scenes.artwork import background
from gemlens.tasks import prompts
from gemlens.training.adapters import load_adapter
from gemlens.training.settings import settings_of
from gemlens.training.train import train

SIDE, FINER = 128, 4
SHAPES = {
    "triangle": [(0.5, 0.0), (1.0, 0.9), (0.0, 0.9)],
    "diamond": [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)],
    "arrow": [(0.0, 0.35), (0.55, 0.35), (0.55, 0.1), (1.0, 0.5), (0.55, 0.9), (0.55, 0.65), (0.0, 0.65)],
    "cross": [
        *((0.35, 0.0), (0.65, 0.0), (0.65, 0.35), (1.0, 0.35), (1.0, 0.65), (0.65, 0.65)),
        *((0.65, 1.0), (0.35, 1.0), (0.35, 0.65), (0.0, 0.65), (0.0, 0.35), (0.35, 0.35)),
    ],
}
QUESTION = prompts.answer("which shape is there?")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"rank": 16, "targets": ["all-linear"]}, "learning_rate": 3e-3},
    "full": {"method": "full", "learning_rate": 3e-4},
    "frozen": {"method": "full", "train": ["language"], "learning_rate": 3e-4},  # the picture encoder stays as it is
}


def picture(chance: Random, split: str, shape: str) -> Image.Image:
    """A shape in a plain colour, somewhere on a photograph."""
    made = background(chance, split, (SIDE, SIDE))
    size = SIDE * chance.uniform(0.25, 0.5)
    left, top = (chance.uniform(0, SIDE - size) for _ in "xy")
    angle = chance.uniform(-0.3, 0.3)
    corners = []
    for x, y in SHAPES[shape]:
        across, down = x - 0.5, y - 0.5
        turned = (across * math.cos(angle) - down * math.sin(angle), across * math.sin(angle) + down * math.cos(angle))
        corners.append(
            tuple(FINER * (edge + size * (0.5 + part)) for edge, part in zip((left, top), turned, strict=True))
        )
    stencil = Image.new("L", (SIDE * FINER, SIDE * FINER))
    ImageDraw.Draw(stencil).polygon(corners, fill=255)
    colour = tuple(chance.randrange(256) for _ in "rgb")
    made.paste(Image.new("RGB", made.size, colour), (0, 0), stencil.resize(made.size, Image.Resampling.BOX))
    return made


def write(folder: Path, split: str, count: int) -> Path:
    """Writes pictures and a JSONL file of questions about them."""
    folder.mkdir(parents=True)
    chance, rows = Random(split), []
    for number in range(count):
        shape = chance.choice(list(SHAPES))
        picture(chance, split, shape).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": QUESTION, "suffix": shape})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def accuracy(data: Path, model: str, adapter: Path | None = None) -> float:
    """The share of questions that a model answers rightly."""
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    if adapter is not None:
        load_adapter(loaded.eval(), adapter)
    processor = AutoProcessor.from_pretrained(model)
    report = evaluate(loaded, processor, open_source(data), metric="exact_match", batch_size=50, max_new_tokens=8)
    return report.values["exact_match"]


def learn(
    folder: Path, method: str, model: str = "gemlens-tiny", steps: int = 120, count: int = 600, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy before and after, and the seconds that training took."""
    learned, asked = write(folder / "train", "train", count), write(folder / "test", "test", count // 3)
    before = accuracy(asked, model)
    said = {"model": model, "data": str(learned), "output": str(folder / method), "steps": steps, "seed": seed}
    settings = settings_of({**said, "batch_size": 32, "attention": "eager", "warmup": 0.1, **METHODS[method]})
    began = time.perf_counter()
    result = train(settings)
    seconds = time.perf_counter() - began
    after = accuracy(asked, model, result) if method == "lora" else accuracy(asked, str(result))
    return before, after, seconds


def main() -> None:
    """Learns, and says how well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--method", choices=list(METHODS), default="lora")
    parser.add_argument("--model", default="gemlens-tiny")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    before, after, seconds = learn(folder, asked.method, asked.model)
    print(f"{QUESTION!r}: {before:.0%} right before, {after:.0%} after {seconds:.0f} s of training ({asked.method}).")
    print(f"What was learned is in {folder / asked.method}.")


if __name__ == "__main__":
    main()
