"""How a training shows itself on standard error: a bar on a terminal, else a line now and then."""

import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Self

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Watches a training; see `gemlens.training.train.train`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console) if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=None) if self._bar else None
        self._console, self._told = console, 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, steps: int, values: Mapping[str, float]) -> None:
        """After each step."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, total=steps, description=text)
        elif time.monotonic() - self._told > _SECONDS_BETWEEN_LINES or step == steps or len(values) > _PLAIN:
            self._told = time.monotonic()
            self.say(f"step {step} of {steps}  {text}")

    def say(self, sentence: str) -> None:
        """Shows a sentence above the bar."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class Interruption:
    """Ctrl-C or a request to end, once: the training ends its step and saves. The second time it stops at once."""

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._give_back()

    def came(self) -> bool:
        """Whether it came."""
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_PLAIN = 4  # values of a step without an evaluation
