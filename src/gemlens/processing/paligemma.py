"""PaliGemmaProcessor: pictures, a prompt and perhaps the answer -> what PaliGemma takes.

<image> ... <image> <bos> prompt \\n | suffix <eos>
token type 0: all see each other     | 1: each sees what came before; the labels
"""

from collections.abc import Sequence
from typing import Any

from gemlens.errors import InputError
from gemlens.processing.batch import BatchFeature
from gemlens.processing.chat.chat_template import Prompt, write_paligemma
from gemlens.processing.encoding import FinishedRow, Tokens, cut, entries, lengths_of, room_of, tokens_of
from gemlens.processing.processor import Asked, Pictures, Processor, Template, count, is_list, nested

IMAGE_TOKEN = "<image>"
LOCATIONS = tuple(f"<loc{number:04}>" for number in range(1024))
SEGMENTS = tuple(f"<seg{number:03}>" for number in range(128))


class PaliGemmaProcessor(Processor):
    """Prepares pictures, prompts and answers for PaliGemma and PaliGemma 2.

    A tokenizer that lacks `<image>`, `<loc0000>` to `<loc1023>` or `<seg000>` to `<seg127>` gets them, the last two
    kinds as ordinary words that decoding keeps. It no longer adds `<bos>` and `<eos>` by itself.

    Args:
        image_processor: a `SiglipImageProcessor` with `image_seq_length`, the number of tokens per picture.
        tokenizer: a `GemmaTokenizerFast`.
        chat_template: Jinja text, or {name: text}; None: one message is its pictures, then its text.

    Raises:
        InputError: a part is missing, in the wrong order, or lacks `image_seq_length`.
    """

    _write = staticmethod(write_paligemma)

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Template = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template)
        if not isinstance(getattr(image_processor, "image_seq_length", None), int):
            raise InputError(
                "The image processor has no image_seq_length, the number of tokens per picture; pass it when you make "
                "one, as in SiglipImageProcessor(image_seq_length=256)."
            )
        self.image_seq_length = image_processor.image_seq_length
        if getattr(tokenizer, "image_token", None) is None:
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
            self.image_token = IMAGE_TOKEN
        else:
            self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        tokenizer.add_tokens([*LOCATIONS, *SEGMENTS])
        tokenizer.add_bos_token = False
        tokenizer.add_eos_token = False

    def __call__(self, images: Any = None, text: Any = None, **keywords: Any) -> BatchFeature:
        """Pictures and prompts -> `input_ids`, `attention_mask`, `token_type_ids`, `pixel_values`; `labels`.

        Args:
            images: one picture; a list, one per prompt; or a list of lists, several per prompt, empty or None for a
                prompt without. Where prompts say `<image>`, a list is in the order of these. A picture is whatever
                `open_picture` takes.
            text: one prompt or a list; None: the empty prompt, which asks for a caption. Pictures stand first, or,
                if any prompt of the call says `<image>`, where it does.
            keywords: `suffix`, the answers to learn, which give `labels`: their ids, their `<eos>`, and -100 for
                everything else; more of the text (`padding`, `truncation`, `max_length`, `padding_side`,
                `return_tensors` and what else `TextArguments` lists; `add_special_tokens` changes nothing); of the
                pictures (what the image processor takes); or both in `text_kwargs` and `images_kwargs`. Truncation
                shortens the prompt, or with "only_second" the suffix, but leaves pictures, line break and `<eos>`.

        Raises:
            InputError: no picture came, texts, pictures and suffixes do not fit, there is no room for what may not be
                cut, or a keyword is unknown or came twice.
            PictureError: a picture is damaged or may not be fetched.
        """
        asked = self._asked(keywords)
        if images is None:
            raise InputError("No images came; PaliGemma answers about pictures, so pass images=.")
        by_prompt = nested(images)
        if text is None:
            text = [""] * (len(by_prompt) if by_prompt else len(images) if is_list(images) else 1)
        prompts = self._prompts(text, asked.text.split_special_tokens)
        if not any(self.image_token in prompt.text for prompt in prompts):
            pictures = self._one_each(images, by_prompt, len(prompts))
            prompts = [
                Prompt(self.image_token * len(each) + prompt.text, guard=prompt.guard)
                for prompt, each in zip(prompts, pictures, strict=True)
            ]
        else:
            pictures = self._as_named(images, by_prompt, prompts)
        return self._batch(prompts, pictures, asked)

    def _one_each(self, images: Any, by_prompt: Pictures | None, prompts: int) -> Pictures:
        """Pictures of prompts that do not say where: of a flat list, one each."""
        pictures = by_prompt or ([[picture] for picture in images] if is_list(images) else [[images]])
        if len(pictures) != prompts:
            hint = "; for several pictures of one text pass images=[[first, second]]" if by_prompt is None else ""
            raise InputError(f"{count(prompts, 'text')} and pictures for {len(pictures)} came{hint}.")
        return pictures

    def _as_named(self, images: Any, by_prompt: Pictures | None, prompts: list[Prompt]) -> Pictures:
        """Pictures of prompts that say `<image>`: of a flat list, in the order of these."""
        named = [prompt.text.count(self.image_token) for prompt in prompts]
        if by_prompt is None:
            flat = iter(images if is_list(images) else [images])
            by_prompt = [[picture for _, picture in zip(range(number), flat, strict=False)] for number in named]
            by_prompt[-1] += flat  # too many: the check of the last prompt says so
        if len(by_prompt) != len(prompts):
            raise InputError(f"{count(len(prompts), 'text')} and pictures for {len(by_prompt)} came.")
        return by_prompt

    def _batch(self, prompts: list[Prompt], pictures: Pictures, asked: Asked) -> BatchFeature:
        for number, (prompt, each) in enumerate(zip(prompts, pictures, strict=True)):
            named = prompt.text.count(self.image_token)
            if named != len(each):
                raise InputError(
                    f"Text {number + 1} names {count(named, 'picture')} but {len(each)} came; write "
                    f"'{self.image_token}' once per picture, or nowhere."
                )
        suffixes = self._suffixes(asked.text.suffix, len(prompts))
        rows = [
            self._row(prompt, suffix, asked, number)
            for number, (prompt, suffix) in enumerate(zip(prompts, suffixes, strict=True))
        ]
        text = entries(self.tokenizer, rows, asked.text, self.image_token_id, asked.masks)
        flat = [picture for each in pictures for picture in each]
        if flat:
            found = self.image_processor(flat, return_tensors=asked.text.return_tensors, **asked.images)
            text["pixel_values"] = found["pixel_values"]
        return BatchFeature.make(text, asked.text.return_tensors)

    def _suffixes(self, suffix: Any, prompts: int) -> Sequence[str | None]:
        if suffix is None:
            return [None] * prompts
        suffixes = [suffix] if isinstance(suffix, str) else suffix
        if not isinstance(suffixes, (list, tuple)) or not all(isinstance(each, str) for each in suffixes):
            raise InputError(f"suffix must be a text or a list of texts, but a {type(suffix).__name__} came.")
        if len(suffixes) != prompts:
            raise InputError(f"{count(prompts, 'text')} but {len(suffixes)} of suffix came; pass one per text.")
        return suffixes

    def _row(self, prompt: Prompt, suffix: str | None, asked: Asked, number: int) -> FinishedRow:
        head, body = self._parts(prompt)
        answer, closing = Tokens(), Tokens()
        if suffix is not None:
            split = asked.text.split_special_tokens is not False  # an answer is data: its control tokens stay text
            answer = tokens_of(self.tokenizer, Prompt(suffix), split)
            closing = Tokens.added([self.tokenizer.eos_token_id])
        lengths = lengths_of(self.tokenizer, asked.text)
        room = room_of(lengths)
        if room is not None:
            side = asked.text.truncation_side or self.tokenizer.truncation_side
            second = lengths.truncation == "only_second"
            if second and suffix is None:
                raise InputError("truncation='only_second' cuts the suffix, but none came.")
            fixed = len(head) + len(closing) + (len(body) if second else 1 + len(answer))
            if room < fixed + second:
                raise InputError(
                    f"Text {number + 1} needs {fixed + second} tokens for what may not be cut ({self._uncut(second)}), "
                    f"but max_length={room}; pass a larger max_length or truncation=False."
                )
            if second:
                answer = cut(answer, room - fixed, side)
            else:
                body = cut(body[:-1], room - fixed, side) + body[-1:]
        prefix, end = head + body, answer + closing
        labels = None if suffix is None else [-100] * len(prefix) + end.ids
        return FinishedRow(prefix + end, [0] * len(prefix) + [1] * len(end), labels, (0, len(closing)))

    @staticmethod
    def _uncut(second: bool) -> str:
        return "pictures, prompt, one token of the suffix, <eos>" if second else "pictures, <bos>, line break, suffix"

    def _parts(self, prompt: Prompt) -> tuple[Tokens, Tokens]:
        """Everything up to `<bos>`, which stands behind the last picture, and the prompt with its line break."""
        *before, last = prompt.text.split(self.image_token)
        head = Tokens()
        for piece in before:
            if piece:
                head += tokens_of(self.tokenizer, self._like(prompt, piece))
            head += Tokens.added([self.image_token_id] * self.image_seq_length)
        head += Tokens.added([self.tokenizer.bos_token_id])
        last = last.removeprefix(self.tokenizer.bos_token)
        return head, tokens_of(self.tokenizer, self._like(prompt, f"{last}\n"))

    @staticmethod
    def _like(prompt: Prompt, text: str) -> Prompt:
        return Prompt(text, (), prompt.guard, prompt.start, prompt.end)
