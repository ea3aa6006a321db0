"""What libraries of torch models have in common, for workers/protocol.py; how a model is loaded is their own."""

import time
from typing import Any

import torch
from protocol import DRAWN
from torch import Tensor


class Moments:
    """A streamer that notes when something comes: the prompt, then each token."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def put(self, value: Tensor) -> None:
        self.found.append(time.perf_counter())

    def end(self) -> None:
        pass


class TorchLibrary:
    """Answers with `self.model`."""

    model: Any = None

    def run(self, rows: list[list[int]], new: int, draws: bool = False, pixels: int = 0) -> list[float]:
        """See protocol.Library; `pixels`: of a side of the picture that each row begins with, or 0."""
        ids, moments = torch.tensor(rows), Moments()
        pictures = {"pixel_values": torch.rand(len(rows), 3, pixels, pixels).to(self.model.dtype)} if pixels else {}
        self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=draws, eos_token_id=None,
            pad_token_id=0, streamer=moments, **pictures, **(DRAWN if draws else {}),
        )  # fmt: skip
        return moments.found[1:]  # the first is the prompt

    def judge(self, ids: list[int]) -> tuple[list[float], list[int]]:
        """See protocol.Library."""
        rows = torch.tensor([ids])
        with torch.inference_mode():
            logits = self.model(input_ids=rows).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, rows[0, 1:], reduction="none")
        return losses.tolist(), logits.argmax(-1).tolist()

    def encode(self, pixels: int) -> float:
        """Seconds; see protocol.py."""
        picture = torch.rand(1, 3, pixels, pixels).to(self.model.dtype)
        began = time.perf_counter()
        with torch.inference_mode():
            self.model(picture)
        return time.perf_counter() - began
