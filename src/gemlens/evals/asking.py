"""Examples -> what a model says to them, greedily; or how probable it finds the answers that they bring.

Example, its pictures opened -> the processor -> ids padded on the left, pixels -> model.generate -> Said
Example with an answer       -> Collator -> labels -> Objective -> Said
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gemlens.data.example import Example
from gemlens.errors import InputError
from gemlens.models.generative import GenerativeModel
from gemlens.processing.batch import BatchFeature
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.pictures.pictures import open_picture
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

Reader = PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast
Chat = list[Mapping[str, Any]]
_SOURCES = ("image", "url", "path", "base64")
_BATCH: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}


@dataclass(frozen=True)
class Said:
    """An answer; see `Item` for its fields."""

    answer: str
    tokens: int
    likelihood: float
    locations: tuple[float, ...] = ()


class Answers(Protocol):
    """What answers examples: a model that writes, or that reads the answers which are there."""

    def __call__(self, examples: Sequence[Example], /) -> list[Said]:
        """One answer for each of at least one example whose pictures are open.

        Raises:
            InputError: one of them is none that the model can read.
        """


def opened(example: Example) -> Example:
    """The example with its pictures decoded.

    Raises:
        PictureError: one is missing, damaged or too large.
    """
    return replace(example, pictures=tuple(open_picture(each, allow_urls=False) for each in example.pictures))


@dataclass(frozen=True)
class WrittenAnswers:
    """What a model writes, greedily. An answer does not depend on what else stands in the batch.

    Args:
        model: with a head over the vocabulary.
        processor: of the model; its tokenizer if it takes no pictures.
        max_new_tokens: of an answer at most.
    """

    model: GenerativeModel
    processor: Reader
    max_new_tokens: int

    def __call__(self, examples: Sequence[Example], /) -> list[Said]:
        """See `Answers`."""
        if len({bool(example.messages) for example in examples}) > 1:  # chats and prompts are written by other rules
            return [said for example in examples for said in self([example])]
        prompts = written(self.processor, examples).to(self.model.device)
        watcher = _Watcher()
        ids = self.model.generate(
            **prompts,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            logits_processor=[watcher],
        )
        assert isinstance(ids, Tensor)
        answers = ids[:, prompts["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.settings().end_tokens
        return [
            self._said(row[: _length(row, ends)], likelihoods)
            for row, likelihoods in zip(answers, watcher.likelihoods(), strict=True)
        ]

    def _said(self, tokens: list[int], likelihoods: list[float]) -> Said:
        tokenizer = tokenizer_of(self.processor)
        names = tokenizer.convert_ids_to_tokens(tokens)
        chances = likelihoods[: len(tokens)]
        locations = [chance for name, chance in zip(names, chances, strict=True) if name.startswith("<loc")]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return Said(text.strip(), len(tokens), sum(chances), tuple(locations))


@dataclass(frozen=True)
class GivenAnswers:
    """The answers that examples bring, and how probable the model finds them when it reads them token by token.

    Rows are read one at a time, so nothing is padded; logits exist for a few tokens at once.

    Args:
        model: with a head over the vocabulary.
        processor: of the model; its tokenizer if it takes no pictures.
    """

    model: GenerativeModel
    processor: Reader

    def __call__(self, examples: Sequence[Example], /) -> list[Said]:
        """See `Answers`."""
        from gemlens.training.batches import Collator
        from gemlens.training.objective import Objective

        collate, objective = Collator(self.processor), Objective(mean="token")
        found = []
        for example in examples:
            batch = {name: tensor.to(self.model.device) for name, tensor in collate([example]).items()}
            with torch.inference_mode():
                loss = float(objective(self.model, batch))
            tokens = int(objective.weight(batch["labels"], batch.get("attention_mask")))
            found.append(Said(answer_of(example), tokens, -loss))
        return found


def tokenizer_of(processor: Reader) -> GemmaTokenizerFast:
    """The tokenizer in a processor, or itself."""
    return processor if isinstance(processor, GemmaTokenizerFast) else processor.tokenizer


def answer_of(example: Example) -> str:
    """The answer that an example brings: its suffix, or what the assistant says last in its chat."""
    if not example.messages:
        return example.suffix
    last = example.messages[-1]
    return _text(last) if _is_answer(last) else ""


def prompt_of(example: Example) -> str:
    """The prompt as a person reads it: the prefix, or what the user says last in the chat."""
    asked = [message for message in example.messages if not _is_answer(message)]
    return _text(asked[-1]) if asked else example.prefix


def written(processor: Reader, examples: Sequence[Example]) -> BatchFeature:
    """Prompts, without their answers, as the model reads them; the same as in training.

    Raises:
        InputError: an example is none that the model can read.
    """
    if isinstance(processor, PaliGemmaProcessor) and not any(example.messages for example in examples):
        mark = processor.image_token  # written out, so that one prompt with marks changes nothing for the others
        texts = [
            example.prefix if mark in example.prefix else mark * len(example.pictures) + example.prefix
            for example in examples
        ]
        pictures = [list(example.pictures) for example in examples]
        return processor(images=pictures, text=texts, split_special_tokens=True, **_BATCH)
    if not isinstance(processor, GemmaTokenizerFast):
        mark = processor.boi_token if isinstance(processor, Gemma3Processor) else processor.image_token
        chats = [_chat(example, mark) for example in examples]
        how = {**_BATCH, "tokenize": True, "return_dict": True, "add_generation_prompt": True, "allow_urls": False}
        return processor.apply_chat_template(chats, **how)
    if any(example.pictures for example in examples):
        raise InputError("The example has pictures, and this model reads text only; take a model that sees.")
    if processor.chat_template is None and not any(example.messages for example in examples):
        return processor([example.prefix for example in examples], split_special_tokens=True, **_BATCH)
    chats = [_chat(example, "") for example in examples]
    return processor.apply_chat_template(chats, return_dict=True, add_generation_prompt=True, **_BATCH)


def _chat(example: Example, mark: str) -> Chat:
    """The messages before the last answer, with the example's pictures in their places; of a prefix, one message."""
    if example.messages:
        asked = example.messages[:-1] if _is_answer(example.messages[-1]) else example.messages
        return _with_pictures(asked, example.pictures)
    texts = example.prefix.split(mark) if mark else [example.prefix]
    if len(texts) == 1:  # no marks: pictures stand in front
        texts = [""] * len(example.pictures) + texts
    if len(texts) != len(example.pictures) + 1:
        raise InputError(f"The prompt names {len(texts) - 1} pictures but {len(example.pictures)} came.")
    parts: list[Mapping[str, Any]] = []
    for place, text in enumerate(texts):
        parts += [_words(text)] if text else []
        parts += [{"type": "image"}] if place < len(example.pictures) else []
    return _with_pictures([{"role": "user", "content": parts or [_words("")]}], example.pictures)


def _words(text: str) -> Mapping[str, Any]:
    return {"type": "text", "text": text}


def _with_pictures(chat: Sequence[Mapping[str, Any]], pictures: Sequence[Any]) -> Chat:
    """The chat with pictures in the parts that name none, in order; without such parts, before the first words."""
    waiting = [{"type": "image", "image": picture} for picture in pictures]
    filled: Chat = []
    for message in chat:
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = [waiting.pop(0) if waiting and _is_place(part) else part for part in content]
        filled.append({**message, "content": content})
    if waiting and len(waiting) < len(pictures):
        raise InputError(
            f"The messages have places for {len(pictures) - len(waiting)} pictures, but {len(pictures)} came."
        )
    if waiting:
        first = next((place for place, message in enumerate(filled) if message.get("role") == "user"), 0)
        content = filled[first]["content"]
        words = [_words(content)] if isinstance(content, str) else list(content or ())
        filled[first] = {**filled[first], "content": [*waiting, *words]}
    return filled


def _is_place(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image" and not any(part.get(name) for name in _SOURCES)


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message.get("role") in ("assistant", "model")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
    return " ".join(part for part in parts if isinstance(part, str))


def _length(row: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens of an answer up to its end token, that counted; what follows is padding."""
    return next((place + 1 for place, token in enumerate(row) if token in ends), len(row))


class _Watcher:
    """Sees the scores of every token that is chosen and remembers the logarithm of its probability."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(ids [B, S], scores [B, V]) -> the same scores."""
        wide = scores.float()
        self._steps.append(wide.amax(-1) - wide.logsumexp(-1))  # greedy: the most probable one is chosen
        return scores

    def likelihoods(self) -> list[list[float]]:
        """[B][new tokens]."""
        found: list[list[float]] = torch.stack(self._steps, dim=1).tolist()
        return found
