"""Pictures and text -> text, with PaliGemma, PaliGemma 2 and Gemma 3."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gemlens.errors import InputError
from gemlens.models.auto import AutoModelForImageTextToText
from gemlens.models.generative import GenerativeModel
from gemlens.pipelines.generating import (
    Ask,
    GeneratingPipeline,
    Messages,
    Record,
    Settings,
    are_conversations,
    is_conversation,
)
from gemlens.processing.batch import BatchFeature
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.processor import count, is_list, nested

_SOURCES = ("image", "url", "path", "base64")


class ImageTextToTextPipeline(GeneratingPipeline):
    """Answers to pictures and texts, or to conversations with pictures.

    Args:
        model: a PaliGemma or Gemma 3 with pictures.
        processor: of the model.
        defaults: keywords of a call.
    """

    task = "image-text-to-text"
    models = AutoModelForImageTextToText

    def __init__(
        self, model: GenerativeModel, processor: PaliGemmaProcessor | Gemma3Processor, **defaults: Any
    ) -> None:
        super().__init__(model, processor, **defaults)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor

    def __call__(self, images: Any = None, text: Any = None, **keywords: Any) -> list[Record] | list[list[Record]]:
        """Continues a text, a list of texts, a conversation or a list of conversations.

        Args:
            images: of one text a picture or a list; of several texts one picture or one list per text. A picture is
                whatever `open_picture` takes: a path, a URL, a Pillow image. Of a conversation, the pictures of its
                parts `{"type": "image"}` that have none. A conversation may also stand here instead of in `text`.
            text: what to continue.
            keywords: see `Settings`; `max_new_tokens` and every other argument of `generate`, also in a dict
                `generate_kwargs`; arguments of the processor, such as `do_pan_and_scan` or `allow_urls`.

        Returns:
            A list of records `{"input_text": ..., "generated_text": ...}`; of a list of conversations, or of a list of
            texts without pictures, one such list for each.

        Raises:
            InputError: texts and pictures do not fit, or an argument is wrong.
            PictureError: a picture is damaged or may not be fetched.
            TypeError: a keyword of an unknown name.
        """
        settings = self.settings(self.processor, {**self._defaults, **keywords})
        if text is None and (is_conversation(images) or are_conversations(images)):
            images, text = None, images
        if is_conversation(text):
            return self._records([Ask(_with_pictures(text, _of_one(images)))], settings)[0]
        if are_conversations(text):
            pictures = [[] for _ in text] if images is None else _of_each(images, len(text))
            asks = [Ask(_with_pictures(chat, each)) for chat, each in zip(text, pictures, strict=True)]
            return self._records(asks, settings)
        if isinstance(text, str):
            return self._records([Ask(text, _of_one(images))], settings)[0]
        if not isinstance(text, (list, tuple)) or not text or not all(isinstance(each, str) for each in text):
            raise InputError(
                f"A {type(text).__name__} came as text; pass a text, messages like {{'role': 'user', 'content': "
                "'Hello'}, or a list of one of them."
            )
        if images is None:
            return self._records([Ask(each) for each in text], settings)
        asks = [Ask(each, own) for each, own in zip(text, _of_each(images, len(text)), strict=True)]
        return [record for records in self._records(asks, settings) for record in records]

    @staticmethod
    def encoding_names(encoder: Any) -> Collection[str]:
        """Names of the processor's arguments that shape a prompt."""
        return [name for name in encoder.argument_names if not name.startswith("return_") and name != "suffix"]

    def _encode(self, asks: Sequence[Ask], settings: Settings, continues: bool) -> BatchFeature:
        keywords = {"padding": len(asks) > 1, "padding_side": "left", **settings.encode, "return_tensors": "pt"}
        if isinstance(asks[0].prompt, str):
            pictures = [list(ask.pictures) for ask in asks] if any(ask.pictures for ask in asks) else None
            return self.processor(images=pictures, text=[ask.prompt for ask in asks], **keywords)
        return self.processor.apply_chat_template(
            [ask.prompt for ask in asks],
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=True,
            return_dict=True,
            **keywords,
        )

    def _record(self, ask: Ask, *arguments: Any) -> Record:
        return {"input_text": ask.prompt, **super()._record(ask, *arguments)}


def _of_one(images: Any) -> list[Any]:
    """The pictures of one text or conversation."""
    if images is None:
        return []
    by_text = nested(images)
    if by_text is None:
        return list(images) if is_list(images) else [images]
    if len(by_text) != 1:
        raise InputError(f"One text but {len(by_text)} lists of pictures came; pass one list.")
    return by_text[0]


def _of_each(images: Any, texts: int) -> list[list[Any]]:
    """The pictures of each of several texts or conversations."""
    by_text = [_of_one(each) for each in images] if is_list(images) else [_of_one(images)]
    if len(by_text) != texts:
        raise InputError(f"{count(texts, 'text')} and pictures for {len(by_text)} came; pass one picture or list each.")
    return by_text


def _with_pictures(messages: Messages, pictures: Sequence[Any]) -> list[Mapping[str, Any]]:
    """A copy of the messages, in which parts without a picture have the given ones, in order."""
    rest, given, wanted = iter(pictures), len(pictures), 0

    def filled(part: Any) -> Any:
        nonlocal wanted
        if not isinstance(part, Mapping):
            return part
        if part.get("type") == "image_url" and isinstance(part.get("image_url"), Mapping):  # as other interfaces say
            return {"type": "image", "url": part["image_url"].get("url")}
        if part.get("type") != "image" or any(name in part for name in _SOURCES):
            return part
        wanted += 1
        return {**part, "image": next(rest, None)}

    found = [
        message
        if not isinstance(message.get("content"), (list, tuple))
        else {**message, "content": [filled(part) for part in message["content"]]}
        for message in messages
    ]
    if wanted != given:
        raise InputError(
            f"The messages have {count(wanted, 'part')} {{'type': 'image'}} without a picture, but {given} came."
        )
    return found
