"""What eight bits of activations and blocks of weights cost: on 20,000 tokens of a real text, beside exact float32.

    make real && .venv/bin/python benchmarks/peers.py && .venv/bin/python benchmarks/quality.py [--quick | --head]

The real Gemma 3 270M Q4_K_M file: its blocks as exact float32 numbers are the truth, gemlens with quantize="stored" and
llama.cpp compute with the blocks. In every row of 1,024 tokens each token but the first is predicted from those before.
gemlens reads a row at once, when it attends to keys and values as they are, and piece by piece, when it sees of earlier
pieces what caches hold.
The screened head is held against the full one for every token, for the largest logit, of eight tokens at once, too,
and for the 64 largest, and so are these as they are found without a screen. Where the difference comes from is told by
exact models of which some products have activations in eight bits.
"""

import argparse
import datetime
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cpu_engine import Text, gemlens, llama, workers
from peers import REAL
from report import FOLDER, commit, machine
from torch import Tensor

from gemlens import AutoModelForCausalLM, AutoTokenizer, DynamicCache, QuantizedCache
from gemlens.checkpoints.gguf_export import export_gguf
from gemlens.kernels.reference import in_bits
from gemlens.kernels.tiles import best, largest
from gemlens.processing.text.gguf_vocabulary import gguf_vocabulary

ROWS, LENGTH = 20, 1024
SIXTEEN = "gemlens, activations in sixteen bits"
PIECE = 128  # tokens that are read together, where they are to see what a cache holds of those before
HELD: dict[str, type[DynamicCache]] = {
    "piece by piece, kept in bfloat16": DynamicCache,
    "piece by piece, kept in eight bits": QuantizedCache,
}
PARTS: dict[str, tuple[str, ...]] = {
    "head": ("lm_head",), "q, k, v": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj"), "down": ("down_proj",), "all": ("lm_head", "_proj"),
}  # fmt: skip
PART_ROWS = 2  # of the text, for each of these


def load(**settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(REAL.parent, gguf_file=REAL.name, **settings).eval()


def written(text: Text) -> dict[str, float]:
    """Files that gemlens writes, judged by itself and by llama.cpp, on one row."""
    model = load(dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    vocabulary = gguf_vocabulary(tokenizer, model.config.vocab_size)
    shares = {}
    for kind in ("q8", "q4"):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            export_gguf(model, vocabulary, path, kind)
            kinds = {"gemlens": gemlens(path, tokenizer=False), "llama.cpp": llama(path, n_ctx=LENGTH, logits_all=True)}
            with workers(kinds) as running:
                for worker in running.values():
                    worker.load()
                told = [worker.ask("judge", ids=text.prompt(LENGTH, 0)) for worker in running.values()]
        (mine, ours), (its, theirs) = told
        more = math.exp((sum(its) - sum(mine)) / len(its)) - 1
        shares[f"{kind}: perplexity in llama.cpp, % above that here"] = 100 * more
        shares[f"{kind}: the same first choice, %"] = 100 * sum(map(int.__eq__, ours, theirs)) / len(ours)
    return shares


def judged(logits: Tensor, ids: Tensor) -> tuple[list[float], list[int]]:
    """As workers/protocol.py says, of logits [S, V]."""
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return losses.tolist(), logits[:-1].argmax(-1).tolist()


def piece_by_piece(model: Any, ids: Tensor, cache: DynamicCache) -> Tensor:
    """Logits [S, V] of ids [S], of which `PIECE` at a time follow what is in the cache."""
    parts = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(PIECE)]
    return torch.cat(parts)


def differing(head: Any, hidden: Tensor, logits: Tensor) -> int:
    """How often the screened head gives anything but the largest of the full one's logits."""
    wrong = 0
    for state, full in zip(hidden, logits, strict=True):
        most = full.topk(64).values
        for kept, screens in ((1, True), (64, True), (64, False)):
            found = largest(state, head.tiles, kept, screens).products
            wrong += not torch.equal(found, full.where(full >= most[kept - 1], -torch.inf))
    for count in (1, 8):
        for states, full in zip(hidden.split(count), logits.split(count), strict=True):
            found = best(states, head.tiles)
            wrong += int(((found.rows != full.argmax(-1)) | (found.products != full.amax(-1))).sum())
    return wrong


@torch.inference_mode()
def heads_that_differ(rows: list[list[int]]) -> int:
    """See `differing`; of all rows."""
    model, wrong = load(quantize="stored"), 0
    for number, row in enumerate(rows):
        hidden = model.model(torch.tensor([row])).last_hidden_state[0]
        wrong += differing(model.lm_head, hidden, model.lm_head(hidden))
        print(f"row {number + 1} of {ROWS}: {wrong} screened heads differ", flush=True)
    return wrong


def with_parts_in_eight_bits(exact: Any, rows: list[list[int]]) -> dict[str, float]:
    """How often an exact model's first choice stays when inputs of some products are in eight bits, in percent."""

    def choices() -> Tensor:
        return torch.cat([exact(torch.tensor([row])).logits[0].argmax(-1) for row in rows])

    wanted, shares = choices(), {}
    for part, ends in PARTS.items():
        leaves = [module for name, module in exact.named_modules() if any(end in name for end in ends)]
        hooks = [leaf.register_forward_pre_hook(lambda _, given: (in_bits(given[0], 8),)) for leaf in leaves]
        shares[part] = 100 * float((choices() == wanted).float().mean())
        for hook in hooks:
            hook.remove()
    return shares


def qualities(text: Text, rows: list[list[int]]) -> dict[str, Any]:
    """Perplexities and first choices of all rows, what is lost by which products, and the files that gemlens writes."""
    stored, exact = load(quantize="stored"), load(dtype=torch.float32)
    fine = load(quantize="stored", activation_bits=16)
    names = ["exact float32", "llama.cpp"]
    names += [name + held for name in ("gemlens", SIXTEEN) for held in ("", *(f", {how}" for how in HELD))]
    told: dict[str, list[tuple[list[float], list[int]]]] = {name: [] for name in names}
    kinds = {"llama.cpp": llama(REAL, n_ctx=LENGTH, logits_all=True)}
    with torch.inference_mode(), workers(kinds) as running:
        running["llama.cpp"].load()
        for number, row in enumerate(rows):
            ids = torch.tensor(row)
            for name, model in (("exact float32", exact), ("gemlens", stored), (SIXTEEN, fine)):
                told[name].append(judged(model(ids[None]).logits[0], ids))
            for name, model in (("gemlens", stored), (SIXTEEN, fine)):
                for how, cache in HELD.items():
                    told[f"{name}, {how}"].append(judged(piece_by_piece(model, ids, cache(model.config)), ids))
            told["llama.cpp"].append(tuple(running["llama.cpp"].ask("judge", ids=row)))
            same = sum(map(int.__eq__, told["gemlens"][number][1], told["exact float32"][number][1]))
            print(f"row {number + 1} of {ROWS}: {same} of {LENGTH - 1} first choices", flush=True)
    likeliest = {name: [token for _, tokens in each for token in tokens] for name, each in told.items()}
    mean = {name: sum(sum(losses) for losses, _ in each) / len(likeliest[name]) for name, each in told.items()}
    figures = {
        name: {
            "perplexity": math.exp(mean[name]),
            "perplexity above exact, %": 100 * (math.exp(mean[name] - mean["exact float32"]) - 1),
            "same first choice, %": 100 * sum(map(int.__eq__, tokens, likeliest["exact float32"])) / len(tokens),
        }
        for name, tokens in likeliest.items()
    }
    with torch.inference_mode():
        kept = with_parts_in_eight_bits(exact, rows[:PART_ROWS])
    return {
        "tokens": len(likeliest["gemlens"]),
        "figures": figures,
        "the same first choice with activations in eight bits of, %": kept,
        "files of gemlens": written(text),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="leave out the screened head, which takes 15 minutes")
    group.add_argument("--head", action="store_true", help="nothing but the screened head")
    asked = parser.parse_args()
    text = Text.read()
    rows = [text.prompt(LENGTH, number) for number in range(ROWS)]
    today = datetime.date.today().isoformat()
    about = {"date": today, "commit": commit(), "machine": machine()}
    results = {} if asked.head else {"quality": qualities(text, rows)}
    if not asked.quick:
        results["quality-screened-head"] = {"tokens": ROWS * LENGTH, "screened head differs": heads_that_differ(rows)}
    for name, result in results.items():
        print(json.dumps(result, indent=1))
        path = FOLDER / f"{today}-{name}.json"
        path.write_text(json.dumps({**about, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
