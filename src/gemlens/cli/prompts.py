"""What a person gives -> what the model reads: texts, messages and pictures -> Inputs.

Message("user", "What is this?", pictures)  -> Reader.conversation, by the checkpoint's chat template
a prompt as it is, and pictures             -> Reader.prompt
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemlens.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from gemlens.processing.gemma3 import Gemma3Processor
    from gemlens.processing.paligemma import PaliGemmaProcessor
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast


@dataclass(frozen=True)
class Picture:
    """A picture that was opened, and what the person called it."""

    source: str
    image: "Image"

    @classmethod
    def open(cls, source: str) -> "Picture":
        """Opens a path, or fetches an http(s) URL: who writes one here wants that.

        Raises:
            PictureError: it is damaged, too large or of no known kind, or may not be fetched.
        """
        from gemlens.processing.pictures.pictures import open_picture

        return cls(source, open_picture(source, allow_urls=True))


@dataclass(frozen=True)
class Message:
    """What one side said: `role` is "system", "user" or "assistant"."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()

    def as_template_wants(self) -> dict[str, Any]:
        """The message as chat templates see it: pictures first."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture.image} for picture in self.pictures]
        return {"role": self.role, "content": [*parts, {"type": "text", "text": self.text}]}


@dataclass(frozen=True)
class Inputs:
    """What a model reads: ids [1, S], and the pixels [I, C, height, width] of its pictures."""

    input_ids: "Tensor"
    pixel_values: "Tensor | None" = None


class Reader:
    """Reads prompts for one model.

    Args:
        reader: its processor, or its tokenizer if it takes no pictures.

    Attributes:
        tokenizer: in either case.
    """

    def __init__(self, reader: "PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast") -> None:
        from gemlens import GemmaTokenizerFast

        self.processor: PaliGemmaProcessor | Gemma3Processor | None = None
        if isinstance(reader, GemmaTokenizerFast):
            self.tokenizer = reader
        else:
            self.processor, self.tokenizer = reader, reader.tokenizer

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint says how its conversations are written, as instruction-tuned ones do."""
        own = None if self.processor is None else self.processor.chat_template
        return bool(own or self.tokenizer.chat_template)

    @property
    def takes_conversations(self) -> bool:
        """Whether more than one message can be read at once: PaliGemma reads one."""
        from gemlens import PaliGemmaProcessor

        return not isinstance(self.processor, PaliGemmaProcessor)

    def check_takes_pictures(self) -> "PaliGemmaProcessor | Gemma3Processor":
        """The processor.

        Raises:
            InputError: the model takes no pictures.
        """
        if self.processor is None:
            raise InputError("This model reads text only, but a picture came; leave it out, or use another model.")
        return self.processor

    @property
    def picture_mark(self) -> str:
        """What stands for a picture in a prompt.

        Raises:
            InputError: the model takes no pictures.
        """
        from gemlens import Gemma3Processor

        processor = self.check_takes_pictures()
        return str(processor.boi_token if isinstance(processor, Gemma3Processor) else processor.image_token)

    def prompt(self, text: str, pictures: Sequence[Picture] = (), *, control_tokens_act: bool = True) -> Inputs:
        """A prompt as it is. Pictures stand where it has their marks, or, if it has none, in front.

        Args:
            text: of the prompt.
            pictures: in the order of their marks.
            control_tokens_act: False keeps `<end_of_turn>` and the like, where the prompt spells them out, text.

        Raises:
            InputError: pictures and marks do not fit, or the model takes no pictures.
        """
        if pictures and self.picture_mark not in text:
            text = self.picture_mark * len(pictures) + text
        if self.processor is None:
            ids = self.tokenizer(text, return_tensors="pt", split_special_tokens=not control_tokens_act)["input_ids"]
            return Inputs(ids)
        if not pictures and not self.takes_conversations:
            raise InputError(
                "PaliGemma answers about pictures, and none came; add --image PATH, or /image PATH in a chat."
            )
        images = [[picture.image for picture in pictures]] if pictures else None
        settings = {"return_tensors": "pt", "split_special_tokens": not control_tokens_act}
        batch = self.processor(images=images, text=text, **settings)
        return Inputs(batch["input_ids"], batch.get("pixel_values"))

    def conversation(self, messages: Sequence[Message]) -> Inputs:
        """Messages as the checkpoint's chat template writes them, with the model's turn opened.

        Raises:
            InputError: the template refuses them, or they have pictures and the model takes none.
        """
        written = [message.as_template_wants() for message in messages]
        if self.processor is None:
            if any(message.pictures for message in messages):
                self.check_takes_pictures()
            ids = self.tokenizer.apply_chat_template(written, return_tensors="pt", add_generation_prompt=True)
            return Inputs(ids)
        batch = self.processor.apply_chat_template(
            written, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        return Inputs(batch["input_ids"], batch.get("pixel_values"))
