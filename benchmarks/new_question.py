"""A question that gemlens-tiny never heard, learned by LoRA, by all weights, and with the picture encoder as it is.

    .venv/bin/python benchmarks/new_question.py

What is learned and asked is that of examples/new_question.py; each round has a seed of its own.
"""

import sys
import tempfile
from pathlib import Path

from report import ROOT, Claim, write

sys.path.insert(0, str(ROOT / "examples"))  # this script has the name of the example
import new_question

ROUNDS = 2
NAMES = {"lora": "LoRA", "full": "all weights", "frozen": "frozen encoder"}


def size_of(folder: Path) -> float:
    """Megabytes of the weights that a training wrote."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def main() -> None:
    before: set[float] = set()
    right, seconds, sizes = ({name: [] for name in NAMES.values()} for _ in range(3))
    for seed in range(ROUNDS):
        for method, name in NAMES.items():
            with tempfile.TemporaryDirectory() as folder:
                first, after, took = new_question.learn(Path(folder), method, seed=seed)
                before.add(first)
                right[name].append(100 * after)
                seconds[name].append(took)
                sizes[name].append(size_of(Path(folder) / method / "last"))
    claims = [
        Claim("right after training", "%", right, higher_is_better=True),
        Claim("training", "s", seconds),
        Claim("what is saved", "MB", sizes),
    ]
    notes = f"{ROUNDS} seeds; {', '.join(f'{share:.0%}' for share in sorted(before))} right before"
    print(write("new_question", "A new question (gemlens-tiny)", claims, notes))


if __name__ == "__main__":
    main()
