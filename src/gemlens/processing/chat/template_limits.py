"""How much a chat template may build and how long it may run: `Budget` and `watched`, for template_sandbox.py.

No value heavier than the budget's limit ever comes to be: whatever builds one is measured first, so each operation is
short. While a template runs, `sys.settrace` reads the thread's own clock at its lines and calls.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import CO_GENERATOR
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import jinja2

SECONDS = 0.6  # of the thread's own time, for compiling and running; a usual template takes 0.001
SECONDS_PER_WEIGHT = 2e-6  # more for long conversations, as a message takes some 0.0001
TEMPLATE_NAME = "<chat template>"  # of the compiled code
# Where code runs for a template: in itself, in jinja2 and here.
_WORKSHOPS = (TEMPLATE_NAME, str(Path(jinja2.__file__).parent), str(Path(__file__).parent))
LEAST_WEIGHT = 65_536  # characters and elements that one value may have however short the conversation is
_TIMES = 400  # all values together may have this many times what one may have
_BITS = 4096  # of an integer


class Stop(BaseException):
    """Ends a template from within; no Exception, as jinja2 catches those while it folds constants."""


class Budget:
    """What one rendering may build.

    Args:
        values: what the template is given. A value that it builds may be four times as heavy, and a little more.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._known: dict[int, int] = {}
        for value in values.values():
            _learn(value, self._known)
        self.limit = LEAST_WEIGHT + 4 * sum(self.weight(value) for value in values.values())
        self.seconds = SECONDS + SECONDS_PER_WEIGHT * (self.limit - LEAST_WEIGHT) / 4
        self._left = _TIMES * self.limit

    def weight(self, value: Any) -> int:
        """`weight`, quick for what the template was given."""
        if isinstance(value, str):
            return 1 + len(value)
        return weight(value, getattr(self, "limit", float("inf")), self._known)

    def spend(self, size: float) -> None:
        """Refuses to build something of this size."""
        if size > self.limit:
            raise Stop(f"it builds a value of more than {self.limit} characters")

    def measured(self, value: Any) -> Any:
        """The value itself, unless it is too heavy."""
        if isinstance(value, str):
            self.spend(len(value))
        elif value is not None and not isinstance(value, bool):
            self.spend(self.weight(value))
        return value

    def made(self, value: Any) -> Any:
        """A value that was just built: as `measured`, and all of them together may not be too heavy either."""
        if value is None or isinstance(value, bool):
            return value
        self.measured(value)
        self._left -= len(value) if isinstance(value, (str, list, tuple, dict)) else 1
        if self._left < 0:
            raise Stop(f"it builds values of more than {_TIMES * self.limit} characters")
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise Stop("it computes with numbers of more than 1,000 digits")
        return value

    def listed(self, values: Any) -> list[Any]:
        """The items of something that can be gone through."""
        items, total = [], 0
        for item in values:
            items.append(item)
            total += self.weight(item)
            self.spend(total)
        return items

    def joined(self, parts: Sequence[Any], between: str = "") -> str:
        """The parts as one text."""
        texts = [part if isinstance(part, str) else str(self.measured(part)) for part in parts]
        self.spend(sum(map(len, texts)) + len(between) * len(texts))
        return str(self.made(between.join(texts)))

    def replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        """`text.replace`."""
        found = text.count(old)
        self.spend(len(text) + (found if count < 0 else min(found, count)) * len(new))
        return str(self.made(text.replace(old, new, count)))

    def check_format(self, form: str, given: Any) -> None:
        """Refuses forms that make a gigabyte of one letter."""
        if re.search(r"\d{4}|\*|\{[^{}]*\{", form):
            raise Stop("it formats a value to a width of more than 999")
        self.spend(self.weight(given) * (1 + form.count("%") + form.count("{")))

    def check_operation(self, operator: str, left: Any, right: Any) -> None:
        """Refuses operations whose result would be too heavy."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "+" and not numbers:
            self.spend(self.weight(left) + self.weight(right))
        if operator == "*" and not numbers:
            for many, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(many, float):
                    self.spend(self.weight(many) * max(times, 0))
        if operator == "**" and numbers and left.bit_length() * abs(right) > _BITS:
            raise Stop("it computes with numbers of more than 1,000 digits")


def weight(value: Any, limit: float = float("inf"), known: Mapping[int, int] | None = None) -> int:
    """Characters and elements of a value, however often it holds the same one; stops counting above `limit`.

    Args:
        value: a text, a number, None, or a list, tuple or dict of them.
        limit: where it is heavy enough.
        known: {id of a list or dict: weight of what is in it}, of those that live on.
    """
    total, waiting = 0, [value]
    while waiting and total <= limit:
        one = waiting.pop()
        total += 1
        if isinstance(one, str):
            total += len(one)
        elif known and id(one) in known:
            total += known[id(one)]
        elif isinstance(one, dict):
            waiting += one.keys()
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            if total + len(one) > limit:
                return total + len(one)
            waiting += one
        elif isinstance(one, range):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length() // 8
    return total


def _learn(value: Any, known: dict[int, int]) -> int:
    """Weighs a value and all lists and dicts in it, which live as long as the rendering."""
    if isinstance(value, dict):
        known[id(value)] = sum(2 + len(key) + _learn(each, known) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        known[id(value)] = len(value) + sum(_learn(each, known) for each in value)
    else:
        return weight(value)
    return 1 + known[id(value)]


def _is_ours(code: CodeType) -> bool:
    """Whether a function is called for the template's sake.

    Python also calls the finalizers of whatever is collected meanwhile, and generators to close them. What is raised in
    those it drops, and it stops tracing; the next line or call of the template is soon enough.
    """
    return code.co_filename.startswith(_WORKSHOPS) and not code.co_flags & CO_GENERATOR


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Stops what runs inside once it has run too long; restores whoever traced before.

    Raises:
        Stop: the time is over.
    """
    end, events, over = time.thread_time() + seconds, 0, False

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal events, over
        events += 1
        if (over or events % 16 == 0) and time.thread_time() > end:
            over = True
            if event == "line" or _is_ours(frame.f_code):
                raise Stop("it does not come to an end")
        # Lines are counted in the template only: loops elsewhere go over measured values, and call functions.
        return look if frame.f_code.co_filename == TEMPLATE_NAME else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
