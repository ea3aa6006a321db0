"""Counts what gemlens-tiny gets wrong, by what makes it hard; the model card's list of failures is of its output.

python recipes/gemlens-tiny/failures.py [FOLDER of a model] [--scenes 600] [--split test] [--seed 1]
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from score import EMBEDDED, FILE, NAMES, SEED, ask

from gemlens import AutoModelForImageTextToText, AutoProcessor
from gemlens.evals.counting import things_in
from gemlens.evals.score import Item
from gemlens.scenes.scene import SPLITS
from gemlens.scenes.source import Scenes
from gemlens.scenes.words import is_unseen
from gemlens.tasks.mask_codec import MaskCodec


def shares(pairs: Iterable[tuple[Hashable, bool]]) -> str:
    """(what makes it hard, whether it is right) -> how many are right of each."""
    found: dict[Hashable, list[bool]] = defaultdict(list)
    for hard, right in pairs:
        found[hard].append(right)
    lines = (f"{hard}: {sum(each) / len(each):.0%} of {len(each)}" for hard, each in sorted(found.items(), key=str))
    return "; ".join(lines)


def is_right(item: Item) -> bool:
    """Whether an answer is that of the truth."""
    return item.answer.strip() == item.references[0]


def kind_of_words(text: str) -> str:
    """ "1 unseen word", "2 texts"."""
    words = text.split()
    unseen = "unseen " if any(map(is_unseen, words)) else ""
    what = "texts" if len(words) > 1 else "number" if text.isdigit() else "word"
    return f"{len(words)} {unseen}{what}"


def captions(items: Iterable[Item], source: Scenes) -> None:
    """Which kinds captions miss or invent, and in how full a scene they are whole."""
    missed, invented, there = Counter[str](), Counter[str](), Counter[str]()
    whole = []
    for item in items:
        things = source.scene(item.index).things
        true, said = Counter(thing.kind.name for thing in things), things_in(item.answer, NAMES)
        there += true
        missed += true - said
        invented += said - true
        whole.append((f"{len(things)} things", said == true))
    worst = sorted(missed, key=lambda name: missed[name] / there[name], reverse=True)[:8]
    print("whole captions -", shares(whole))
    print("missed most -", "; ".join(f"{name}: {missed[name]} of {there[name]}" for name in worst))
    print("invented most -", "; ".join(f"{name}: {count}" for name, count in invented.most_common(5)))


def main() -> None:
    """Asks, counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    codec = MaskCodec.load(EMBEDDED / FILE)
    model = AutoModelForImageTextToText.from_pretrained(asked.folder)
    processor: Any = AutoProcessor.from_pretrained(asked.folder)

    def answers(task: str) -> tuple[Scenes, tuple[Item, ...]]:
        source = Scenes(asked.split, seed=asked.seed, count=asked.scenes, tasks=(task,), codec=codec)
        return source, ask(model, processor, source, codec)

    source, items = answers("caption")
    captions(items, source)
    print("counts -", shares((item.references[0], is_right(item)) for item in answers("count")[1]))
    print("reading -", shares((kind_of_words(item.references[0]), is_right(item)) for item in answers("ocr")[1]))
    for task in ("place", "relation"):
        print(f"{task} -", shares(("all", is_right(item)) for item in answers(task)[1]))


if __name__ == "__main__":
    main()
