"""The CPU engine on the real Gemma 3 270M, beside llama.cpp, OpenVINO and transformers: all in turns, in one run.

    make real && .venv/bin/python benchmarks/peers.py && .venv/bin/python benchmarks/cpu_engine.py [PART ...]

Each library is a process of its own on two threads, see workers/; llama.cpp and gemlens read the same file, OpenVINO
has its weights in eight bits, transformers in bfloat16. Prompts are parts of a real text, another one in each round.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from typing import Any

import torch
from peers import BFLOAT16, OPENVINO, PALIGEMMA, PALIGEMMA_3B, PYTHON, REAL, SHAPES, SIGLIP_896, WEIGHTS
from report import FOLDER, Claim, write

from gemlens import AutoTokenizer, SiglipVisionModel
from gemlens.kernels.machine import machine

ROUNDS = 5
THREADS = 2
LENGTHS, NEW = (32, 128, 512, 1024, 2048, 4096), 33
PREFILL = 1024
BATCHES = (1, 2, 4, 8, 16)
MEGABYTE = 1e6


@dataclass(frozen=True)
class Kind:
    """A library and what it loads.

    Args:
        script: in workers/.
        settings: of `load`.
        python: runs it.
        threads: that are asked for.
    """

    script: str
    settings: Mapping[str, Any]
    python: Path = PYTHON
    threads: int = THREADS


def gemlens(path: Path, **settings: Any) -> Kind:
    """This checkout, with weights as the file has them."""
    return Kind("run_gemlens.py", {"path": str(path), "quantize": "stored", **settings}, Path(sys.executable))


def llama(path: Path, **settings: Any) -> Kind:
    """llama.cpp, with room for the longest prompt."""
    return Kind("run_llama.py", {"path": str(path), "n_ctx": LENGTHS[-1] + NEW, **settings})


KINDS = {
    "gemlens": gemlens(REAL),
    "llama.cpp": llama(REAL),
    "OpenVINO int8": Kind("run_openvino.py", {"path": str(OPENVINO)}),
    "transformers bf16": Kind("run_transformers.py", {"path": str(BFLOAT16)}),
}


class Worker:
    """A library's process; see workers/protocol.py."""

    def __init__(self, kind: Kind) -> None:
        script = Path(__file__).with_name("workers") / kind.script
        threads = str(kind.threads)
        environment = {"OMP_NUM_THREADS": threads, "GEMLENS_THREADS": threads, "PATH": "/usr/bin:/bin"}
        self.settings = kind.settings
        self.process = subprocess.Popen(
            [kind.python, "-W", "ignore", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

    def ask(self, action: str, **question: Any) -> Any:
        """The answer to a question."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": action, **question}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def load(self) -> float:
        """Seconds."""
        return float(self.ask("load", **self.settings))


@contextmanager
def workers(kinds: Mapping[str, Kind]) -> Iterator[dict[str, Worker]]:
    """Processes that have not loaded anything yet."""
    found = {name: Worker(kind) for name, kind in kinds.items()}
    try:
        yield found
    finally:
        for worker in found.values():
            worker.process.kill()
            worker.process.wait()


@dataclass(frozen=True)
class Text:
    """Prompts of a real text.

    Args:
        ids: of all of it; the first begins every prompt.
    """

    ids: list[int]

    @classmethod
    def read(cls) -> "Text":
        """The reference of Python's language."""
        tokenizer = AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
        return cls(tokenizer("\n\n".join(topics[name] for name in sorted(topics))).input_ids)

    def prompt(self, length: int, number: int) -> list[int]:
        """Another one for every number."""
        begin = 1 + number * 5003 % (len(self.ids) - length)
        return [self.ids[0], *self.ids[begin : begin + length - 1]]


def rate(moments: list[float]) -> float:
    """Tokens a second, after the first."""
    return (len(moments) - 1) / (moments[-1] - moments[0])


def beginnings(text: Text) -> list[Claim]:
    """Load and memory, in fresh processes; of gemlens with the tokenizer, which llama.cpp has too, and without."""
    kinds = {
        "gemlens, with tokenizer": KINDS["gemlens"],
        "gemlens, model only": gemlens(REAL, tokenizer=False),
        **KINDS,
    }
    del kinds["gemlens"]
    load: dict[str, list[float]] = {name: [] for name in kinds}
    room: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(ROUNDS):
        # Each is the first once and comes after each other: memory that one before has just given back is there sooner
        # than other. Any step leads to all, as five is a prime.
        names, step = [*kinds], number % (len(kinds) - 1) + 1
        for name in (names[(number + i * step) % len(names)] for i in range(len(names))):
            with workers({name: kinds[name]}) as running:
                load[name].append(running[name].load())
                running[name].ask("run", rows=[text.prompt(PREFILL, number)], new=NEW)
                bare, _, most = running[name].ask("memory")
                room[name].append((most - bare) / MEGABYTE)
    return [
        Claim("load", "s", load),
        Claim(f"peak memory of a prompt of {PREFILL} and {NEW} tokens, over the process with its imports", "MB", room),
    ]


def answers(text: Text) -> list[Claim]:
    """Prefill and decode by length."""
    decode, prefill = ({length: {name: [] for name in KINDS} for length in LENGTHS} for _ in "dp")
    with workers(KINDS) as running:
        for worker in running.values():
            worker.load()
            worker.ask("run", rows=[text.prompt(PREFILL, ROUNDS)], new=NEW)
        for number in range(ROUNDS):
            for length in LENGTHS:
                prompt = text.prompt(length, number)
                for name, worker in running.items():
                    moments = worker.ask("run", rows=[prompt], new=NEW)
                    decode[length][name].append(rate(moments))
                    prefill[length][name].append(length / moments[0])
            print(f"round {number + 1} of {ROUNDS}", flush=True)
    return [
        *(Claim(f"decode after {length} tokens", "tokens/s", decode[length], True) for length in LENGTHS),
        *(Claim(f"prefill of {length} tokens", "tokens/s", prefill[length], True) for length in LENGTHS),
    ]


def batches(text: Text) -> list[Claim]:
    """All rows together, beside one row."""
    figures: dict[str, list[float]] = {f"{count} rows": [] for count in sorted(BATCHES, reverse=True)}
    theirs: dict[str, list[float]] = {name: [] for name in figures}
    with workers({name: KINDS[name] for name in ("gemlens", "transformers bf16")}) as running:
        for worker in running.values():
            worker.load()
            worker.ask("run", rows=[text.prompt(64, 0)] * 16, new=4)
        for number in range(ROUNDS):
            for count in BATCHES:
                rows = [text.prompt(128, number * 16 + row) for row in range(count)]
                for found, worker in zip((figures, theirs), running.values(), strict=True):
                    found[f"{count} rows"].append(count * rate(worker.ask("run", rows=rows, new=NEW)))
    return [
        Claim(f"decode of {name} at once, all together", "tokens/s",
              {"gemlens": figures[name], "transformers bf16": theirs[name], "gemlens, 1 row": figures["1 rows"]}, True)
        for name in figures
    ]  # fmt: skip


def in_turns(
    kinds: Mapping[str, Kind], text: Text, length: int, decode: dict[str, list[float]], prefill: dict[str, list[float]],
    draws: bool = False,
) -> Iterator[int]:  # fmt: skip
    """Rounds, each after all kinds were asked; their tokens per second are added to `decode` and `prefill`."""
    with workers(kinds) as running:
        for worker in running.values():
            worker.load()
            worker.ask("run", rows=[text.prompt(64, 0)], new=4)
        for number in range(ROUNDS):
            for name, worker in running.items():
                moments = worker.ask("run", rows=[text.prompt(length, number)], new=NEW, draws=draws)
                decode[name].append(rate(moments))
                prefill[name].append(length / moments[0])
            yield number


def side_by_side(kinds: Mapping[str, Kind], text: Text, length: int, what: str, draws: bool = False) -> list[Claim]:
    """Decode and prefill of one length; the first kind is ours."""
    decode, prefill = ({name: [] for name in kinds} for _ in "dp")
    for _ in in_turns(kinds, text, length, decode, prefill, draws):
        pass
    return [
        Claim(f"decode after {length} tokens, {what}", "tokens/s", decode, True),
        Claim(f"prefill of {length} tokens, {what}", "tokens/s", prefill, True),
    ]


def threads(text: Text) -> list[Claim]:
    """More threads than cores asked for, beside as many."""
    kinds = {f"gemlens, {count} threads": replace(KINDS["gemlens"], threads=count) for count in (4 * THREADS, THREADS)}
    return side_by_side(kinds, text, PREFILL, "more threads than cores asked for")


def sixteen(text: Text) -> list[Claim]:
    """Activations in sixteen bits, beside eight and the other libraries."""
    what = "activations in sixteen bits"
    return side_by_side({f"gemlens, {what}": gemlens(REAL, activation_bits=16), **KINDS}, text, PREFILL, what)


def drawn(text: Text) -> list[Claim]:
    """Tokens that are drawn, with the settings of Gemma 3's checkpoints, instead of the likeliest ones."""
    return side_by_side(KINDS, text, 128, "drawn with top_k=64 and top_p=0.95", True)[:1]


def caches(text: Text) -> list[Claim]:
    """Keys and values in eight bits, beside bfloat16."""
    kinds = {"gemlens, eight bits": gemlens(REAL, cache="quantized"), "gemlens, bfloat16": KINDS["gemlens"]}
    return side_by_side(kinds, text, LENGTHS[-1], "by what keys and values are kept in")


def large(text: Text) -> list[Claim]:
    """Larger shapes, with numbers by chance."""
    claims = []
    for shape in SHAPES:
        path = WEIGHTS / f"{shape}-q4_0.gguf"
        kinds = {"gemlens": gemlens(path), "llama.cpp": llama(path)}
        decode: dict[str, list[float]] = {name: [] for name in [*kinds, "reading all weights"]}
        prefill: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in in_turns(kinds, text, 128, decode, prefill):
            decode["reading all weights"].append(bandwidth() / path.stat().st_size)
        claims.append(Claim(f"{shape} in Q4_0, decode after 128 tokens", "tokens/s", decode, True))
        claims.append(Claim(f"{shape} in Q4_0, prefill of 128 tokens", "tokens/s", prefill, True))
    return claims


def pictures(text: Text) -> list[Claim]:
    """One picture and 20 tokens of PaliGemma 3B's shape, from the call to the last token."""
    pixels, tokens = PALIGEMMA["vision_config"]["image_size"], 256
    kinds = of_folder("pictures", PALIGEMMA_3B, {"gemlens q8": {"quantize": "q8"}})
    figures: dict[str, list[float]] = {name: [] for name in kinds}
    with workers(kinds) as running:
        for worker in running.values():
            worker.load()
        for number in range(ROUNDS + 1):
            prompt = [PALIGEMMA["image_token_index"]] * tokens + text.prompt(8, number)
            for name, worker in running.items():
                figures[name].append(worker.ask("run", rows=[prompt], new=20, pixels=pixels)[-1])
    rounds = {name: values[1:] for name, values in figures.items()}  # the first warms up
    return [Claim("PaliGemma 3B's shape, a picture of 224 pixels, 8 tokens and 20 new ones", "s", rounds)]


def encoders(text: Text) -> list[Claim]:
    """The picture encoder alone, So400m at 896 pixels; and where its features point in eight bits."""
    kinds = of_folder("encoder", SIGLIP_896, {"gemlens bf16": {"dtype": "bfloat16"}, "gemlens q8": {"quantize": "q8"}})
    figures: dict[str, list[float]] = {name: [] for name in kinds}
    with workers(kinds) as running:
        for worker in running.values():
            worker.load()
        for _ in range(ROUNDS):
            for name, worker in running.items():
                figures[name].append(worker.ask("encode", pixels=896))
    picture = torch.rand(1, 3, 896, 896) * 2 - 1
    with torch.inference_mode():
        exact, rounded = (
            SiglipVisionModel.from_pretrained(SIGLIP_896, quantize=quantize)(picture).last_hidden_state
            for quantize in (None, "q8")
        )
    away = 1 - torch.nn.functional.cosine_similarity(exact.double(), rounded.double(), dim=-1)
    found = {"mean of 4,096 patches": [float(away.mean())], "greatest": [float(away.max())]}
    distance = Claim("So400m at 896 pixels, 1 - cosine of features in eight bits and in float32", "", found)
    halves = {name: values for name, values in figures.items() if name != "gemlens q8"}
    eights = {name: values for name, values in figures.items() if name != "gemlens bf16"}
    what = "So400m at 896 pixels, in {}"
    return [Claim(what.format("bfloat16"), "s", halves), Claim(what.format("eight bits"), "s", eights), distance]


def of_folder(kind: str, path: Path, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Kind]:
    """gemlens with these settings, and transformers, with one folder."""
    ours = {name: {"path": str(path), "kind": kind, **said} for name, said in settings.items()}
    theirs = {"path": str(path), "kind": kind}
    return {
        **{name: Kind("run_gemlens.py", said, Path(sys.executable)) for name, said in ours.items()},
        "transformers bf16": Kind("run_transformers.py", theirs),
    }


def bandwidth() -> float:
    """Bytes a second that two threads read: the best of a few sums of a gigabyte."""
    room = torch.ones(2**28)
    return room.nbytes / min(seconds(room.sum) for _ in range(4))


def product_rate() -> float:
    """Operations a second of torch's products of eight-bit numbers: the best of a few."""
    left, right = (torch.randint(-99, 99, (2048, 2048), dtype=torch.int8) for _ in "lr")
    return 2 * 2048**3 / min(seconds(lambda: torch._int_mm(left, right)) for _ in range(6))


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def lines(claims: list[Claim], path: Path) -> None:
    """Decode and prefill against length, and the roofline of gemlens: what it reaches of the machine's two limits."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = {claim.what: claim.figures for claim in claims}
    figure, (*curves, roof) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    for axes, what in zip(curves, ("decode after {} tokens", "prefill of {} tokens"), strict=True):
        for name in KINDS:
            middles = [statistics.median(found[what.format(length)][name]) for length in LENGTHS]
            axes.plot(LENGTHS, middles, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel="tokens/s", title=what.format("N"))
        axes.legend(fontsize=8)
    read, products, size = bandwidth(), product_rate(), REAL.stat().st_size
    weights = 268e6 * 2  # operations of a token with its head
    points = {f"decode, {count}": (count, found[f"decode of {count} rows at once, all together"]) for count in BATCHES}
    points |= {f"prefill, {length}": (length, found[f"prefill of {length} tokens"]) for length in LENGTHS}
    intensity = [10**power for power in (0, 1, 2, 3, 4)]
    roof.plot(intensity, [min(read * each, products) / 1e9 for each in intensity], color="black")
    for label, (tokens, figures) in points.items():
        each = weights if "decode" in label else 2 * 100e6  # only the last token of a prompt goes through the head
        place = tokens * each / size, statistics.median(figures["gemlens"]) * each / 1e9
        roof.plot(*place, marker="o", color="#3b6ea5")
        roof.annotate(label, place, fontsize=7)
    title = f"roofline: {read / 1e9:.0f} GB/s read, {products / 1e9:.0f} GOP/s of eight bits"
    roof.set(xscale="log", yscale="log", xlabel="operations per byte of the file", ylabel="GOP/s", title=title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


PARTS: dict[str, Callable[[Text], list[Claim]]] = {
    "answers": answers, "drawn": drawn, "batches": batches, "threads": threads, "sixteen": sixteen, "caches": caches,
    "large": large, "pictures": pictures, "encoders": encoders, "beginnings": beginnings,
}  # fmt: skip


def main() -> None:
    """Measures and writes, under the names of the parts where these are not all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all")
    asked = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(THREADS)
    text = Text.read()
    claims = [claim for part in asked for claim in PARTS[part](text)]
    for claim in claims:
        middle = {name: f"{statistics.median(values):.4g}" for name, values in claim.figures.items()}
        print(claim.what, claim.unit, middle, flush=True)
    kernels = machine().kernels
    kind = "-".join(["", kernels, *(asked if len(asked) < len(PARTS) else [])])
    print(write("cpu_engine", "The CPU engine beside its peers", claims, f"{kernels} kernels, {ROUNDS} rounds", kind))
    if len(asked) == len(PARTS):
        lines(claims, FOLDER / f"{datetime.date.today()}-cpu_engine-{kernels}-lines.png")


if __name__ == "__main__":
    main()
