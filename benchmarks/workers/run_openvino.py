"""OpenVINO GenAI, for workers/protocol.py."""

import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import DRAWN, serve

THREADS = 2


class Moments(genai.StreamerBase):
    """Notes when tokens come."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        self.found += [time.perf_counter()] * (len(token) if isinstance(token, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVino:
    """A folder of OpenVINO's representation."""

    model: Any = None

    def load(self, path: str, **settings: Any) -> None:
        self.model = None
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        self.model = genai.LLMPipeline(
            path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=THREADS, **settings
        )

    def run(self, rows: list[list[int]], new: int, draws: bool = False) -> list[float]:
        ids, moments = np.array(rows, np.int64), Moments()
        config = genai.GenerationConfig(
            max_new_tokens=new, ignore_eos=True, do_sample=draws, **(DRAWN if draws else {})
        )
        given = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        self.model.generate(given, config, moments)
        return moments.found

    def judge(self, ids: list[int]) -> tuple[list[float], list[int]]:
        raise NotImplementedError("Its pipeline gives no logits.")


serve(OpenVino())
