"""Scores gemlens-tiny on 1,000 scenes of photographs and some words that it never saw.

    python recipes/gemlens-tiny/score.py [FOLDER of a model] [--scenes 1000] [--out results.json]
    python recipes/gemlens-tiny/score.py build/gemlens-tiny/ask/last --split train --seed 9 --scenes 100

Every scene is asked everything that can be asked of it once, in seven sources of as many examples. Choices between
trainings are made by the second form: scenes of the training's photographs and words, of another seed than it has.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemlens import AutoModelForImageTextToText, AutoProcessor
from gemlens.evals.run import evaluate
from gemlens.evals.scenes import TASKS, Figure, figures
from gemlens.evals.score import Item
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.scene import SPLITS
from gemlens.scenes.source import Scenes
from gemlens.scenes.words import is_unseen
from gemlens.tasks.findings import Finding
from gemlens.tasks.mask_codec import MaskCodec

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from report import commit, machine

SEED = 1
FILE = "mask_codec.npz"
EMBEDDED = Path(__file__).resolve().parents[2] / "src" / "gemlens" / "assets" / "gemlens-tiny"
NAMES = {form: kind.name for kind in KINDS for form in (kind.name, kind.names)}
TARGETS = {"caption": 0.90, "detect": 0.80, "segment": 0.65, "count": 0.90, "read": 0.85, "position": 0.90}
MEANINGS = {
    "caption": "F1 of the things that captions name, with their numbers",
    "detect": "mAP at IoU 0.5",
    "segment": "mean IoU of masks",
    "count": "right numbers",
    "read": "texts right to the letter",
    "position": "right answers to where something is, or how it lies to another",
}


def ask(model: Any, processor: Any, source: Scenes, codec: MaskCodec) -> tuple[Item, ...]:
    """The answers to what a source asks."""
    report = evaluate(model, processor, source, batch_size=50, max_new_tokens=100, codec=codec)
    return report.items


def score(folder: Path, scenes: int, split: str, seed: int) -> dict[str, Figure]:
    """The six figures, and reading apart for words and numbers that training never showed."""
    codec = MaskCodec.load(next(place for place in (folder, EMBEDDED) if (place / FILE).exists()) / FILE)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    found: dict[str, Figure] = {}
    for name, tasks in TASKS.items():
        began = time.perf_counter()
        items: list[Item] = []
        places: dict[int, list[Finding]] = {}
        for number, task in enumerate(tasks):
            source = Scenes(split, seed=seed, count=scenes, tasks=(task,), codec=codec)
            for item in ask(model, processor, source, codec):
                index = number * scenes + item.index
                items.append(replace(item, index=index))
                if name in ("caption", "detect", "segment"):
                    things = source.scene(item.index).things
                    places[index] = [Finding(thing.kind.name, thing.box, thing.mask) for thing in things]
        found |= figures(items, places.__getitem__, names=NAMES, codec=codec)
        if name == "read" and (unseen := [item for item in items if any(map(is_unseen, item.references[0].split()))]):
            found["read, unseen"] = figures(unseen, places.__getitem__, names=NAMES, codec=codec)["read"]
        print(f"{name:9} {found[name]}  target {TARGETS[name]}  {time.perf_counter() - began:.0f} s", flush=True)
    return found


def main() -> None:
    """Prints the figures, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = score(asked.folder, asked.scenes, asked.split, asked.seed)
    if asked.out:
        rows = {name: vars(figure) for name, figure in found.items()}
        about = {
            "scenes": asked.scenes,
            "split": asked.split,
            "seed": asked.seed,
            "commit": commit(),
            "machine": machine(),
        }
        asked.out.write_text(json.dumps({"figures": rows, "meaning": MEANINGS, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
