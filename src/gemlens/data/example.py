"""One thing to learn or to be asked: pictures, a prompt, the answer. Everything that reads data gives these.

source[17] -> Example -> processor -> ids, pixels, labels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image

Picture = Image | Path | bytes  # a picture, where one lies, or the bytes of its file; opened only when it is needed


@dataclass(frozen=True)
class Example:
    """Pictures, a prompt and its answer; or a chat.

    Args:
        id: tells where it comes from, for reports: "train.jsonl:12".
        pictures: in the order in which the text names them.
        prefix: the prompt, "detect cat". Empty for chats.
        suffix: the answer to learn, "<loc0100><loc0200><loc0300><loc0400> cat", without an end token.
        messages: a chat in the documented form, instead of prefix and suffix; what the assistant says is learned.
        references: all answers that count as right; without any, the suffix alone.
    """

    id: str
    pictures: tuple[Picture, ...] = ()
    prefix: str = ""
    suffix: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    references: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers that count as right."""
        return self.references or (self.suffix,)


@runtime_checkable
class Source(Protocol):
    """Examples by number; the same number always gives the same example, so that a run can be taken up again."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Example:
        """The example of that number, from 0.

        Raises:
            InputError: the example cannot be read; the sentence says which it is.
        """


@dataclass(frozen=True)
class Examples:
    """A source that is held in memory."""

    rows: Sequence[Example]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Example:
        return self.rows[index]
