"""A library in a process of its own, in its own environment: each line of JSON on stdin is a question, answered by one.

    {"do": "load", "path": ...}         seconds; there may be settings of the library too
    {"do": "run", "rows": [[id, ...], ...], "new": n}   seconds from the call until each of n tokens of all rows; with
                                        "draws": true they are drawn
    {"do": "judge", "ids": [id, ...]}   of each token but the first: its negative log-likelihood, and the likeliest one
    {"do": "encode", "pixels": n}       seconds that a picture encoder takes for n x n pixels by chance
    {"do": "memory"}                    bytes: that the process began with, has now, and had at most

While another library is asked, this one waits for its line and takes no time.
"""

import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Protocol

DRAWN = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}  # as Gemma 3's checkpoints ask for


class Library(Protocol):
    """What is asked of one."""

    def load(self, path: str, **settings: Any) -> None:
        """Holds the model of a path, and nothing else any more."""

    def run(self, rows: list[list[int]], new: int, draws: bool = False) -> list[float]:
        """Continues rows of one length greedily, or as DRAWN says, never ending early: time.perf_counter() at each."""

    def encode(self, pixels: int) -> float:
        """Seconds that a picture encoder takes for a picture by chance."""

    def judge(self, ids: list[int]) -> tuple[list[float], list[int]]:
        """Of the second token and all after it: its negative log-likelihood, and which token was the likeliest."""


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def serve(library: Library) -> None:
    """Answers until stdin ends. What a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bare = memory("VmRSS")
    for line in sys.stdin:
        question = json.loads(line)
        action = question.pop("do")
        gc.collect()  # of what was imported or done before, or whoever comes next would do it
        began = time.perf_counter()
        if action == "load":
            library.load(**question)
            answer: Any = time.perf_counter() - began
        elif action == "run":
            answer = [moment - began for moment in library.run(**question)]
        elif action == "judge":
            answer = library.judge(**question)
        elif action == "encode":
            answer = library.encode(**question)
        elif action == "memory":
            answer = [bare, memory("VmRSS"), memory("VmHWM")]
        else:
            raise ValueError(action)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
