"""Ids -> text as it comes: what is safe to show after each token. The text is never taken back.

id -> piece -> (a run of byte pieces waits for its end) -> text -> (what may begin a stop string waits) -> shown

`TextStreamer` and `TextIteratorStreamer` do that for `generate(streamer=...)`: they print the text, or hand it over to
another thread.
"""

from collections.abc import Sequence
from queue import Queue
from typing import TYPE_CHECKING, Self

from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.text.vocabulary import Vocabulary, id_list

if TYPE_CHECKING:
    from gemlens.processing.processor import Processor


class TextStream:
    """Decodes one answer token by token.

    Bytes that spell a character come as tokens of their own, and decoding judges a run of them as a whole. So a run is
    shown when it has ended, and all that was shown is exactly what `decode` makes of all tokens. With stop strings it
    is that up to the first one, which is itself left out.

    Args:
        vocabulary: a tokenizer.
        stop_strings: texts at which the answer ends; of several the one that is complete first, of those the longest.
        skip_special_tokens: as in `decode`.

    Attributes:
        stop_string: the stop string that was met; None so far.

    Raises:
        InputError: a stop string without characters.
    """

    def __init__(
        self, vocabulary: Vocabulary, stop_strings: str | Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"stop_strings={stop_strings!r}: pass texts of at least one character.")
        self.stop_string: str | None = None
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._bytes: list[int] = []  # tokens of a run of bytes that has not ended
        self._stops = [_Search(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""  # text that may begin a stop string

    def put(self, token: int) -> str:
        """Takes the next token; gives the text that can be shown now, often one piece, sometimes nothing.

        Raises:
            InputError: this is no id.
        """
        (token,) = id_list(token)
        piece = self._vocabulary.convert_ids_to_tokens(token)
        if self.stop_string is not None or piece is None:  # `decode` passes over unknown ids, too
            return ""
        if _is_byte(piece):
            self._bytes.append(token)
            return ""
        text = self._decode([token])
        if not text:  # it is left out, so bytes before it and after it are one run
            return ""
        return self._show(self._end_of_bytes() + text)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        if self.stop_string is not None:
            return ""
        shown = self._show(self._end_of_bytes())
        if self.stop_string is None:
            shown += self._held
        self._held = ""
        return shown

    def _end_of_bytes(self) -> str:
        run, self._bytes = self._bytes, []
        return self._decode(run) if run else ""

    def _decode(self, tokens: list[int]) -> str:
        return self._vocabulary.decode(tokens, self._skip, clean_up_tokenization_spaces=False)

    def _show(self, text: str) -> str:
        """What of the text, after what is held, cannot belong to a stop string."""
        if not self._stops:
            return text
        text, new = self._held + text, text
        for count, character in enumerate(new, start=len(self._held) + 1):
            for stop in self._stops:  # the longest first
                if stop.step(character):
                    self.stop_string, self._held = stop.text, ""
                    return text[: count - len(stop.text)]
        safe = len(text) - max(stop.matched for stop in self._stops)
        self._held = text[safe:]
        return text[:safe]


class _Search:
    """Finds a text in characters that come one by one, each looked at once (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # so many characters of the text were the last ones that came
        # [number of characters matched] -> the longest shorter match that ends at the same place
        self._shorter = [0] * (len(text) + 1)
        match = 0
        for length in range(2, len(text) + 1):
            while match and text[match] != text[length - 1]:
                match = self._shorter[match]
            match += text[match] == text[length - 1]
            self._shorter[length] = match

    def step(self, character: str) -> bool:
        """Takes a character; tells whether the text ends there."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._shorter[self.matched]
        self.matched += self.text[self.matched] == character
        return self.matched == len(self.text)


def _is_byte(piece: str) -> bool:
    """Whether a piece stands for one byte, as in `<0xE2>`."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


# -- for generate ------------------------------------------------------------------------------------------------------


class TextStreamer:
    """Prints an answer while it is generated: `model.generate(**inputs, streamer=TextStreamer(tokenizer))`.

    All that is printed, but for the line break at the end, is what `decode` makes of all tokens. A streamer can be used
    again when its answer has ended. Overwrite `on_finalized_text` to do something else with the text.

    Args:
        tokenizer: a tokenizer, or a processor, whose tokenizer is used.
        skip_prompt: whether to leave out the prompt.
        skip_special_tokens: as in `decode`.
        clean_up_tokenization_spaces: only False, as that would take back what was shown.

    Raises:
        InputError: this is no tokenizer, or `clean_up_tokenization_spaces` is True.
    """

    def __init__(
        self,
        tokenizer: "Vocabulary | Processor",
        skip_prompt: bool = False,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        found = getattr(tokenizer, "tokenizer", tokenizer)
        if not isinstance(found, Vocabulary):
            raise InputError(f"A {type(tokenizer).__name__} came as tokenizer; pass a tokenizer or a processor.")
        if clean_up_tokenization_spaces:
            raise InputError("clean_up_tokenization_spaces=True takes spaces back, but what was shown stays; leave it.")
        self.tokenizer = found
        self.skip_prompt = skip_prompt
        self._skip_special = skip_special_tokens
        self._start()

    def _start(self) -> None:
        self._stream = TextStream(self.tokenizer, skip_special_tokens=self._skip_special)
        self._prompt_comes = True

    def put(self, value: Tensor) -> None:
        """Takes ids, [1, S] or [S]: the prompt first, then what is generated.

        Raises:
            InputError: several rows came.
        """
        if value.dim() > 1 and value.shape[0] > 1:
            raise InputError(
                f"{value.shape[0]} answers are generated together, but one can be streamed; pass one prompt, and no "
                "num_beams or num_return_sequences."
            )
        prompt_comes, self._prompt_comes = self._prompt_comes, False
        if prompt_comes and self.skip_prompt:
            return
        text = "".join(self._stream.put(token) for token in value.flatten().tolist())
        if text:
            self.on_finalized_text(text)

    def end(self) -> None:
        """Shows what waited; the next `put` begins another answer."""
        text = self._stream.finish()
        self._start()
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Takes text that will not change any more; with `stream_end` the last, which may be empty."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """Hands an answer over to another thread while it is generated; that one reads `for text in streamer`.

        thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer})

    `generate` ends the stream even when it fails, so that the reader never waits in vain.

    Args:
        tokenizer: as in `TextStreamer`.
        skip_prompt: as in `TextStreamer`.
        timeout: seconds that the reader waits for the next text, after which `queue.Empty` is raised; None: forever.
        skip_special_tokens: as in `decode`.
        clean_up_tokenization_spaces: only False.

    Raises:
        InputError: as in `TextStreamer`.
    """

    def __init__(
        self,
        tokenizer: "Vocabulary | Processor",
        skip_prompt: bool = False,
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        super().__init__(
            tokenizer,
            skip_prompt,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()  # None: the answer has ended

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Puts the text where the reader takes it."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
