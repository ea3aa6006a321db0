"""`gemlens inspect --trace`: one prompt on its way through the seven stops, with shapes and milliseconds.

ask -> encode -> prefill -> step -> sample -> decode -> understand
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemlens.cli.prompts import Inputs, Picture, Reader

if TYPE_CHECKING:
    from torch import Tensor

    from gemlens.models.generative import GenerativeModel


@dataclass(frozen=True)
class Stop:
    """One stop: its word, what went in, what came out, and how long it took."""

    word: str
    takes: str
    gives: str
    milliseconds: float


def trace(model: "GenerativeModel", reader: Reader, prompt: str, sources: Sequence[str]) -> list[Stop]:
    """Sends a prompt through a model as it is, for two tokens, the most probable ones."""
    import torch

    from gemlens.tasks.findings import parse

    clock = _Clock(model.device)
    pictures = [Picture.open(source) for source in sources]
    asked = clock.lap()
    inputs = reader.prompt(prompt, pictures)
    given = {name: tensor.to(model.device) for name, tensor in _named(inputs).items()}
    encoded = clock.lap()
    with torch.inference_mode():
        output = model(**given, use_cache=True, logits_to_keep=1)
        prefilled = clock.lap()
        token = output.logits[:, -1].argmax(-1)
        sampled = clock.lap()
        stepped = model(input_ids=token[:, None], past_key_values=output.past_key_values, use_cache=True)
    step = clock.lap()
    tokens = [int(token), int(stepped.logits[0, -1].argmax())]
    clock.lap()
    text = reader.tokenizer.decode(tokens)
    decoded = clock.lap()
    found = [finding for each in pictures for finding in parse(text, each.image.size)]
    understood = clock.lap()
    numbers = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in given.items())
    seen = ", ".join(["1 text", *(f"a picture of {each.image.width} x {each.image.height}" for each in pictures)])
    logits, cached = f"logits {_shape(output.logits)}", given["input_ids"].shape[1]
    return [
        Stop("ask", "arguments", seen, asked),
        Stop("encode", seen, numbers, encoded),
        Stop("prefill", numbers, f"{logits}, {cached} tokens cached", prefilled),
        Stop("step", f"input_ids {_shape(token[:, None])}", f"logits {_shape(stepped.logits)}", step),
        Stop("sample", f"logits {_shape(output.logits[:, -1])}", f"id {_shape(token)}", sampled),
        Stop("decode", f"ids [{len(tokens)}]", repr(text), decoded),
        Stop("understand", repr(text), f"findings [{len(found)}]", understood),
    ]


def _named(inputs: Inputs) -> dict[str, "Tensor"]:
    found = {"input_ids": inputs.input_ids, "pixel_values": inputs.pixel_values}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _shape(tensor: "Tensor") -> str:
    return str(list(tensor.shape))


class _Clock:
    """Milliseconds between laps, of the accelerator's work too."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Since the last lap."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        last, self.last = self.last, time.perf_counter()
        return (self.last - last) * 1000
