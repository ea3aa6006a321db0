"""The real Gemma 3 tokenizer on this machine, beside the `tokenizers` library itself and transformers.

    make real && .venv/bin/python benchmarks/tokenizers_and_text.py

All run in turns, so that a drift of the machine hits all. Figures are medians over the rounds, with the least and the
greatest; a ratio is taken round by round. The result goes to benchmarks/results/, with date, commit and machine.
"""

import datetime
import json
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import transformers
from gemma3_270m import processor
from tokenizers import Tokenizer

from gemlens import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / "real"
FOLDER = REAL / "tokenizers" / "gemma3"
GGUF = "gemma-3-270m-q4_k_m.gguf"
ROUNDS = 15
TEXT_BYTES = 100_000


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def texts() -> dict[str, str]:
    """100 KB of English prose and of Python."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    return {"prose": ((ROOT / "LICENSE").read_text() * 10)[:TEXT_BYTES], "code": code[:TEXT_BYTES]}


def measure() -> dict[str, dict[str, list[float]]]:
    file = str(FOLDER / "tokenizer.json")
    ours, library = AutoTokenizer.from_pretrained(FOLDER), Tokenizer.from_file(file)
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    jobs: dict[str, dict[str, Callable[[], object]]] = {
        "load tokenizer.json": {
            "gemlens": lambda: AutoTokenizer.from_pretrained(FOLDER),
            "tokenizers": lambda: Tokenizer.from_file(file),
        },
        "load the vocabulary of the GGUF file": {
            "gemlens": lambda: AutoTokenizer.from_pretrained(REAL, gguf_file=GGUF)
        },
    }
    for name, text in texts().items():
        jobs[f"encode 100 KB of {name}"] = {
            "gemlens": lambda text=text: ours(text),
            "tokenizers": lambda text=text: library.encode(text).ids,
            "transformers": lambda text=text: theirs(text),
        }
        ids = library.encode(text).ids
        jobs[f"decode 100 KB of {name}"] = {
            "gemlens": lambda ids=ids: ours.decode(ids),
            "tokenizers": lambda ids=ids: library.decode(ids),
            "transformers": lambda ids=ids: theirs.decode(ids),
        }
    results = {job: {name: [] for name in actions} for job, actions in jobs.items()}
    for _ in range(ROUNDS):
        for job, actions in jobs.items():
            if not job.startswith("load"):
                for action in actions.values():  # else the first would find the caches as loading left them
                    action()
            for name, action in actions.items():
                results[job][name].append(milliseconds(action))
    return results


def table(results: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| what | library | median | least | greatest | it / gemlens, median |", "|---|---|---|---|---|---|"]
    for job, figures in results.items():
        for name, values in figures.items():
            ratios = [other / ours for ours, other in zip(figures["gemlens"], values, strict=True)]
            numbers = [f"{number:.3g} ms" for number in (statistics.median(values), min(values), max(values))]
            lines.append(f"| {job} | {name} | {' | '.join(numbers)} | {statistics.median(ratios):.3g} |")
    return lines


def main() -> None:
    warnings.filterwarnings("ignore")
    results = measure()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    today = datetime.date.today().isoformat()
    lines = [
        "# The tokenizer of Gemma 3", "", f"{today}, commit {commit.strip()}, {processor()}; {ROUNDS} rounds.",
        "Made by `make real && .venv/bin/python benchmarks/tokenizers_and_text.py`.", "", *table(results),
    ]  # fmt: skip
    name = f"{today}-tokenizers_and_text"
    folder = ROOT / "benchmarks" / "results"
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
