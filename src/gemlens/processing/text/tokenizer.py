"""GemmaTokenizerFast: text -> ids [B, T] and back, on the `tokenizers` library or on pieces alone.

    text -> backend: ids of the text alone -> rows.py: special tokens, truncation, padding -> BatchEncoding

The backend is never given truncation, padding or a post-processor to act on: these are this file's, as plain lists, so
that calls from several threads do not meet in its settings. The file is longer than most because people call all of it
on one object; what does not need that object's state is in the files beside it.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer, processors

from gemlens.checkpoints.hub import Origin
from gemlens.errors import InputError
from gemlens.processing.batch import BatchEncoding, check_return_tensors
from gemlens.processing.text.piece_tokenizer import PieceTokenizer
from gemlens.processing.text.rows import Lengths, Part, Row, columns_of, pad_columns
from gemlens.processing.text.sentencepiece_model import pieces_from_sentencepiece
from gemlens.processing.text.texts import check_unicode, checked_seconds, checked_texts
from gemlens.processing.text.tokenizer_files import read_backend, read_tokenizer, write_tokenizer
from gemlens.processing.text.tokenizer_settings import (
    ADDITIONAL,
    DEFAULTS,
    EXTRA,
    GEMMA,
    check_names,
    check_side,
    check_values,
    names_a_token,
)
from gemlens.processing.text.vocabulary import Vocabulary

# Kept out of what is saved: they describe a machine, or are written anew.
_NOT_SAVED = {"name_or_path", "auto_map", "tokenizer_file", "vocab_file", "special_tokens_map_file", "init_inputs"}


class GemmaTokenizerFast(Vocabulary):
    """The tokenizer of Gemma 1, 2 and 3 and PaliGemma.

    Args:
        vocab_file: a SentencePiece `tokenizer.model`.
        tokenizer_file: a `tokenizer.json`; one of the two, or `tokenizer_object`.
        tokenizer_object: a tokenizer of the `tokenizers` library, which becomes this one's own.
        settings: `add_bos_token`, `add_eos_token`, `padding_side`, `truncation_side`, `model_max_length`,
            `model_input_names`, `clean_up_tokenization_spaces`, `split_special_tokens` (True: control tokens in a text
            stay text), `chat_template`, `additional_special_tokens`, `extra_special_tokens` ({name: token}), and tokens
            by name: `bos_token`, `eos_token`, `unk_token`, `pad_token`, `image_token` and so on.

    Raises:
        InputError: a setting that does not exist or means nothing.
        CheckpointError: a file that cannot be read.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        *,
        tokenizer_object: PieceTokenizer | Tokenizer | None = None,
        **settings: Any,
    ) -> None:
        check_names(settings)
        if tokenizer_object is None:
            if tokenizer_file is not None:
                tokenizer_object = read_backend(Path(tokenizer_file))
            elif vocab_file is not None:
                tokenizer_object = pieces_from_sentencepiece(Path(vocab_file)).tokenizer()
            else:
                raise InputError("Pass tokenizer_file=, vocab_file= or tokenizer_object=, or use from_pretrained.")
        self._start(tokenizer_object, settings)

    def _start(self, backend: PieceTokenizer | Tokenizer, settings: Mapping[str, Any]) -> None:
        """Settings that nobody knows are kept for the next save: other programs may know them."""
        check_values(settings)
        given = {**DEFAULTS, **{name: value for name, value in settings.items() if value is not None}}
        named = {name: settings[name] for name in settings if names_a_token(name)}
        super().__init__(
            backend,
            {**GEMMA, **named, **(settings.get(EXTRA) or {})},
            settings.get(ADDITIONAL) or (),
            bool(given["clean_up_tokenization_spaces"]),
        )
        self.add_bos_token = bool(given["add_bos_token"])
        self.add_eos_token = bool(given["add_eos_token"])
        self.padding_side = str(given["padding_side"])
        self.truncation_side = str(given["truncation_side"])
        self.model_max_length = int(given["model_max_length"])
        self.model_input_names = list(given["model_input_names"])
        self.split_special_tokens = bool(given["split_special_tokens"])
        self.chat_template: str | dict[str, str] | None = given["chat_template"]
        self.name_or_path = str(given["name_or_path"])
        known = {*DEFAULTS, *named, EXTRA, ADDITIONAL}
        self._unknown = {name: value for name, value in settings.items() if name not in known | _NOT_SAVED}
        self._write_template()

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
        gguf_file: str | None = None,
        **settings: Any,
    ) -> Self:
        """The tokenizer of a folder or a hub repository, from `tokenizer.json`, `tokenizer.model` or a GGUF file.

        Args:
            pretrained_model_name_or_path: a folder, or a repository id.
            revision: branch, tag or commit of the repository.
            subfolder: folder inside it.
            token: access token of the hub; None uses the stored one.
            cache_dir: where downloads are kept.
            local_files_only: do not ask the hub.
            gguf_file: name of a GGUF file there, whose vocabulary is used.
            settings: as in the class, instead of the stored ones.

        Raises:
            InputError: a setting that does not exist.
            CheckpointError: no tokenizer there, a damaged one, or one of another family.
        """
        check_names(settings)
        origin = Origin(
            pretrained_model_name_or_path,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        stored = read_tokenizer(origin, gguf_file)
        tokenizer = cls.__new__(cls)
        named = {"name_or_path": os.fspath(pretrained_model_name_or_path)}
        tokenizer._start(stored.backend, {**stored.settings, **named, **settings})
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes the files that transformers opens with the same ids; gives their paths.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        backend = self.backend_tokenizer
        self._write_template()
        return write_tokenizer(save_directory, backend, self.init_kwargs, self.special_tokens_map)

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """All settings, as `tokenizer_config.json` has them."""
        extra = {name: self.special_tokens.get(name) for name in self.special_tokens.extra}
        settings = {name: getattr(self, name) for name in DEFAULTS if name not in _NOT_SAVED}
        if settings["chat_template"] is None:
            del settings["chat_template"]
        return {
            **self._unknown,
            **settings,
            **self.special_tokens.table(),
            EXTRA: extra,
            "tokenizer_class": "GemmaTokenizer",
        }

    def _write_template(self) -> None:
        """Tells the backend where `<bos>` and `<eos>` go; this file does not use it, other readers of its JSON do."""
        before, after = self._around(True)
        ids = {token: self._backend.reader.id_to_token(token) for token in (*before, *after)}
        first, second = (
            [f"{ids[token]}:{number}" for token in before]
            + [f"${part}:{number}"]
            + [f"{ids[token]}:{number}" for token in after]
            for number, part in enumerate("AB")
        )
        self._backend.reader.post_processor = processors.TemplateProcessing(
            single=first, pair=first + second, special_tokens=[(text, token) for token, text in ids.items()]
        )

    # -- text -> ids ---------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Ids of one text or several, each with one `<bos>`: a text that begins with its own gets no second.

        Args:
            text: one text, or a list of them.
            text_pair: a second text for each, which follows it as token type 1.
            add_special_tokens: `<bos>` in front and `<eos>` at the end, where the settings say so.
            padding: False, True or "longest", "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second"; None truncates if `max_length` is
                given without `padding`, as in the reference.
            max_length: of a row; by default the model's limit.
            pad_to_multiple_of: padded rows have a multiple of this length.
            padding_side: "left" or "right"; by default the setting.
            truncation_side: the side that is cut; by default the setting.
            return_tensors: "pt", "np", or None for lists.
            return_token_type_ids: by default if the model takes them.
            return_attention_mask: by default if the model takes it: 1 for text, 0 for padding.
            return_special_tokens_mask: 1 for tokens that no text holds.
            return_offsets_mapping: (start, end) of each token's characters in its text.
            return_length: the numbers of tokens, padding included.
            split_special_tokens: True keeps control tokens that a text spells out as text; by default the setting.

        Returns:
            `input_ids` and what else was asked for: lists for one text, lists of lists or tensors [B, T] for several.

        Raises:
            InputError: arguments that cannot be acted on, or rows of different lengths for a tensor.
        """
        check_return_tensors(return_tensors)
        texts, one = checked_texts("text", text)
        columns = [texts] if text_pair is None else [texts, checked_seconds(texts, text_pair, one)]
        lengths = Lengths.of(padding, truncation, max_length, pad_to_multiple_of, self.model_max_length)
        cut_side = check_side("truncation_side", truncation_side or self.truncation_side)
        pad_side = check_side("padding_side", padding_side or self.padding_side)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        before, after = self._around(add_special_tokens)
        taken = len(columns) * (len(before) + len(after))
        encoded = [self._parts(column, split, return_offsets_mapping, before) for column in columns]
        rows = [Row.join(lengths.cut(parts, taken, cut_side), before, after) for parts in zip(*encoded, strict=True)]
        if length := lengths.padded([len(row.ids) for row in rows]):
            rows = [row.pad(length, pad_side, self._pad_id()) for row in rows]
        data: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        if self._wanted("token_type_ids", return_token_type_ids):
            data["token_type_ids"] = [row.types for row in rows]
        if self._wanted("attention_mask", return_attention_mask):
            data["attention_mask"] = [row.attention for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            data["length"] = [len(row.ids) for row in rows]
        if one and return_tensors is None:
            return BatchEncoding({name: [row] if name == "length" else row for name, (row,) in data.items()})
        return BatchEncoding.make(data, return_tensors)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Rows that were encoded one by one, as one batch; `labels` are padded with -100.

        Args:
            encoded_inputs: lists of rows by name, `input_ids` among them, or one such mapping per row.
            padding: as in a call, as are the other arguments.

        Raises:
            InputError: these are no encoded rows.
        """
        check_return_tensors(return_tensors)
        columns = columns_of(encoded_inputs)
        sizes = [len(row) for row in columns["input_ids"]]
        lengths = Lengths.of(padding, False, max_length, pad_to_multiple_of, self.model_max_length)
        side = check_side("padding_side", padding_side or self.padding_side)
        if self._wanted("attention_mask", return_attention_mask):
            columns.setdefault("attention_mask", [[1] * size for size in sizes])
        if length := lengths.padded(sizes):
            columns = pad_columns(columns, length, side, self._pad_id())
        return BatchEncoding.make(columns, return_tensors)

    def encode(self, text: str, text_pair: str | None = None, **arguments: Any) -> Any:
        """The `input_ids` alone: a list, or [1, T] with `return_tensors`. Arguments as in a call."""
        if not isinstance(text, str):
            raise InputError("encode takes one text; call the tokenizer itself for several.")
        return self(text, text_pair, **arguments)["input_ids"]

    def encode_parts(self, parts: Iterable[tuple[str, bool]], *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text in parts, some by strangers: in parts marked False control tokens stay text.

        Otherwise the same ids as for the joined text; pieces of the vocabulary may reach over the borders of parts.
        For a chat: the template's own words are True, what people wrote is False.
        """
        added = self._backend.reader.get_added_tokens_decoder().values()
        controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
        control = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        stretches, tokens = [""], []  # texts without control tokens of ours, and the control tokens between them
        for may_control, group in groupby(parts, key=lambda part: part[1]):
            text = "".join(text for text, _ in group)
            found = list(control.finditer(text)) if may_control else []
            ends = [0, *(match.end() for match in found)]
            starts = [*(match.start() for match in found), len(text)]
            first, *others = (text[start:end] for start, end in zip(ends, starts, strict=True))
            stretches[-1] += first
            stretches += others
            tokens += self.convert_tokens_to_ids([match[0] for match in found])
        check_unicode(stretches)
        ids: list[int] = []
        before, after = self._around(add_special_tokens)
        for part, token in zip_longest(self._parts(stretches, True, False, ()), tokens):
            ids += part.ids if token is None else [*part.ids, token]
        return [*([] if ids[:1] == before else before), *ids, *after]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = True,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> Any:
        """A conversation, or several, without pictures, as ids or, with `tokenize=False`, as text.

        Arguments are those of a call and of `Processor.apply_chat_template`, where messages are described too. Control
        tokens within what a person wrote stay text. `return_dict` gives everything instead of the `input_ids` alone.

        Raises:
            InputError: a message, the template or an argument is wrong, or there are pictures.
        """
        from gemlens.processing.chat.messages import is_batch
        from gemlens.processing.chat.text_chat import chat_ids, write_chat

        several = is_batch(conversation)
        turns = (chat_template, add_generation_prompt, continue_final_message)
        prompts = [write_chat(self, messages, *turns) for messages in (conversation if several else [conversation])]
        if not tokenize:
            return [prompt.plain for prompt in prompts] if several else prompts[0].plain
        rows = {"input_ids": [chat_ids(self, prompt) for prompt in prompts]}
        batch = self.pad(rows, padding, padding_side=padding_side, return_tensors=return_tensors)
        if not several and return_tensors is None:
            batch = BatchEncoding({name: values[0] for name, values in batch.items()})
        return batch if return_dict else batch["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The pieces of a text, as the vocabulary writes them."""
        ids = self.encode(text, pair, add_special_tokens=add_special_tokens)
        return [str(self._backend.reader.id_to_token(token)) for token in ids]

    def _parts(self, texts: Sequence[str], split: bool, offsets: bool, before: Sequence[int]) -> list[Part]:
        """The tokens of each text; without those that stand `before` it anyway."""
        parts = []
        for ids, places in self._backend.encode(texts, split, offsets):
            own = len(before) if before and ids[: len(before)] == before else 0
            parts.append(Part(ids[own:] if own else ids, places[own:] if offsets else None))
        return parts

    def _around(self, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """What comes before and after each text."""
        before, after = self.bos_token_id, self.eos_token_id
        for name, wanted, token in (("bos", self.add_bos_token, before), ("eos", self.add_eos_token, after)):
            if wanted and token is None:
                raise InputError(f"add_{name}_token is True, but there is no {name}_token; set one or the other.")
        if not add_special_tokens:
            return [], []
        return (
            [before] if self.add_bos_token and before is not None else [],
            [after] if self.add_eos_token and after is not None else [],
        )

    def _pad_id(self) -> int:
        if self.pad_token_id is None:
            raise InputError("Padding needs a pad_token; set one, as in tokenizer.pad_token = tokenizer.eos_token.")
        return self.pad_token_id

    def _wanted(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name_or_path!r}, {len(self)} tokens, padding_side={self.padding_side!r})"
