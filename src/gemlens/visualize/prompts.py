"""A prompt as the model gets it: text, pictures and answer -> ids, types and what kind of token each is.

The numbers are those of the checkpoint's own processor or tokenizer. One function per family, as they differ in what an
answer is: PaliGemma's has types of its own; to the others it is more text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.processor import is_list
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

PICTURE = "<img>"
_AS_IT_IS: dict[str, Any] = {"padding": False, "truncation": False, "return_tensors": "pt"}


@dataclass(frozen=True)
class Encoded:
    """One prompt.

    Args:
        ids: [1, S].
        types: [1, S] token types, as the model takes them.
        kinds: S of "text", "picture", "prefix", "answer".
    """

    ids: Tensor
    types: Tensor
    kinds: tuple[str, ...]


def encode_text(tokenizer: GemmaTokenizerFast, prompt: str, images: Any, suffix: str | None) -> Encoded:
    """For a text model.

    Raises:
        InputError: pictures came.
    """
    if images is not None or PICTURE in prompt:
        raise InputError(f"This model reads text only; leave out images= and '{PICTURE}'.")
    ids: Tensor = tokenizer(prompt, **_AS_IT_IS)["input_ids"]
    return _answered(tokenizer, ids, torch.zeros_like(ids), ("text",) * ids.shape[1], suffix)


def encode_gemma3(processor: Gemma3Processor, prompt: str, images: Any, suffix: str | None) -> Encoded:
    """For Gemma 3 with pictures.

    Raises:
        InputError: pictures and places do not fit.
        PictureError: a picture is damaged or may not be fetched.
    """
    batch = _called(processor, processor.boi_token, prompt, images)
    kinds = tuple("picture" if kind else "text" for kind in batch["token_type_ids"][0].tolist())
    return _answered(processor.tokenizer, batch["input_ids"], batch["token_type_ids"], kinds, suffix)


def encode_paligemma(processor: PaliGemmaProcessor, prompt: str, images: Any, suffix: str | None) -> Encoded:
    """For PaliGemma and PaliGemma 2; errors as in `encode_gemma3`."""
    answers = {} if suffix is None else {"suffix": [suffix]}
    batch = _called(processor, processor.image_token, prompt, images, **answers)
    ids, types = batch["input_ids"], batch["token_type_ids"]
    kinds = (
        "answer" if kind else "picture" if token == processor.image_token_id else "prefix"
        for token, kind in zip(ids[0].tolist(), types[0].tolist(), strict=True)
    )  # fmt: skip
    return Encoded(ids, types, tuple(kinds))


def _called(
    processor: PaliGemmaProcessor | Gemma3Processor, mark: str, prompt: str, images: Any, **answers: list[str]
) -> Any:
    """What the processor gives; without pictures, a small blank one stands in each place."""
    prompt = prompt.replace(PICTURE, mark)
    if images is None:
        images = [Image.new("RGB", (64, 64)) for _ in range(prompt.count(mark))]
    pictures = list(images) if is_list(images) else [images]
    return processor(images=[pictures], text=[prompt], **answers, **_AS_IT_IS)


def _answered(
    tokenizer: GemmaTokenizerFast, ids: Tensor, types: Tensor, kinds: tuple[str, ...], suffix: str | None
) -> Encoded:
    """The prompt with the answer behind it, as text: control tokens that are written out in an answer stay words."""
    if not suffix:
        return Encoded(ids, types, kinds)
    answer: Tensor = tokenizer(suffix, add_special_tokens=False, split_special_tokens=True, **_AS_IT_IS)["input_ids"]
    ids, types = torch.cat([ids, answer], dim=1), torch.cat([types, torch.zeros_like(answer)], dim=1)
    return Encoded(ids, types, (*kinds, *["answer"] * answer.shape[1]))
