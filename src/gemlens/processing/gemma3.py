"""Gemma3Processor: texts with `<start_of_image>` and their pictures, or conversations -> what Gemma 3 takes.

prompt -> [pan and scan: one mark per crop] -> each mark with blank lines around it -> ids
       -> `image_seq_length` picture tokens behind each <start_of_image>, then <end_of_image>
pictures -> pixel_values [I, 3, height, width], each picture before its crops
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from gemlens.errors import InputError
from gemlens.processing.arguments import IMAGE_NAMES
from gemlens.processing.batch import BatchFeature
from gemlens.processing.chat.chat_template import Prompt, write_gemma3
from gemlens.processing.encoding import FinishedRow, Tokens, around, cut, entries, lengths_of, room_of, tokens_of
from gemlens.processing.processor import Asked, Pictures, Processor, Template, count, is_list, nested

_PAN_AND_SCAN = tuple(
    f"{start}{name}"
    for start, names in (
        ("do_", ("pan_and_scan",)),
        ("pan_and_scan_", ("min_crop_size", "max_num_crops", "min_ratio_to_activate")),
    )
    for name in names
)


class Gemma3Batch(BatchFeature):
    """What a Gemma3Processor gives. Beside the entries, which are what the model takes, it knows `num_crops`.

    Attributes:
        num_crops: by prompt, the crops of each of its pictures: a prompt has `sum(1 + n for n in num_crops[b])` rows
            of `pixel_values`.
    """

    num_crops: list[list[int]]


class Gemma3Processor(Processor):
    """Prepares texts, pictures and conversations for Gemma 3.

    Args:
        image_processor: a `Gemma3ImageProcessor` or `Gemma3ImageProcessorFast`, whose settings hold for every call.
        tokenizer: a `GemmaTokenizerFast` with `image_token`, `boi_token` and `eoi_token`.
        chat_template: Jinja text, or {name: text}; None: the tokenizer's, or our own writing of Gemma 3's format.
        image_seq_length: tokens per picture or crop.

    Raises:
        InputError: a part is missing, in the wrong order, or lacks the picture tokens.
    """

    _image_names: ClassVar[Sequence[str]] = (*IMAGE_NAMES, *_PAN_AND_SCAN)
    _without: ClassVar[Sequence[str]] = ("suffix",)
    _stored_names: ClassVar[Sequence[str]] = ("image_seq_length",)
    _write = staticmethod(write_gemma3)
    _tokenizers_template: ClassVar[bool] = True

    def __init__(
        self, image_processor: Any, tokenizer: Any, chat_template: Template = None, image_seq_length: int = 256
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template)
        if isinstance(image_seq_length, bool) or not isinstance(image_seq_length, int) or image_seq_length < 1:
            raise InputError(f"image_seq_length={image_seq_length!r}: pass a number of tokens, at least 1.")
        missing = [name for name in ("image_token", "boi_token", "eoi_token") if not getattr(tokenizer, name, None)]
        if missing:
            raise InputError(
                f"The tokenizer has no {' and no '.join(missing)}; use the tokenizer of a Gemma 3 with pictures."
            )
        self.image_seq_length = image_seq_length
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.image_token_id
        self.boi_token = tokenizer.boi_token
        self.eoi_token = tokenizer.eoi_token

    @property
    def _picture_mark(self) -> str:
        return str(self.boi_token)

    @property
    def full_image_sequence(self) -> str:
        """What one picture becomes in a text."""
        return f"\n\n{self.boi_token}{self.image_token * self.image_seq_length}{self.eoi_token}\n\n"

    def __call__(self, images: Any = None, text: Any = None, **keywords: Any) -> Gemma3Batch:
        """Texts and pictures -> `input_ids`, `attention_mask`, `token_type_ids` (1: picture), `pixel_values`.

        Args:
            images: one picture; a list of pictures, all of one text; or a list of lists, one per text, empty or None
                for a text without. A picture is whatever `open_picture` takes.
            text: one text or a list, with `<start_of_image>` where a picture belongs; where a text has none, its
                pictures stand in front, with a warning. None: the pictures alone.
            keywords: of the text (`padding`, `truncation`, `max_length`, `padding_side`, `return_tensors` and what else
                `TextArguments` lists), of the pictures (`do_pan_and_scan` and what else the image processor takes), or
                both in `text_kwargs` and `images_kwargs`.

        Raises:
            InputError: nothing came, texts and pictures do not fit, truncation would cut a picture, or a keyword is
                unknown or came twice.
            PictureError: a picture is damaged or may not be fetched.
        """
        asked = self._asked(keywords)
        if text is None and images is None:
            raise InputError("Neither text nor images came; pass one of them or both.")
        pictures = None if images is None else nested(images)
        if images is not None and pictures is None:
            pictures = [list(images) if is_list(images) else [images]]
        if text is None:
            text = [self._marks(len(each)) for each in pictures or []]
        prompts = self._prompts(text, asked.text.split_special_tokens)
        pictures = pictures if pictures is not None else [[] for _ in prompts]
        if len(pictures) != len(prompts):
            raise InputError(
                f"{count(len(prompts), 'text')} and pictures for {len(pictures)} came; pass one list of pictures per "
                "text, as in images=[[first], [second, third]]."
            )
        return self._batch(self._naming(prompts, pictures), pictures, asked)

    def _marks(self, pictures: int) -> str:
        return " ".join([self.boi_token] * pictures)

    def _naming(self, prompts: list[Prompt], pictures: Pictures) -> list[Prompt]:
        """The prompts, with marks in front of those that name no picture although some came."""
        named = list(prompts)
        for number, (prompt, each) in enumerate(zip(prompts, pictures, strict=True)):
            if each and self.boi_token not in prompt.text:
                warnings.warn(
                    f"Text {number + 1} names no picture but {len(each)} came, so they stand before it; write "
                    f"'{self.boi_token}' where a picture belongs.",
                    UserWarning,
                    stacklevel=3,
                )
                named[number] = replace(prompt, text=self._marks(len(each)) + prompt.text)
        return named

    def _batch(self, prompts: list[Prompt], pictures: Pictures, asked: Asked) -> Gemma3Batch:
        for number, (prompt, each) in enumerate(zip(prompts, pictures, strict=True)):
            self._check_count(prompt, len(each), number)
        data, num_crops = self._pixels(pictures, asked)
        rows = [
            self._row(prompt, crops, asked, number)
            for number, (prompt, crops) in enumerate(zip(prompts, num_crops, strict=True))
        ]
        text = entries(self.tokenizer, rows, asked.text, self.image_token_id, asked.masks)
        batch = Gemma3Batch.make({**text, **data}, asked.text.return_tensors)
        batch.num_crops = num_crops
        return batch

    def _check_count(self, prompt: Prompt, pictures: int, number: int) -> None:
        marks = prompt.text.count(self.boi_token)
        if marks != pictures:
            raise InputError(
                f"Text {number + 1} names {count(marks, 'picture')} but {pictures} came; write '{self.boi_token}' once "
                "per picture."
            )
        if self.image_token in prompt.text:
            raise InputError(
                f"Text {number + 1} has '{self.image_token}', which stands for a part of a picture; write "
                f"'{self.boi_token}' once per picture."
            )

    def _pixels(self, pictures: Pictures, asked: Asked) -> tuple[dict[str, Any], list[list[int]]]:
        """`pixel_values` of all pictures in order, and the crops of each by prompt."""
        flat = [picture for each in pictures for picture in each]
        if not flat:
            return {}, [[] for _ in pictures]
        found = self.image_processor(flat, return_tensors=asked.text.return_tensors, **asked.images)
        crops = iter([int(number) for number in found["num_crops"]])
        return {"pixel_values": found["pixel_values"]}, [[next(crops) for _ in each] for each in pictures]

    def _row(self, prompt: Prompt, crops: list[int], asked: Asked, number: int) -> FinishedRow:
        tokens = self._with_pictures(tokens_of(self.tokenizer, self._written(prompt, crops)))
        before, after = around(self.tokenizer, tokens, asked.text.add_special_tokens)
        room = room_of(lengths_of(self.tokenizer, asked.text))
        if room is not None:
            whole, side = tokens, asked.text.truncation_side or self.tokenizer.truncation_side
            room -= len(before) + len(after)
            opening = not before and tokens.ids[:1] == [self.tokenizer.bos_token_id] and side == "left"
            head = tokens[:1] if opening else Tokens()  # a <bos> of the text stays where the start is cut
            tokens = head + cut(tokens[len(head) :], room - len(head), side)
            self._check_whole(whole, tokens, number, asked.text.max_length)
        tokens = before + tokens + after
        types = [int(token == self.image_token_id) for token in tokens.ids]
        return FinishedRow(tokens, types, around=(len(before), len(after)))

    def _written(self, prompt: Prompt, crops: list[int]) -> Prompt:
        """Each mark of a picture, or of a picture and its crops, with the words and blank lines around it."""
        first, *pieces = prompt.text.split(self.boi_token)
        text = [first]
        one = f"\n\n{self.boi_token}{self.eoi_token}\n\n"
        for number, piece in zip(crops, pieces, strict=True):
            if number:
                text.append(f"Here is the original image {one} and here are some crops to help you see better ")
            text += [" ".join([one] * (number or 1)), piece]
        return Prompt("".join(text), (), prompt.guard, prompt.start, prompt.end)

    def _with_pictures(self, tokens: Tokens) -> Tokens:
        """The tokens with `image_seq_length` picture tokens behind each `<start_of_image>`."""
        boi = self.tokenizer.boi_token_id
        places = [place + 1 for place, token in enumerate(tokens.ids) if token == boi]
        filled, begin = Tokens(), 0
        for place in places:
            filled += tokens[begin:place] + Tokens.added([self.image_token_id] * self.image_seq_length)
            begin = place
        return filled + tokens[begin:]

    def _check_whole(self, whole: Tokens, kept: Tokens, number: int, max_length: int | None) -> None:
        for token in (self.image_token_id, self.tokenizer.boi_token_id, self.tokenizer.eoi_token_id):
            if whole.ids.count(token) != kept.ids.count(token):
                raise InputError(
                    f"Text {number + 1} with its pictures has {len(whole)} tokens, and cutting it to "
                    f"max_length={max_length} would cut a picture; pass a larger max_length or truncation=False."
                )
