"""Loading and running the real Gemma 3 270M on this machine, beside transformers with the same weights.

    make real && .venv/bin/python benchmarks/gemma3_270m.py

Both libraries run in turns, A B A B, so that a drift of the machine hits both. Figures are medians over the rounds,
with the least and the greatest; a ratio is taken round by round. The result goes to benchmarks/results/, with date,
commit and machine.
"""

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
import transformers
from torch import Tensor

import gemlens
from gemlens.checkpoints.gguf import GGUFFile

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
ROUNDS, PREFILL, DECODE = 7, 512, 32
Figures = dict[str, list[float]]


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def import_seconds(statement: str) -> float:
    """Wall time of a new Python that runs the statement, less that of one that does nothing."""

    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True))

    return run(statement) - run("pass")


def decode(model: torch.nn.Module, ids: Tensor) -> Callable[[], None]:
    """DECODE steps of one token each after the prompt, which is read outside the measurement."""
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def steps() -> None:
        nonlocal cache
        for _ in range(DECODE):
            cache = model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    return steps


def measure() -> dict[str, tuple[Figures, str]]:
    """Claim -> (figures per library, unit)."""
    imports = {"gemlens": "import gemlens", "transformers": "import transformers"}
    classes = {name: f"from {name} import Gemma3ForCausalLM" for name in imports}
    opens = {"gemlens": lambda: GGUFFile.open(FILE), "gguf package": lambda: gguf.GGUFReader(FILE)}
    load = gemlens.AutoModelForCausalLM.from_pretrained
    ours = load(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)
    config = transformers.Gemma3TextConfig(**ours.config.to_dict())
    theirs = transformers.Gemma3ForCausalLM(config).to(torch.bfloat16).eval()
    theirs.load_state_dict(ours.state_dict())
    models = {"gemlens": ours, "transformers": theirs}
    ids = torch.randint(3, 200_000, (1, PREFILL), generator=torch.Generator().manual_seed(0))

    results: dict[str, tuple[Figures, str]] = {
        "import the package": ({name: [] for name in imports}, "s"),
        "import a model class": ({name: [] for name in classes}, "s"),
        "open the GGUF file": ({name: [] for name in opens}, "s"),
        "load its weights as bfloat16": ({"gemlens": []}, "s"),
        f"prefill {PREFILL} tokens, bfloat16": ({name: [] for name in models}, "tokens/s"),
        f"decode {DECODE} tokens after {PREFILL}, bfloat16": ({name: [] for name in models}, "tokens/s"),
    }
    package, model_class, opening, loading, prefilling, decoding = (figures for figures, _ in results.values())
    for _ in range(ROUNDS):
        for name in imports:
            package[name].append(import_seconds(imports[name]))
            model_class[name].append(import_seconds(classes[name]))
        for name, action in opens.items():
            opening[name].append(seconds(action))
        loading["gemlens"].append(seconds(lambda: load(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)))
        with torch.inference_mode():
            for name, model in models.items():
                prefilling[name].append(PREFILL / seconds(lambda: model(input_ids=ids, logits_to_keep=1)))  # noqa: B023
                decoding[name].append(DECODE / seconds(decode(model, ids)))
    return results


def table(results: dict[str, tuple[Figures, str]]) -> list[str]:
    lines = ["| what | library | median | least | greatest | gemlens / it, median |", "|---|---|---|---|---|---|"]
    for what, (figures, unit) in results.items():
        for name, values in figures.items():
            ratios = [ours / other for ours, other in zip(figures["gemlens"], values, strict=True)]
            numbers = [f"{number:.3g} {unit}" for number in (statistics.median(values), min(values), max(values))]
            lines.append(f"| {what} | {name} | {' | '.join(numbers)} | {statistics.median(ratios):.3g} |")
    return lines


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    warnings.filterwarnings("ignore")
    results = measure()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    today = datetime.date.today().isoformat()
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        "# Gemma 3 270M (Q4_K_M GGUF)", "", f"{today}, commit {commit.strip()}, {machine}; {ROUNDS} rounds;",
        f"transformers {transformers.__version__}, gguf package 0.19.0.",
        "Made by `make real && .venv/bin/python benchmarks/gemma3_270m.py`.", "", *table(results),
    ]  # fmt: skip
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{today}-gemma3_270m.md").write_text("\n".join(lines) + "\n")
    raw = {what: figures for what, (figures, _) in results.items()}
    (folder / f"{today}-gemma3_270m.json").write_text(json.dumps(raw, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
