"""Teaches gemlens-tiny a question that it never heard, by LoRA, in two minutes on two cores.

    python examples/new_question.py [FOLDER] [--method lora|full|frozen]

"answer en which way is the cat?" asks for a direction of the compass, in words that the model never said: "north west"
is the top left. Pictures and answers are written as JSONL, as anybody would have them, trained with `gemlens.training`,
and asked on pictures of other photographs before and after.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from gemlens import AutoModelForImageTextToText, AutoProcessor
from gemlens.data.sources import open_source
from gemlens.evals.run import evaluate
from gemlens.scenes.questions import place
from gemlens.scenes.scene import draw
from gemlens.training.adapters import load_adapter
from gemlens.training.settings import settings_of
from gemlens.training.train import train

COMPASS = {"top": "north", "bottom": "south", "left": "west", "right": "east", "center": "middle"}
SETTINGS = {"batch_size": 16, "warmup": 0.1, "beta2": 0.98, "attention": "eager"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {
        "method": "lora",
        "lora": {"rank": 16, "dropout": 0.0, "targets": ["all-linear"]},
        "learning_rate": 3e-3,
    },
    "full": {"method": "full", "learning_rate": 3e-4},
    "frozen": {"method": "full", "train": ["language"], "learning_rate": 3e-4},  # the picture encoder stays as it is
}


def asked_of(split: str, seed: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Pictures, questions and answers."""
    for number in numbers(seed * 10**9):
        scene = draw(number, split)
        if asked := place(scene, Random(number)):  # "answer en where is the cat?"
            question = asked.prompt.replace("where", "which way")
            yield scene.picture, question, " ".join(COMPASS[word] for word in asked.answer.split())


def write(folder: Path, split: str, count: int, seed: int) -> Path:
    """Writes pictures and a JSONL file of questions about them."""
    folder.mkdir(parents=True)
    rows = []
    for number, (picture, question, answer) in enumerate(islice(asked_of(split, seed), count)):
        picture.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": question, "suffix": answer})
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
    folder: Path, method: str, model: str = "gemlens-tiny", steps: int = 300, count: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy before and after, and the seconds that training took."""
    learned = write(folder / "train", "train", count, 1000 + seed)  # scenes that the model has not learned from
    asked = write(folder / "test", "test", count // 10, 1000 + seed)
    before = accuracy(asked, model)
    said = {"model": model, "data": str(learned), "output": str(folder / method), "steps": steps, "seed": seed}
    settings = settings_of({**said, **SETTINGS, **METHODS[method]})
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
    print(f"Which way things are: {before:.0%} right before, {after:.0%} after {seconds:.0f} s ({asked.method}).")
    print(f"What was learned is in {folder / asked.method}.")


if __name__ == "__main__":
    main()
