"""A program in a pseudo-terminal: what a person at a terminal types and sees."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from typing import Self

CTRL_C, CTRL_D = "\x03", "\x04"


def _become_a_terminals() -> None:
    """In the child: takes the terminal, and hears Ctrl-C even where the tests run in the background and do not."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class PseudoTerminal:
    """`python -m gemlens` with these arguments, whose terminal this is.

    Attributes:
        screen: all that was shown.
    """

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gemlens", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=_become_a_terminals,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(theirs)
        self.screen = ""
        self._seen = 0

    def send(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Waits until the text is shown, after what was waited for before; gives what came up to it."""
        end = time.monotonic() + seconds
        while text not in self.screen[self._seen :]:
            assert time.monotonic() < end, f"{text!r} did not come; the end of the screen is {self.screen[-500:]!r}"
            assert self._read(end), f"{text!r} did not come before the end; the screen is {self.screen[-500:]!r}"
        start = self._seen
        self._seen = self.screen.index(text, start) + len(text)
        return self.screen[start : self._seen]

    def interrupt_until(self, text: str) -> None:
        """Presses Ctrl-C until the text is shown: Python misses one that comes just before readline waits for keys."""
        for _ in range(30):
            self.send(CTRL_C)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                if text in self.screen[self._seen :]:
                    self.wait_for(text)
                    return
                self._read(end)
        raise AssertionError(f"{text!r} did not come; the end of the screen is {self.screen[-500:]!r}")

    def wait_for_more(self, characters: int) -> None:
        """Waits until so many more characters are shown."""
        wanted, end = len(self.screen) + characters, time.monotonic() + 60
        while len(self.screen) < wanted:
            assert time.monotonic() < end
            assert self._read(end)

    def exit_code(self, seconds: float = 60) -> int:
        """Waits for the end."""
        end = time.monotonic() + seconds
        while self._read(end):
            assert time.monotonic() < end
        return self.process.wait(seconds)

    def _read(self, end: float) -> bool:
        """Reads what is there; False at the end of the program."""
        if not select.select([self.ours], [], [], max(0, end - time.monotonic()))[0]:
            return True
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # Linux says so when the last program has closed the other side
            return False
        self.screen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
