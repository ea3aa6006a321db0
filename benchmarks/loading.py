"""Importing, opening and loading the real Gemma 3 270M, beside transformers and the gguf package.

make real && .venv/bin/python benchmarks/loading.py
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import gguf
import torch
import transformers
from report import ROOT, Claim, write

import gemlens
from gemlens.checkpoints.gguf import GGUFFile

FILE = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
ROUNDS = 7
ALONE = "import sys; sys.modules['torchao'] = None; "  # which transformers would import too, where it is installed


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def import_seconds(statement: str) -> float:
    """Wall time of a new Python that runs the statement, less that of one that does nothing."""

    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True))

    return run(statement) - run("pass")


def measure() -> list[Claim]:
    libraries = ("gemlens", "transformers")
    opens = {"gemlens": lambda: GGUFFile.open(FILE), "gguf package": lambda: gguf.GGUFReader(FILE)}
    load = gemlens.AutoModelForCausalLM.from_pretrained
    package: dict[str, list[float]] = {name: [] for name in libraries}
    model_class: dict[str, list[float]] = {name: [] for name in libraries}
    opening: dict[str, list[float]] = {name: [] for name in opens}
    loading: list[float] = []
    for _ in range(ROUNDS):
        for name in libraries:
            package[name].append(import_seconds(f"{ALONE}import {name}"))
            model_class[name].append(import_seconds(f"{ALONE}from {name} import Gemma3ForCausalLM"))
        for name, action in opens.items():
            opening[name].append(seconds(action))
        loading.append(seconds(lambda: load(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)))
    return [
        Claim("import the package", "s", package),
        Claim("import a model class", "s", model_class),
        Claim("open the GGUF file", "s", opening),
        Claim("load its weights as bfloat16", "s", {"gemlens": loading}),
    ]


def main() -> None:
    warnings.filterwarnings("ignore")
    notes = f"{ROUNDS} rounds; transformers {transformers.__version__}, gguf package 0.19.0"
    print(write("loading", "Importing and loading (Gemma 3 270M, Q4_K_M GGUF)", measure(), notes))


if __name__ == "__main__":
    main()
