"""Session: a conversation that grows: its messages, and the cache that remembers what was read of them.

Session.ask(text) -> Dialogue.inputs(messages) -> Speaker.answer(cache) -> the assistant's message
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from gemlens.cli.answer import Answer, Speaker
from gemlens.cli.dialogue import Dialogue
from gemlens.cli.prompts import Inputs, Message, Picture
from gemlens.cli.settings import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from gemlens.caches.dynamic import DynamicCache


class Session:
    """One conversation with a model.

    Args:
        speaker: the model.
        dialogue: how it is shown the conversation.
        sampling: how it answers. With a seed, each answer has the seed plus the number of the earlier ones.
        system: what it is told beforehand.

    Attributes:
        messages: of both sides so far.
        pictures: that the next message brings.
        system: as the argument; may be set at any time.
    """

    def __init__(self, speaker: Speaker, dialogue: Dialogue, sampling: Sampling, system: str | None = None) -> None:
        self.speaker, self.dialogue, self.sampling, self.system = speaker, dialogue, sampling, system
        self.messages: list[Message] = []
        self.pictures: list[Picture] = []
        self._memory = Memory()

    @property
    def told(self) -> list[Message]:
        """All messages, with what the model was told beforehand."""
        return [*([Message("system", self.system)] if self.system else []), *self.messages]

    def ask(self, text: str, show: Callable[[str], None]) -> Answer:
        """Says something to the model and hears its answer, of which an interrupted one is kept as far as it went.

        Raises:
            InputError: the conversation cannot be put to the model, or does not fit it any more; it stays as it was.
        """
        question = Message("user", text, tuple(self.pictures))
        inputs = self.dialogue.inputs([*self.told, question])
        sampling = replace(self.sampling, stop=(*self.sampling.stop, *self.dialogue.stops))
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + len(self.messages) // 2)
        cache = self._memory.take(self.speaker, inputs) if self.dialogue.grows else None
        answer = self.speaker.answer(inputs, sampling, _Trimmed(show), cache=cache)
        answer = replace(answer, text=answer.text.strip())
        if answer.stop_reason != "interrupted" and cache is not None:
            self._memory.keep(cache, inputs, answer)
        if answer.text or answer.stop_reason != "interrupted":
            self.messages += [question, Message("assistant", answer.text)]
            self.pictures = []
        return answer

    def reset(self) -> None:
        """Forgets what was said and shown; what the model is told beforehand stays."""
        self.messages, self.pictures, self._memory = [], [], Memory()


class _Trimmed:
    """Shows text without the white space that it begins with: base models put a space behind "Assistant:"."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show, self.begun = show, False

    def __call__(self, text: str) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        if text:
            self.show(text)


class Memory:
    """The cache of a conversation, and what it has read. Taken out for an answer, so that a broken one leaves none."""

    def __init__(self) -> None:
        self._cache: DynamicCache | None = None
        self._ids: list[int] = []
        self._pixels: Tensor | None = None

    def take(self, speaker: Speaker, inputs: Inputs) -> "DynamicCache":
        """The cache if it holds the beginning of these inputs, token by token and picture by picture; else a new one.

        Templates trim answers, and text may be cut into other tokens than the model chose, so that is not always so.
        """
        from gemlens import DynamicCache

        cache, self._cache = self._cache, None
        if cache is not None and self._begins(inputs):
            return cache
        return DynamicCache(speaker.model.text_model())

    def keep(self, cache: "DynamicCache", inputs: Inputs, answer: Answer) -> None:
        """Remembers what the cache has read now: all but the answer's last token."""
        self._ids = [*inputs.input_ids[0].tolist(), *answer.tokens][: cache.get_seq_length()]
        self._cache, self._pixels = cache, inputs.pixel_values

    def _begins(self, inputs: Inputs) -> bool:
        """Whether what was read is the beginning of these inputs, and not all."""
        ids, pixels = inputs.input_ids[0].tolist(), inputs.pixel_values
        same_pictures = self._pixels is None or (pixels is not None and pixels[: len(self._pixels)].equal(self._pixels))
        return same_pictures and len(ids) > len(self._ids) and ids[: len(self._ids)] == self._ids
