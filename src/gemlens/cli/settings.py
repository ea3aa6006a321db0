"""What the options of `run` and `chat` say, as values: where a model goes, and how its answers are drawn."""

from dataclasses import dataclass
from typing import Any

from gemlens.errors import InputError
from gemlens.generation.config import GenerationConfig


@dataclass(frozen=True)
class Loading:
    """In which numbers and where a model is held.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16". "auto" is the checkpoint's own. A GGUF file's blocks are
            computed with as they are where native kernels can; else they become bfloat16 where the processor can
            multiply it.
        device: "auto" for the accelerator if there is one, else what torch calls it: "cpu", "cuda:1".
    """

    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. What is None the model's generation_config decides.

    Args:
        max_new_tokens: tokens of an answer at most; None for generation_config's, or else DEFAULT_NEW_TOKENS.
        temperature: above 0; 0 is greedy.
        top_k: of so many most probable tokens.
        top_p: of the most probable tokens that together are this probable.
        seed: of the random numbers.
        greedy: always the most probable token.
        stop: texts at which an answer ends, themselves left out.

    Raises:
        InputError: a value out of range, or greedy and a way to draw were both asked for.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    greedy: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.is_greedy and self._drawn:
            raise InputError(f"Greedy decoding draws nothing, so {', '.join(self._drawn)} cannot be asked for with it.")
        GenerationConfig(**self.generation_fields())

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is asked for."""
        return self.greedy or self.temperature == 0

    @property
    def _drawn(self) -> dict[str, Any]:
        """The fields of GenerationConfig that were given and only mean something where tokens are drawn."""
        fields = {"temperature": self.temperature or None, "top_k": self.top_k, "top_p": self.top_p}
        return {name: value for name, value in fields.items() if value is not None}

    def generation_fields(self) -> dict[str, Any]:
        """The fields of GenerationConfig that were asked for, but for max_new_tokens."""
        fields: dict[str, Any] = {"stop_strings": list(self.stop)} if self.stop else {}
        if self.is_greedy:
            return {"do_sample": False, **fields}
        return {"do_sample": True, **self._drawn, **fields} if self._drawn else fields


DEFAULT_NEW_TOKENS = 512
