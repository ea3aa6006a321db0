"""Dialogue: how a conversation is put to a model. Which way depends on what the model was made for.

an instruction-tuned model   Templated    the checkpoint's chat template
a base model                 Transcript   "User: ...\\nAssistant:", which it continues; ends at the next "\\nUser:"
PaliGemma                    OneByOne     each message by itself, about the pictures so far
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from gemlens.cli.prompts import Inputs, Message, Reader

# A base model answers if it sees that answers come: alone, "User: Name three colours." is repeated for ever.
_EXAMPLE = (
    "User: Hello! Who are you?\nAssistant: Hello! I am an assistant. I answer questions.\n"
    "User: What colour is the sky?\nAssistant: The sky is blue.\n"
)
_SETTING = "The following is a conversation between a user and a helpful assistant."


class Dialogue(Protocol):
    """Messages -> what the model reads, and where its answer ends."""

    grows: ClassVar[bool]  # whether the next input begins with this one and its answer, so that a cache helps
    stops: ClassVar[tuple[str, ...]]
    note: ClassVar[str]  # what a person should know of it

    def inputs(self, messages: Sequence[Message]) -> Inputs:
        """The conversation, up to where the model goes on; the last message is the user's."""


@dataclass(frozen=True)
class Templated:
    """By the chat template."""

    reader: Reader
    grows: ClassVar[bool] = True
    stops: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = ""

    def inputs(self, messages: Sequence[Message]) -> Inputs:
        """All messages."""
        return self.reader.conversation(messages)


@dataclass(frozen=True)
class Transcript:
    """As the text of a conversation, with an example of two questions in front."""

    reader: Reader
    grows: ClassVar[bool] = True
    stops: ClassVar[tuple[str, ...]] = ("\nUser:", "\nAssistant:")
    note: ClassVar[str] = (
        "This checkpoint has no chat template, as base models have none: it is shown a transcript and continues it."
    )

    def inputs(self, messages: Sequence[Message]) -> Inputs:
        """All messages."""
        lines = [_SETTING, "\n\n", _EXAMPLE]
        for message in messages:
            if message.role == "system":
                lines[0] = f"{_SETTING} {message.text}"
            else:
                mark = self.reader.picture_mark * len(message.pictures) if message.pictures else ""
                name = "User" if message.role == "user" else "Assistant"
                lines.append(f"{name}: {mark}{message.text.strip()}\n")
        pictures = [picture for message in messages for picture in message.pictures]
        return self.reader.prompt("".join(lines) + "Assistant:", pictures, control_tokens_act=False)


@dataclass(frozen=True)
class OneByOne:
    """The last message only, with all pictures."""

    reader: Reader
    grows: ClassVar[bool] = False
    stops: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = (
        "PaliGemma holds no conversations: each message is answered by itself, about the pictures so far."
    )

    def inputs(self, messages: Sequence[Message]) -> Inputs:
        """The last message."""
        pictures = [picture for message in messages for picture in message.pictures]
        return self.reader.prompt(messages[-1].text, pictures, control_tokens_act=False)


def dialogue_for(reader: Reader) -> Dialogue:
    """The way that suits a model."""
    if not reader.takes_conversations:
        return OneByOne(reader)
    return Templated(reader) if reader.has_template else Transcript(reader)
