"""What is under a tokenizer: the library's own, or pieces alone until something needs the library's."""

import threading
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Tokenizer

from gemlens.processing.text.piece_tokenizer import PieceTokenizer

Encoded = tuple[list[int], list[tuple[int, int]]]


class Backend:
    """One tokenizer that all parts of ours share, and several threads.

    Attributes:
        reader: what gives ids and pieces now. What would change it goes to `library`.
    """

    def __init__(self, tokenizer: PieceTokenizer | Tokenizer) -> None:
        self.reader = tokenizer
        self._lock = threading.Lock()

    @property
    def library(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library; it is what gives ids from now on."""
        with self._lock:
            if isinstance(self.reader, PieceTokenizer):
                self.reader = self.reader.library()
            return self.reader

    def encode(self, texts: Sequence[str], split: bool, places: bool) -> list[Encoded]:
        """For each text its ids and, if asked for, where their characters are in it.

        Args:
            texts: without lone surrogates.
            split: whether special tokens in them stay text.
            places: whether to tell (start, end) of each token's characters.
        """
        reader = self.reader
        if isinstance(reader, PieceTokenizer):
            return [reader.encode(text, split, places) for text in texts]
        encode = reader.encode_batch if places else reader.encode_batch_fast
        with self._lock:  # `encode_special_tokens` is a setting of the library's, which other threads use too
            if reader.encode_special_tokens != split:
                reader.encode_special_tokens = split
            found = encode(texts, add_special_tokens=False)
        return [(each.ids, each.offsets if places else []) for each in found]

    def found_texts(self) -> Collection[str]:
        """The tokens that are found in a text before it is split."""
        if isinstance(self.reader, PieceTokenizer):
            return self.reader.found_texts()
        return {token.content for token in self.reader.get_added_tokens_decoder().values()}

    def __reduce__(self) -> tuple[Any, ...]:
        return Backend, (self.reader,)
