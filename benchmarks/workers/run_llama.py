"""llama.cpp by llama-cpp-python, for workers/protocol.py."""

import time
from typing import Any

import numpy as np
from llama_cpp import Llama
from protocol import DRAWN, serve

THREADS = 2


class LlamaCpp:
    """A GGUF file."""

    model: Any = None

    def load(self, path: str, **settings: Any) -> None:
        self.model = None
        self.model = Llama(path, n_threads=THREADS, n_threads_batch=THREADS, verbose=False, **settings)

    def run(self, rows: list[list[int]], new: int, draws: bool = False) -> list[float]:
        (ids,) = rows
        self.model.reset()
        found = []
        drawn = {"temp": DRAWN["temperature"], "top_k": DRAWN["top_k"], "top_p": DRAWN["top_p"], "min_p": 0.0}
        for _ in self.model.generate(ids, **(drawn if draws else {"temp": 0.0})):
            found.append(time.perf_counter())
            if len(found) == new:
                break
        return found

    def judge(self, ids: list[int]) -> tuple[list[float], list[int]]:
        """The model must have been loaded with logits_all."""
        self.model.reset()
        self.model.eval(ids)
        logits = self.model.scores[: len(ids) - 1]
        greatest = logits.max(-1, keepdims=True)
        totals = np.log(np.exp(logits - greatest).sum(-1)) + greatest[:, 0]
        return (totals - logits[np.arange(len(ids) - 1), ids[1:]]).tolist(), logits.argmax(-1).tolist()


serve(LlamaCpp())
