"""Examples -> the tensors of one micro-batch: what `model(**batch)` takes, with labels on what is to be said.

    PaliGemma     pictures <bos> prefix \\n | suffix <eos>
    Gemma 3       a chat: what the assistant says, and the <end_of_turn> behind it, is learned
    plain text    <bos> prefix | suffix <eos>, where a tokenizer has no chat template

What is learned is told by where a token comes from, never by searching for text; rows are padded on the right. What
examples say stays text: no control token is made of it, except that the processor's mark of a picture in a prefix says
where the picture stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from gemlens.data.example import Example
from gemlens.errors import InputError
from gemlens.models.loss import IGNORED
from gemlens.processing.chat.chat_template import Prompt
from gemlens.processing.chat.messages import Picture, read_conversation
from gemlens.processing.chat.text_chat import write_chat
from gemlens.processing.encoding import Encoder, Tokens, around, tokens_of
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

Batch = dict[str, Tensor]
Chat = list[Mapping[str, Any]]
_ROLES = ("assistant", "model")
_SOURCES = ("image", "url", "path", "base64")


class _Writer(Protocol):
    """Examples -> rows, for one kind of model."""

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> Batch:
        """Gives tensors; see `Collator`."""


class Collator:
    """Called with examples, gives `input_ids`, `attention_mask` and `labels` of [B, S], and what else the model takes.

    Too long examples: a prompt is cut at its end; of a chat, first the last exchanges are left out, then the words of
    the only prompt are cut. Pictures, answers and what ends them are never cut.

    Args:
        processor: a PaliGemmaProcessor, a Gemma3Processor, or, for a model that reads text only, its tokenizer.
        max_length: tokens that a row may have, those of pictures counted; None for no limit.

    Raises:
        InputError: another kind of processor. When called: an example cannot be made shorter, says nothing that could
            be learned, or is none that the model can read.
        PictureError: when called: a picture cannot be read.
    """

    def __init__(self, processor: Any, max_length: int | None = None) -> None:
        self.max_length = max_length
        self._write: _Writer
        if isinstance(processor, PaliGemmaProcessor):
            self._write = _PaliGemma(processor)
        elif isinstance(processor, Gemma3Processor):
            self._write = _Gemma3(processor)
        elif isinstance(processor, GemmaTokenizerFast):
            self._write = _Text(processor)
        else:
            raise InputError(
                f"A {type(processor).__name__} came as processor; pass a PaliGemmaProcessor, a Gemma3Processor or a "
                "GemmaTokenizerFast."
            )

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """See the class."""
        if not examples:
            raise InputError("No examples came, so there is no batch to make.")
        return self._write(examples, self.max_length)


# -- PaliGemma ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PaliGemma:
    processor: PaliGemmaProcessor

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> Batch:
        asked = [self._asked(example) for example in examples]
        batch = self.processor(
            images=[list(each.pictures) for each in asked],
            text=[each.prefix for each in asked],
            suffix=[each.suffix for each in asked],
            split_special_tokens=True,
            padding="longest",
            padding_side="right",
            truncation=max_length is not None,
            truncation_side="right",
            max_length=max_length,
            return_tensors="pt",
        )
        return dict(batch)

    def _asked(self, example: Example) -> Example:
        """The example with a prefix that says where its pictures stand: in front, unless it says so itself."""
        mark = self.processor.image_token
        pictures, prefix, suffix = example.pictures, example.prefix, example.suffix
        if example.messages:
            turns = read_conversation(_in_place(example))
            if [turn.role for turn in turns] != ["user", "assistant"]:
                raise InputError(
                    f"PaliGemma answers one message and holds no conversations, but the chat has "
                    f"{', '.join(turn.role for turn in turns)}; give it one message of the user and its answer."
                )
            parts = turns[0].parts
            pictures = tuple(part.source for part in parts if isinstance(part, Picture))
            words = (part.strip() for part in parts if isinstance(part, str))
            prefix = mark * len(pictures) + "".join(words)  # as apply_chat_template writes the message
            suffix = "".join(part for part in turns[1].parts if isinstance(part, str))
        elif mark not in prefix:
            prefix = mark * len(pictures) + prefix
        return Example(example.id, pictures, prefix, suffix)


# -- chats -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gemma3:
    processor: Gemma3Processor

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> Batch:
        chats = [_chat(example, self.processor.boi_token) for example in examples]
        while True:
            batch = dict(
                self.processor.apply_chat_template(
                    chats,
                    tokenize=True,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                    padding="longest",
                    padding_side="right",
                    return_tensors="pt",
                )
            )
            excess = [0 if max_length is None else int(row) - max_length for row in batch["attention_mask"].sum(1)]
            if max(excess) <= 0:
                break
            chats = [_shorter(self.processor.tokenizer, *each) for each in zip(chats, excess, strict=True)]
        return _labelled(self.processor.tokenizer, batch, batch.pop("assistant_masks").bool())


@dataclass(frozen=True)
class _Text:
    tokenizer: GemmaTokenizerFast

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> Batch:
        rows = [self._row(example, max_length) for example in examples]
        columns = {"input_ids": [ids for ids, _ in rows], "labels": [said for _, said in rows]}
        batch = dict(self.tokenizer.pad(columns, "longest", padding_side="right", return_tensors="pt"))
        return _labelled(self.tokenizer, batch, batch["labels"] == 1)

    def _row(self, example: Example, max_length: int | None) -> tuple[list[int], list[int]]:
        """Ids, and 1 for each that is learned."""
        if not example.messages and self.tokenizer.chat_template is None:
            return self._plain(example, max_length)
        chat = _chat(example)
        while True:
            prompt = write_chat(self.tokenizer, chat, None, False, False, mark_assistant=True)
            tokens = tokens_of(cast(Encoder, self.tokenizer), prompt)
            if max_length is None or len(tokens) <= max_length:
                return tokens.ids, tokens.said
            chat = _shorter(self.tokenizer, chat, len(tokens) - max_length)

    def _plain(self, example: Example, max_length: int | None) -> tuple[list[int], list[int]]:
        if example.pictures:
            raise InputError("The example has pictures, and this model reads text only.")
        prefix = _tokens(self.tokenizer, example.prefix)
        answer = _tokens(self.tokenizer, example.suffix).ids
        answer += [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        before, _ = around(cast(Encoder, self.tokenizer), prefix, add_special_tokens=True)
        if max_length is not None:
            room = max_length - len(before) - len(answer)
            if room < 0:
                raise _no_room(-room)
            prefix = prefix[:room]
        prompt = before.ids + prefix.ids
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)


def _tokens(tokenizer: GemmaTokenizerFast, text: str) -> Tokens:
    """The tokens of data, in which control tokens stay text."""
    return tokens_of(cast(Encoder, tokenizer), Prompt(text), split=True)


def _chat(example: Example, mark: str | None = None) -> Chat:
    """The example's chat with its pictures, or one of a prompt and its answer.

    Pictures of a prompt stand where it has the `mark`, or else in front.
    """
    if example.messages:
        return _in_place(example)
    pictures = [_picture(source) for source in example.pictures]
    pieces = example.prefix.split(mark) if mark else [example.prefix]
    if len(pieces) == 1:
        pieces = [""] * len(pictures) + pieces
    if len(pieces) != len(pictures) + 1:
        raise InputError(f"The prompt names {len(pieces) - 1} pictures with '{mark}', but {len(pictures)} came.")
    content = []
    for place, piece in enumerate(pieces):
        content += [_words(piece)] if piece else []
        content += pictures[place : place + 1]
    asked = {"role": "user", "content": content or [_words("")]}
    return [asked, {"role": "assistant", "content": [_words(example.suffix)]}]


def _in_place(example: Example) -> Chat:
    """The messages, with the example's pictures at the places that name none, or else before the first words."""
    waiting = list(example.pictures)
    chat: Chat = []
    for message in example.messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            content = [_picture(waiting.pop(0)) if waiting and _is_empty_place(part) else part for part in content]
        chat.append({**message, "content": content})
    if waiting and len(waiting) < len(example.pictures):
        raise InputError(
            f"The messages have places for {len(example.pictures) - len(waiting)} pictures, but "
            f"{len(example.pictures)} came."
        )
    if waiting:
        place = next((place for place, message in enumerate(chat) if message.get("role") == "user"), 0)
        content = chat[place]["content"]
        words = [_words(content)] if isinstance(content, str) else list(content or ())
        chat[place] = {**chat[place], "content": [*map(_picture, waiting), *words]}
    return chat


def _picture(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def _words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _is_empty_place(part: Any) -> bool:
    named = isinstance(part, Mapping) and part.get("type") == "image"
    return named and all(part.get(key) is None for key in _SOURCES)


def _labelled(tokenizer: GemmaTokenizerFast, batch: Batch, said: Tensor) -> Batch:
    """The batch with labels on what is said [B, S], and on what ends a turn right behind it.

    Raises:
        InputError: a row says nothing.
    """
    if not bool(said.any(1).all()):
        raise InputError("The assistant says nothing in this chat, so there is nothing to learn from it.")
    ids = batch["input_ids"]
    ends = [tokenizer.eos_token_id, tokenizer.backend_tokenizer.token_to_id("<end_of_turn>")]
    is_end = torch.isin(ids, torch.tensor([token for token in ends if token is not None]))
    behind = torch.zeros_like(said)
    behind[:, 1:] = said[:, :-1] & is_end[:, 1:] & batch["attention_mask"][:, 1:].bool()
    return {**batch, "labels": ids.masked_fill(~(said | behind), IGNORED)}


# -- too long ----------------------------------------------------------------------------------------------------------


def _shorter(tokenizer: GemmaTokenizerFast, chat: Chat, excess: int) -> Chat:
    """The chat with fewer tokens, if so many are too many: without its last exchange, or with a shorter only prompt.

    Raises:
        InputError: there is nothing left that may be cut.
    """
    if excess <= 0:
        return chat
    answers = [place for place, message in enumerate(chat) if message["role"] in _ROLES]
    ends = [place + 1 for place in answers if place + 1 not in answers]
    if ends and ends[-1] < len(chat):
        return chat[: ends[-1]]  # words that no answer follows
    if len(ends) > 1:
        return chat[: ends[-2]]
    asked = chat[answers[0] - 1] if answers and answers[0] else {}
    content = asked.get("content")
    *before, last = [_words(content)] if isinstance(content, str) else content or [{}]
    offsets = _tokens(tokenizer, last.get("text", "")).offsets
    if not offsets or asked["role"] != "user":
        raise _no_room(excess)
    begin, _ = offsets[max(0, len(offsets) - excess)]
    shorter = {**asked, "content": [*before, _words(last["text"][:begin])]}
    return [shorter if message is asked else message for message in chat]


def _no_room(excess: int) -> InputError:
    return InputError(
        f"Without its prompt the example is still {excess} tokens longer than max_length, and neither pictures nor "
        "answers are cut; pass a larger max_length."
    )
