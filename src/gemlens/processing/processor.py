"""What `PaliGemmaProcessor` and `Gemma3Processor` share: their parts, chats, decoding.

    texts and pictures   -> __call__            \\
                                                 prompts, pictures by prompt -> `_batch` -> BatchFeature
    conversations        -> apply_chat_template /

Files are processor_files.py's, keywords arguments.py's, token ids encoding.py's.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from gemlens.checkpoints.hub import Origin
from gemlens.errors import InputError
from gemlens.processing import processor_files
from gemlens.processing.arguments import FAST_IMAGE_NAMES, IMAGE_NAMES, TEXT_NAMES, TextArguments, merged
from gemlens.processing.batch import BatchFeature, check_return_tensors
from gemlens.processing.chat.chat_template import Prompt, Style, write_conversation
from gemlens.processing.chat.messages import is_batch
from gemlens.processing.chat.template_sandbox import marks
from gemlens.processing.encoding import control_tokens

Pictures = list[list[Any]]  # by prompt
Template = str | dict[str, str] | None


@dataclass(frozen=True)
class Asked:
    """One call's settings: for texts, for pictures, and whether to mask what the assistant says."""

    text: TextArguments
    images: Mapping[str, Any]
    masks: bool = False


class Processor(ABC):
    """An image processor and a tokenizer, and how a family of models wants their numbers put together.

    Attributes:
        image_processor: pictures -> `pixel_values`.
        tokenizer: text -> ids.
        chat_template: Jinja text, or {name: text}; None: what the tokenizer has where the family uses it, or our own.
        image_token: what marks a picture in a text; `image_token_id` is the token that a picture's vectors replace.
        image_seq_length: tokens per picture.
    """

    attributes: ClassVar[tuple[str, ...]] = ("image_processor", "tokenizer")
    image_token: str
    image_token_id: int
    image_seq_length: int
    _image_names: ClassVar[Sequence[str]] = IMAGE_NAMES
    _without: ClassVar[Sequence[str]] = ()  # text arguments that this family does not have
    _stored_names: ClassVar[Sequence[str]] = ()  # what processor_config.json holds
    _write: ClassVar[Callable[..., str]]  # a conversation in the family's own format
    _tokenizers_template: ClassVar[bool] = False  # whether the tokenizer's chat template is meant for the family

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Template) -> None:
        for name, part, needed in (
            ("image_processor", image_processor, "preprocess"),
            ("tokenizer", tokenizer, "backend_tokenizer"),
        ):
            if part is None:
                own = type(self).__name__
                raise InputError(f"The {name} of this {own} is missing; pass it, or use {own}.from_pretrained.")
            if not hasattr(type(part), needed):  # a tokenizer itself may build its backend when asked
                raise InputError(f"A {type(part).__name__} came as {name}; pass image_processor first, then tokenizer.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template

    @abstractmethod
    def _batch(self, prompts: list[Prompt], pictures: Pictures, asked: Asked) -> BatchFeature:
        """Prompts with as many picture marks as they have pictures -> what the model takes."""

    # -- files ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        use_fast: bool | None = None,
        **settings: Any,
    ) -> Self:
        """The processor of a folder or a hub repository, saved by this library or by transformers.

        Args:
            pretrained_model_name_or_path: a folder, or a repository id.
            revision: branch, tag or commit of the repository.
            subfolder: folder inside it.
            token: access token of the hub; None uses the stored one.
            cache_dir: where downloads are kept.
            local_files_only: do not ask the hub.
            use_fast: whether the image processor is the fast one; None: the one that was saved.
            settings: of the processor, the tokenizer or the image processor, instead of the stored ones.

        Raises:
            InputError: a setting that none of the three has.
            CheckpointError: files are missing or damaged, or describe another family.
        """
        where: dict[str, Any] = {"revision": revision, "subfolder": subfolder, "token": token, "cache_dir": cache_dir}
        where["local_files_only"] = local_files_only
        origin = Origin(pretrained_model_name_or_path, **where)
        own = {name: settings.pop(name) for name in cls._stored_names if name in settings}
        template = settings.pop("chat_template", None)
        stored = processor_files.read(origin, cls.__name__)
        parts = processor_files.read_parts(pretrained_model_name_or_path, where, use_fast, settings)
        known = {name: stored.settings[name] for name in cls._stored_names if name in stored.settings}
        return cls(*parts, chat_template=template or stored.chat_template, **{**known, **own})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Writes the files that this library and transformers read; gives their paths.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        written = [
            *self.tokenizer.save_pretrained(save_directory),
            *self.image_processor.save_pretrained(save_directory),
        ]
        return list(
            dict.fromkeys([*written, *processor_files.write(save_directory, self.to_dict(), self.chat_template)])
        )

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        return {"processor_class": type(self).__name__, **{name: getattr(self, name) for name in self._stored_names}}

    # -- chats ---------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **keywords: Any,
    ) -> Any:
        """A conversation, or several, as the text that the model continues, or as what the model takes.

        Messages are `{"role": "user", "content": "Hello"}`; instead of a text, `content` may be a list of
        `{"type": "text", "text": ...}` and `{"type": "image", "url": ...}`, with `path`, `image` (whatever
        `open_picture` takes) or `base64` instead of `url`. Neighbours of one role are merged.

        Args:
            conversation: messages, or a list of conversations.
            chat_template: Jinja text, or the name of one of the checkpoint's; None: the checkpoint's, or our own.
            tokenize: False gives the text.
            return_dict: with `tokenize`, everything instead of the `input_ids` alone.
            add_generation_prompt: opens the turn of the model.
            continue_final_message: leaves the last message open, to be continued.
            return_assistant_tokens_mask: adds `assistant_masks` [B, T]: 1 for what the assistant says.
            tools: passed to the template.
            documents: passed to the template.
            keywords: arguments of a call, such as `do_pan_and_scan`, `padding` or `return_tensors`;
                `allow_urls=False` keeps pictures from being fetched; `split_special_tokens=False` lets control tokens
                that are written out in a message act as such; variables that the template names.

        Returns:
            A text, or one per conversation; with `tokenize` rows of ids [B][T] or a tensor, or a BatchFeature.

        Raises:
            InputError: a message, the template or an argument is wrong.
            PictureError: a picture is damaged or may not be fetched.
        """
        template = self._template(chat_template)
        names = set(re.findall(r"[A-Za-z_]\w*", template or ""))
        variables = {name: keywords.pop(name) for name in [*keywords] if name in names and not self._takes(name)}
        asked = self._asked(keywords, tokenize and return_assistant_tokens_mask)
        variables |= {"tools": tools, "documents": documents}
        protected = asked.text.split_special_tokens is not False
        style = Style(
            template=template,
            write=type(self)._write,
            special_tokens=self._named_tokens(),
            control_tokens=[*control_tokens(self.tokenizer), self.image_token] if protected else (),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            mark_assistant=return_assistant_tokens_mask,
            variables=variables,
        )
        several = is_batch(conversation)
        prompts = [write_conversation(each, style) for each in (conversation if several else [conversation])]
        if not tokenize:
            texts = [prompt.plain for prompt in prompts]
            return texts if several else texts[0]
        for number, prompt in enumerate(prompts):
            if any(picture is None for picture in prompt.pictures):
                raise InputError(
                    f"Conversation {number + 1} has a picture without 'url', 'path', 'image' or 'base64', so there is "
                    "nothing to look at; add one, or pass tokenize=False."
                )
        # A template writes its own <bos>, or means that there is none.
        bos = self.tokenizer.bos_token
        if bos and prompts[0].plain.startswith(bos):
            asked = replace(asked, text=replace(asked.text, add_special_tokens=False))
        batch = self._batch(prompts, [list(prompt.pictures) for prompt in prompts], asked)
        return batch if return_dict else batch["input_ids"]

    def _template(self, asked: str | None) -> str | None:
        """The Jinja text to use; None for our own writing."""
        stored: Template = self.chat_template
        if stored is None and self._tokenizers_template:
            stored = getattr(self.tokenizer, "chat_template", None)
        if not isinstance(stored, dict):
            return asked if asked is not None else stored
        name = "default" if asked is None else asked
        if name in stored:
            return stored[name]
        if asked is None:
            raise InputError(
                f"There are several chat templates; pass chat_template=, one of {', '.join(sorted(stored))}."
            )
        return asked

    def _named_tokens(self) -> dict[str, str]:
        named = self.tokenizer.special_tokens_map
        return {name: token for name, token in named.items() if isinstance(token, str)}

    # -- arguments -----------------------------------------------------------------------------------------------------

    def _asked(self, keywords: Mapping[str, Any], masks: bool = False) -> Asked:
        """What a call asks for.

        Raises:
            InputError: a keyword is unknown or came twice.
        """
        text, images = merged(
            keywords, getattr(self.tokenizer, "init_kwargs", {}), self._all_image_names, self._without
        )
        check_return_tensors(text.return_tensors)
        return Asked(text, images, masks)

    def _takes(self, name: str) -> bool:
        return name in self.argument_names or name.endswith("_kwargs")

    @property
    def argument_names(self) -> list[str]:
        """Names of the keywords that a call takes."""
        return [*(name for name in TEXT_NAMES if name not in self._without), *self._all_image_names]

    @property
    def _all_image_names(self) -> list[str]:
        fast = FAST_IMAGE_NAMES if getattr(self.image_processor, "is_fast", False) else ()
        return [*self._image_names, *fast]

    def _prompts(self, text: Any, split: bool | None) -> list[Prompt]:
        """The texts of a call; `split` guards their control tokens, but not the marks of pictures.

        Raises:
            InputError: it is no text and no list of texts.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(each, str) for each in texts):
            raise InputError(
                f"text must be a text or a list of texts, but a {type(text).__name__} of other things came."
            )
        if not split:
            return [Prompt(each) for each in texts]
        (guard,) = marks(1, *texts)
        letters = {token[0] for token in control_tokens(self.tokenizer)}
        mark = self._picture_mark
        written = []
        for each in texts:
            pieces = each.split(mark)
            for letter in letters:
                pieces = [piece.replace(letter, letter + guard) for piece in pieces]
            written.append(Prompt(mark.join(pieces), guard=guard))
        return written

    @property
    def _picture_mark(self) -> str:
        """What stands for a picture in a prompt's text."""
        return self.image_token

    # -- back to text --------------------------------------------------------------------------------------------------

    def decode(self, *arguments: Any, **named: Any) -> str:
        """Text of one row of ids; arguments as in the tokenizer's `decode`."""
        return str(self.tokenizer.decode(*arguments, **named))

    def batch_decode(self, *arguments: Any, **named: Any) -> list[str]:
        """Texts of several rows of ids; arguments as in the tokenizer's `batch_decode`."""
        return list(self.tokenizer.batch_decode(*arguments, **named))

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **named: Any
    ) -> list[str]:
        """Texts of what `generate` gave, [B, T] or [T]."""
        rows = generated_outputs
        single = getattr(rows, "ndim", None) == 1 or (
            isinstance(rows, list) and bool(rows) and isinstance(rows[0], int)
        )
        return self.batch_decode([rows] if single else rows, skip_special_tokens=skip_special_tokens, **named)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call gives."""
        return list(dict.fromkeys([*self.tokenizer.model_input_names, "token_type_ids", "pixel_values"]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.image_processor).__name__}, {self.tokenizer!r})"


def is_list(images: Any) -> bool:
    """Whether these are several pictures: a list, or an array of four axes."""
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


def nested(images: Any) -> Pictures | None:
    """Pictures by prompt, if they are passed so: a list of lists, None among them for no picture; else None.

    Raises:
        InputError: pictures and lists are mixed.
    """
    if not isinstance(images, (list, tuple)) or not any(is_list(each) or each is None for each in images):
        return None
    if not all(is_list(each) or each is None for each in images):
        raise InputError("images mixes pictures and lists of pictures; pass one list of pictures per text.")
    return [list(each) if each is not None else [] for each in images]


def count(number: int, noun: str) -> str:
    """A number and its noun, as in "1 picture"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
