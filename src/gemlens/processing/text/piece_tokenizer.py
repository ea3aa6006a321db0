"""The tokenizer of a vocabulary's pieces alone. It is ready at once: the library's needs all merges, in order, first.

    Pieces -> `tokenizer_of` -> PieceTokenizer: text <-> ids, by kernels/cpu/pieces.hpp
                                      |
                                      +-> `library`: a tokenizers.Tokenizer of the same ids, for all else

It joins the same neighbours in the same order, so that ids are equal. What it has of the library's methods is called as
there.
"""

from array import array
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import compress, count
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gemlens.kernels.machine import machine
from gemlens.processing.text.pieces import SPECIAL, Kind, Pieces, decoder, in_bytes

_MADE, _FIRST, _FOUND, _SPECIAL = 1, 2, 4, 8  # as in pieces.hpp
# Tables for `bytes.translate`: kind -> roles, and roles -> whether the piece is found.
_ROLES = bytes.maketrans(
    bytes([Kind.NORMAL, Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED, Kind.UNUSED, Kind.BYTE]),
    bytes([_MADE, _FOUND, _FOUND, _MADE | _FIRST | _FOUND, 0, 0]),
)
_IS_FOUND = bytes(roles & _FOUND for roles in range(256))


def tokenizer_of(
    pieces: Pieces, special: Collection[str] = SPECIAL, extra: Sequence[str] = ()
) -> "PieceTokenizer | Tokenizer":
    """The tokenizer of a vocabulary: the library's only where there are no compiled kernels. Arguments as there.

    Raises:
        CheckpointError: two pieces have the same text.
    """
    return PieceTokenizer(pieces, special, extra) if machine().native else pieces.tokenizer(special, extra)


class PieceTokenizer:
    """Text <-> ids by the compiled kernels.

    Args:
        pieces: the vocabulary.
        special: control pieces that decoding may leave out.
        extra: special tokens beside the pieces.

    Attributes:
        decoder: the library's: pieces -> text.
        post_processor: what `library` shall have.

    Raises:
        CheckpointError: two pieces have the same text.
    """

    def __init__(self, pieces: Pieces, special: Collection[str] = SPECIAL, extra: Sequence[str] = ()) -> None:
        added = [text for text in extra if text not in pieces.texts]
        texts = [*pieces.texts, *added]
        self._kinds = in_bytes(pieces.kinds)
        scores = array("d", pieces.scores) + array("d", [0.0] * len(added))
        roles = bytearray(self._kinds.translate(_ROLES)) + bytes(len(added))
        for text in extra:
            roles[texts.index(text)] |= _FOUND
        found = compress(count(), roles.translate(_IS_FOUND))
        self._found = array("q", (token for token in found if texts[token]))
        self._special = {token for token in self._found if texts[token] in special or texts[token] in extra}
        for token in self._special:
            roles[token] |= _SPECIAL
        self._sizes = len(pieces.texts), len(texts)
        self._unknown, self._arguments = pieces.unknown, (special, extra)
        native = machine().native
        assert native is not None
        written, lengths, address = "".join(texts).encode(), bytes(map(len, texts)), scores.buffer_info()[0]
        self._native = native.Pieces(written, lengths, address, bytes(roles), pieces.unknown, Kind.BYTE in self._kinds)
        if self._native.distinct() < len(texts):
            pieces.check_distinct()
        self.decoder = decoder()
        self.post_processor: Any = None

    def library(self) -> Tokenizer:
        """The same as a tokenizer of the library."""
        made = self._pieces().tokenizer(*self._arguments)
        if self.post_processor is not None:
            made.post_processor = self.post_processor
        return made

    def encode(self, text: str, split: bool, places: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text.

        Args:
            text: without lone surrogates.
            split: whether special tokens in it stay text.
            places: whether to tell each token's characters, (start, end).

        Returns:
            The ids, and as many places, none if nobody asked.
        """
        found: tuple[list[int], list[tuple[int, int]]] = self._native.encode(text, split, places)
        return found

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; unknown ones are passed over."""
        skipped = self._special if skip_special_tokens else ()
        pieces = (self.id_to_token(token) for token in ids if token not in skipped)
        return str(self.decoder.decode([piece for piece in pieces if piece is not None]))

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece; None: there is no such piece."""
        found: int = self._native.find(token.encode())
        return None if found < 0 else found

    def id_to_token(self, id: int) -> str | None:  # noqa: A002  # as in the library
        """The piece of an id; None: there is no such id."""
        return str(self._native.text(id)) if 0 <= id < self._sizes[True] else None

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """{piece: id}."""
        return {self._native.text(token): token for token in range(self.get_vocab_size(with_added_tokens))}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """The number of pieces, with extra tokens or without."""
        return self._sizes[with_added_tokens]

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """{id: token} of what is found in a text before pieces are joined."""
        return self._added

    def found_texts(self) -> set[str]:
        """The texts of these."""
        return {self._native.text(token) for token in self._found}

    @cached_property
    def _added(self) -> dict[int, AddedToken]:  # thousands: made when they are asked for
        return {
            token: AddedToken(self._native.text(token), normalized=False, special=token in self._special)
            for token in self._found
        }

    def _pieces(self) -> Pieces:
        texts = list(self.get_vocab(with_added_tokens=False))
        scores = array("d", (-self._native.cost(token) for token in range(len(texts))))
        return Pieces(texts, scores, self._kinds, self._unknown)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._pieces(), *self._arguments, self.post_processor)


def _again(pieces: Pieces, special: Collection[str], extra: Sequence[str], post_processor: Any) -> Any:
    tokenizer = tokenizer_of(pieces, special, extra)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer
