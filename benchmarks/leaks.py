"""Loads and generations again and again: what the process holds must not grow.

    make real && .venv/bin/python benchmarks/leaks.py [--times 1000]

The real Gemma 3 270M Q4_K_M file with its tokenizer, a prompt and a few tokens each time; 1,000 take some ten minutes.
"""

import argparse
import gc

from peers import REAL
from report import Claim, write
from workers.protocol import memory

from gemlens import AutoModelForCausalLM, AutoTokenizer

FIRST = 10  # loads after which all that stays is there
MOST = 1.05  # times what was held then


def once(number: int) -> None:
    """Loads, asks and forgets."""
    file = {"pretrained_model_name_or_path": REAL.parent, "gguf_file": REAL.name}
    tokenizer = AutoTokenizer.from_pretrained(**file)
    model = AutoModelForCausalLM.from_pretrained(**file, quantize="stored")
    prompt = tokenizer(f"Number {number} is followed by", return_tensors="pt")
    tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])


def main() -> None:
    """Measures, prints and writes; fails where memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="at least 20")
    times = max(2 * FIRST, parser.parse_args().times)
    held = []
    for number in range(times):
        once(number)
        gc.collect()
        held.append(memory("VmRSS") / 1e6)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} of {times}: {held[-1]:.0f} MB", flush=True)
    before, after = max(held[:FIRST]), max(held[-FIRST:])
    figures = {f"the last of {times}": [after], f"the first {FIRST}": [before]}
    print(
        write(
            "leaks",
            "What a process holds after loads and generations",
            [Claim("held at most", "MB", figures)],
            "1 round",
        )
    )
    if after > MOST * before:
        raise SystemExit(f"After {times} loads {after:.0f} MB are held, after {FIRST} it were {before:.0f}.")


if __name__ == "__main__":
    main()
