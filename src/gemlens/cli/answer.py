"""One answer: Inputs -> generate -> text as it comes -> Answer, also when Ctrl-C ends it.

Speaker.answer -> model.generate(streamer=_Listener) -> show(text), again and again -> Answer
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemlens.cli.prompts import Inputs
from gemlens.cli.settings import DEFAULT_NEW_TOKENS, Sampling
from gemlens.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from gemlens.caches.dynamic import DynamicCache
    from gemlens.generation.config import GenerationConfig
    from gemlens.models.generative import GenerativeModel
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast


@dataclass(frozen=True)
class Answer:
    """What was said, and how it went.

    Args:
        text: without the stop string or end token.
        stop_reason: "end" (the model ended it), "stop" (a stop string), "length" (as many tokens as asked for),
            "context" (as many as the model was made for) or "interrupted".
        prompt_tokens: of the prompt, of which `cached_tokens` were read in earlier turns.
        cached_tokens: see there.
        tokens: of the answer, its end token counted.
        prefill_seconds: until the first token.
        decode_seconds: from then on.
    """

    text: str
    stop_reason: str
    prompt_tokens: int
    cached_tokens: int
    tokens: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float

    def report(self) -> dict[str, Any]:
        """What a program wants to know."""
        return {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.tokens),
            "prefill_seconds": round(self.prefill_seconds, 4),
            "decode_seconds": round(self.decode_seconds, 4),
        }

    def __str__(self) -> str:
        """How it went, for a person."""
        read, more = self.prompt_tokens - self.cached_tokens, max(len(self.tokens) - 1, 0)
        cached = f" and {self.cached_tokens} from the cache" if self.cached_tokens else ""
        first = f"first token after {self.prefill_seconds:.2f} s ({_rate(read, self.prefill_seconds)})"
        rate = _rate(more, self.decode_seconds)
        return (
            f"prompt: {read} tokens{cached}, {first}\n"
            f"answer: {len(self.tokens)} tokens ({rate}), ended by {self.stop_reason}"
        )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds > 0 else "- tokens/s"


@dataclass(frozen=True)
class Speaker:
    """A model and its tokenizer."""

    model: "GenerativeModel"
    tokenizer: "GemmaTokenizerFast"

    @property
    def context(self) -> int:
        """Tokens of prompt and answer that the model was made for."""
        return self.model.max_positions

    def answer(
        self,
        inputs: Inputs,
        sampling: Sampling,
        show: Callable[[str], None],
        cache: "DynamicCache | None" = None,
    ) -> Answer:
        """Answers; Ctrl-C ends the answer with what was said so far, and the cache is then of no more use.

        Args:
            inputs: what to answer.
            sampling: how.
            show: takes the text, piece by piece.
            cache: holds the beginning of the inputs; extended by the rest and the answer.

        Raises:
            InputError: the prompt leaves no room for an answer.
        """
        tokens, held = inputs.input_ids.shape[1], 0 if cache is None else cache.get_seq_length()
        wanted, room = self._wanted(sampling), self._room(tokens)
        listener = _Listener(self.tokenizer, sampling.stop, show)
        interrupted = False
        try:
            self.model.generate(
                inputs.input_ids,
                pixel_values=inputs.pixel_values,
                generation_config=_settings(min(wanted, room), sampling),
                past_key_values=cache,
                streamer=listener,
                tokenizer=self.tokenizer,
                seed=sampling.seed,
            )
        except KeyboardInterrupt:
            interrupted = True  # `generate` has told the listener the end all the same
        reason = "interrupted" if interrupted else self._reason(listener, wanted, room)
        prefill, decode = listener.seconds()
        return Answer(listener.text, reason, tokens, held, tuple(listener.tokens), prefill, decode)

    def _wanted(self, sampling: Sampling) -> int:
        return sampling.max_new_tokens or self.model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS

    def _room(self, tokens: int) -> int:
        if tokens >= self.context:
            raise InputError(
                f"There are {tokens} tokens to read, but the model was made for {self.context}, the answer included; "
                "shorten the prompt; in a chat, /reset starts anew and /save keeps what was said."
            )
        return self.context - tokens

    def _reason(self, listener: "_Listener", wanted: int, room: int) -> str:
        if listener.stream.stop_string is not None:
            return "stop"
        ends = self.model.generation_config.settings().end_tokens
        if listener.tokens[-1] in ends or len(listener.tokens) < min(wanted, room):
            return "end"
        return "length" if wanted <= room else "context"


def _settings(limit: int, sampling: Sampling) -> "GenerationConfig":
    """What was asked for, and, whatever the model's own says, one answer in the cache of this call."""
    from gemlens.generation.config import GenerationConfig

    said = {"max_new_tokens": limit, **sampling.generation_fields()}
    return GenerationConfig(num_beams=1, num_return_sequences=1, cache_implementation=None, use_cache=True, **said)


class _Listener:
    """Hears the tokens of `generate`, tells the text and takes the time."""

    def __init__(self, tokenizer: "GemmaTokenizerFast", stops: Sequence[str], show: Callable[[str], None]) -> None:
        from gemlens.processing.text.streaming import TextStream

        self.stream = TextStream(tokenizer, stops)
        self.tokens: list[int] = []
        self.text = ""
        self._show = show
        self._times = [time.perf_counter()]
        self._prompt_comes = True

    def put(self, value: "Tensor") -> None:
        """Takes the prompt [1, S], then new tokens [n]."""
        if self._prompt_comes:
            self._prompt_comes = False
            return
        self._times.append(time.perf_counter())
        for token in value.flatten().tolist():
            self.tokens.append(token)
            self._say(self.stream.put(token))

    def end(self) -> None:
        """Says what waited."""
        self._say(self.stream.finish())

    def seconds(self) -> tuple[float, float]:
        """Until the first token, and from there to the last."""
        start, *times = self._times
        return (times[0] - start, times[-1] - times[0]) if times else (time.perf_counter() - start, 0.0)

    def _say(self, text: str) -> None:
        if text:
            self.text += text
            self._show(text)
