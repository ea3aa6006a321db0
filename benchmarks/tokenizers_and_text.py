"""The real Gemma 3 tokenizer on this machine, beside the `tokenizers` library itself and transformers.

make real && .venv/bin/python benchmarks/tokenizers_and_text.py
"""

import time
import warnings
from collections.abc import Callable

import transformers
from report import ROOT, Claim, write
from tokenizers import Tokenizer

from gemlens import AutoTokenizer

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


def measure() -> list[Claim]:
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
    return [Claim(job, "ms", figures) for job, figures in results.items()]


def main() -> None:
    warnings.filterwarnings("ignore")
    notes = f"{ROUNDS} rounds; transformers {transformers.__version__}"
    print(write("tokenizers_and_text", "The tokenizer of Gemma 3", measure(), notes))


if __name__ == "__main__":
    main()
