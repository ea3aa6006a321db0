"""A LoRA step on the real Gemma 3 270M, 2 rows of 512 tokens, beside transformers with peft and the same weights.

    make real && .venv/bin/python benchmarks/finetuning.py [how many of the cases, 4 unless told]

Each contestant runs in a process of its own, in turns, and takes a few steps: forward, backward, AdamW. Weights are in
bfloat16, A and B in float32, rank 16 on all projections of the decoder. Memory is the process's largest resident size
during the steps, weights and libraries included, after loading has given back what it could.
"""

import ctypes
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from report import ROOT, Claim, write
from torch import Tensor

FILE = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
ROWS, LENGTH, RANK, ALPHA, RATE = 2, 512, 16, 32, 2e-4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROUNDS, STEPS = 3, 3
OURS, THEIRS = "gemlens", "transformers + peft"


@dataclass(frozen=True)
class Case:
    """What a step is made of.

    Args:
        what: for the table.
        scored: the last tokens of each row, which are learned.
        dropout: of LoRA.
        checkpointing: whether activations are computed again instead of kept.
    """

    what: str
    scored: int = LENGTH
    dropout: float = 0.05
    checkpointing: bool = False


CASES = (
    Case("all tokens learned"),
    Case("all tokens learned, without dropout", dropout=0.0),
    Case("the last 128 tokens of 512 learned", scored=128),
    Case("all tokens learned, gradient checkpointing", checkpointing=True),
)


def rows(case: Case) -> tuple[Tensor, Tensor]:
    """Ids and labels [2, 512]."""
    ids = torch.randint(3, 200_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH - case.scored] = -100
    return ids, labels


def ours(case: Case) -> tuple[Any, Callable[[], Tensor]]:
    """The model with its adapter, and what computes its loss."""
    from gemlens import AutoModelForCausalLM
    from gemlens.training.activations import keep_less
    from gemlens.training.lora import LoraSettings, add_lora
    from gemlens.training.objective import Objective

    model = AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)
    keep_less(model)
    add_lora(model, LoraSettings(rank=RANK, alpha=ALPHA, dropout=case.dropout))
    ids, labels = rows(case)
    objective = Objective(mean="token")
    return model, lambda: objective(model, {"input_ids": ids, "labels": labels}) / objective.weight(labels)


def theirs(case: Case) -> tuple[Any, Callable[[], Tensor]]:
    """The same of peft over transformers, with the attention that transformers recommends for training Gemma 3."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16, attn_implementation="eager"
    )
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=case.dropout, target_modules=PROJECTIONS)
    model = peft.get_peft_model(model, config)
    if case.checkpointing:
        model.enable_input_require_grads()
    ids, labels = rows(case)
    return model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss


def run(case: Case, make: Callable[[Case], tuple[Any, Callable[[], Tensor]]]) -> dict[str, float]:
    """Takes a step to warm up and then `STEPS`: seconds of one, largest resident size, loss of the first."""
    torch.manual_seed(0)
    model, loss_of = make(case)
    model.train()
    if case.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], RATE, fused=True)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the largest size is counted from here on
    seconds, losses = [], []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1e6  # kB
    return {"seconds": statistics.median(seconds[1:]), "gigabytes": peak, "loss": losses[0]}


def fresh(contestant: str, case: Case) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, contestant, json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def claims_of(case: Case) -> list[Claim]:
    """Time and memory, taken in turns."""
    figures: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
    for _ in range(ROUNDS):
        for contestant, found in figures.items():
            found.append(fresh(contestant, case))
        losses = [found[-1]["loss"] for found in figures.values()]
        # A new adapter changes nothing, so the first loss is the model's own.
        assert abs(losses[0] - losses[1]) < 0.01 * losses[1], f"the losses differ: {losses}"
    units = {"seconds": "s", "gigabytes": "GB"}
    return [
        Claim(case.what, unit, {name: [each[what] for each in found] for name, found in figures.items()})
        for what, unit in units.items()
    ]


def main(cases: int) -> None:
    import peft
    import transformers

    claims = [claim for case in CASES[:cases] for claim in claims_of(case)]
    notes = (
        f"{ROUNDS} rounds of {STEPS} steps after one to warm up; {ROWS} rows of {LENGTH} tokens, rank {RANK}, "
        f"bfloat16; transformers {transformers.__version__}, peft {peft.__version__}"
    )
    print(write("finetuning", "A LoRA step (Gemma 3 270M)", claims, notes))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if len(sys.argv) > 2:
        contestants = {OURS: ours, THEIRS: theirs}
        print(json.dumps(run(Case(**json.loads(sys.argv[2])), contestants[sys.argv[1]])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else len(CASES))
