"""What the two tasks that write text share: settings, batches, `generate`, and the records that a call gives.

Ask (a text or a conversation, pictures) -> `_encode` -> ids, pixels -> model.generate -> ids -> record
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, ClassVar

from torch import Tensor

from gemlens.errors import InputError
from gemlens.generation.config import DEFAULTS, GenerationConfig
from gemlens.models.generative import GenerativeModel
from gemlens.pipelines.task import Pipeline, batches, sort_keywords
from gemlens.processing.batch import BatchFeature
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

Record = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

# Arguments of `generate` besides the settings; those that ask for more than ids have no place in a record.
_GENERATE = (
    *(name for name in DEFAULTS if not name.startswith(("output_", "return_"))),
    *("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"),
    *("assistant_model", "seed", "generator", "compile"),
)


@dataclass(frozen=True)
class Ask:
    """One thing to continue.

    Args:
        prompt: a text, or the messages of a conversation.
        pictures: of a text, in order.
    """

    prompt: str | Messages
    pictures: Sequence[Any] = ()


@dataclass(frozen=True)
class Settings:
    """What a call asks for.

    Args:
        batch_size: so many texts or conversations are continued together.
        return_full_text: whether the prompt is part of `generated_text`; None: yes.
        return_tensors: whether to give `generated_token_ids`, prompt and padding included, instead of a text.
        skip_special_tokens: as in `decode`.
        clean_up_tokenization_spaces: as in `decode`; None: the task's default.
        continue_final_message: whether the last message is continued instead of answered; None: if the assistant's.
        encode: arguments of the processor or tokenizer.
        generate: arguments of `generate`.

    Raises:
        InputError: arguments that exclude each other.
    """

    batch_size: int = 1
    return_full_text: bool | None = None
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    continue_final_message: bool | None = None
    encode: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.return_tensors and self.return_full_text is not None:
            raise InputError("return_full_text is about text and return_tensors=True gives ids; pass one of them.")

    def continues(self, ask: Ask) -> bool:
        """Whether the last message of a conversation is to be continued."""
        if isinstance(ask.prompt, str):
            return False
        if self.continue_final_message is not None:
            return self.continue_final_message
        return ask.prompt[-1].get("role") in ("assistant", "model")


_OWN = tuple(each.name for each in fields(Settings) if each.name not in ("encode", "generate"))


class GeneratingPipeline(Pipeline):
    """A pipeline that continues texts and conversations.

    Args:
        model: with a head over the vocabulary.
        encoder: the processor or tokenizer of the model.
        defaults: keywords of a call; see `Settings` for those of both tasks. Beside them every argument of `generate`,
            also in a dict `generate_kwargs`. Where neither the call nor the model's generation_config says it, an
            answer has 256 new tokens.
    """

    generation_defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256}
    cleans_up: ClassVar[bool | None] = None

    model: GenerativeModel
    tokenizer: GemmaTokenizerFast

    @abstractmethod
    def _encode(self, asks: Sequence[Ask], settings: Settings, continues: bool) -> BatchFeature:
        """What the model reads of several texts, or of several conversations: tensors of B rows, padded on the left."""

    @staticmethod
    @abstractmethod
    def encoding_names(encoder: Any) -> Collection[str]:
        """Names of the arguments that `Settings.encode` may hold."""

    @classmethod
    def settings(cls, encoder: Any, keywords: Mapping[str, Any]) -> Settings:
        """What keywords of a call ask for; see `Settings`."""
        given = dict(keywords)
        nested = dict(given.pop("generate_kwargs", None) or {})
        own, generate, encode = sort_keywords(given, _OWN, _GENERATE, cls.encoding_names(encoder), task=cls.task)
        if twice := sorted(nested.keys() & generate.keys()):
            raise InputError(f"{twice[0]!r} came twice, in generate_kwargs and as a keyword of its own; pass it once.")
        return Settings(**own, encode=encode, generate={**generate, **nested})

    def _records(self, asks: Sequence[Ask], settings: Settings) -> list[list[Record]]:
        """The answers to each, several with `num_return_sequences`."""
        found = []
        for continues, group in groupby(asks, settings.continues):  # a chat template is told one or the other
            for batch in batches(list(group), settings.batch_size):
                found += self._answer(batch, settings, continues)
        return found

    def _answer(self, asks: Sequence[Ask], settings: Settings, continues: bool) -> list[list[Record]]:
        inputs = self._encode(asks, settings, continues).to(self.device)
        arguments = dict(settings.generate)
        config = self._config(arguments)
        arguments |= {"generation_config": config, "tokenizer": self.tokenizer, "return_dict_in_generate": False}
        ids = self.model.generate(**inputs, **arguments)
        assert isinstance(ids, Tensor)
        length = inputs["input_ids"].shape[1]
        answers = ids.cpu().view(len(asks), -1, ids.shape[1])  # [B, n, prompt + new]
        return [
            [self._record(ask, row, length, settings, continues) for row in rows]
            for ask, rows in zip(asks, answers, strict=True)
        ]

    def _config(self, arguments: Mapping[str, Any]) -> GenerationConfig:
        """What the call's config says, then the model's, then this task's defaults."""
        given = arguments.get("generation_config") or GenerationConfig()
        said = given.over(self.model.generation_config)
        defaults = dict(self.generation_defaults)
        if "max_length" in {**said.to_dict(), **arguments}:  # max_new_tokens would win over it
            del defaults["max_new_tokens"]
        return said.over(GenerationConfig(**defaults))

    def _record(self, ask: Ask, row: Tensor, length: int, settings: Settings, continues: bool) -> Record:
        if settings.return_tensors:
            return {"generated_token_ids": row}
        cleans_up = settings.clean_up_tokenization_spaces
        text = self.tokenizer.decode(
            row[length:], settings.skip_special_tokens, self.cleans_up if cleans_up is None else cleans_up
        )
        return {"generated_text": text if settings.return_full_text is False else _whole(ask.prompt, text, continues)}


def is_conversation(given: Any) -> bool:
    """Whether these are messages."""
    return isinstance(given, (list, tuple)) and bool(given) and all(isinstance(each, Mapping) for each in given)


def are_conversations(given: Any) -> bool:
    """Whether this is a list of conversations."""
    return isinstance(given, (list, tuple)) and bool(given) and all(map(is_conversation, given))


def _whole(prompt: str | Messages, text: str, continues: bool) -> str | list[Mapping[str, Any]]:
    """The prompt and its answer: a longer text, or a conversation with one message more or a longer last one."""
    if isinstance(prompt, str):
        return prompt + text
    if not continues:
        return [*prompt, {"role": "assistant", "content": text}]
    *earlier, last = prompt
    content = last["content"]
    if isinstance(content, str):
        return [*earlier, {**last, "content": content + text}]
    *parts, end = content
    return [*earlier, {**last, "content": [*parts, {**end, "text": end["text"] + text}]}]
