"""Pieces of a SentencePiece vocabulary, from a GGUF file or a `tokenizer.model`, and the tokenizer that they describe.

Neither file holds the order of the merges. It follows from the scores: SentencePiece joins the two neighbours that make
the piece with the best score, so every way to split a piece into two others is a merge with that piece's rank. Built on
the `tokenizers` library, this gives the ids of the original `tokenizer.json`.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import compress, count, pairwise, repeat
from math import isnan
from operator import itemgetter
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from gemlens.errors import CheckpointError

SPACE = "\u2581"  # how SentencePiece writes a space
# What Gemma's own tokenizer.json calls special; its other control pieces (<mask>, <unused5>) are shown when decoded.
SPECIAL = frozenset(
    [
        *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<image>"),
    ]
)
_LONGEST = 128  # characters of a piece; Gemma's have at most 31


class Kind(IntEnum):
    """What a piece is for, as SentencePiece numbers it, and `tokenizer.ggml.token_type` too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_NUMBERS: Mapping[int, int] = {kind: kind for kind in Kind}
# Tables for `bytes.translate`: kind -> itself, or 0 for what is none; and whether it is that of the user.
_KNOWN = bytes(_NUMBERS.get(number, 0) for number in range(256))
_IS_USER_DEFINED = bytes(number == Kind.USER_DEFINED for number in range(256))


@dataclass(frozen=True)
class Pieces:
    """A vocabulary: the texts by id, how good each is to make, and what it is for."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    unknown: int

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.scores) == len(self.kinds):
            raise CheckpointError(
                f"The vocabulary has {len(self.texts)} pieces, {len(self.scores)} scores and {len(self.kinds)} types; "
                "they must agree."
            )
        kinds_of_numbers = {*map(type, self.scores), *map(type, self.kinds)}
        if not set(map(type, self.texts)) <= {str} or not kinds_of_numbers <= {int, float, Kind}:
            raise CheckpointError("The vocabulary's pieces must be texts, and their scores and types numbers.")
        if any(map(isnan, self.scores)):
            raise CheckpointError("The vocabulary has a score that is no number; fetch the file again.")
        if max(map(len, self.texts), default=0) > _LONGEST:  # their splits are tried one by one
            raise CheckpointError(
                f"The vocabulary has a piece of more than {_LONGEST} characters; this is none of Gemma."
            )
        if not 0 <= self.unknown < len(self.texts):
            raise CheckpointError(f"The unknown token is {self.unknown}, but there are {len(self.texts)} pieces.")

    def check_distinct(self) -> None:
        """Refuses a vocabulary whose pieces have no ids of their own.

        Raises:
            CheckpointError: two pieces have the same text.
        """
        text, number = Counter(self.texts).most_common(1)[0]
        if number > 1:
            raise CheckpointError(f"The vocabulary has the piece {text!r} more than once.")

    def tokenizer(self, special: Collection[str] = SPECIAL, extra: Sequence[str] = ()) -> Tokenizer:
        """The library's tokenizer that splits a text as SentencePiece does; it adds no `<bos>`.

        Args:
            special: control pieces that decoding may leave out.
            extra: special tokens beside the pieces.

        Raises:
            CheckpointError: two pieces have the same text.
        """
        self.check_distinct()
        ids = {text: token for token, text in enumerate(self.texts)}
        tokenizer = Tokenizer(
            models.BPE(
                vocab=ids,
                merges=_merges(self.texts, self.scores, self.kinds, ids),
                unk_token=self.texts[self.unknown],
                fuse_unk=True,
                byte_fallback=Kind.BYTE in self.kinds,
            )
        )
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.decoder = decoder()
        found = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)  # in a text before anything is merged
        tokenizer.add_tokens(
            [
                AddedToken(text, normalized=False, special=text in special)
                for text, kind in zip(self.texts, self.kinds, strict=True)
                if kind in found
            ]
        )
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in extra])
        return tokenizer


def decoder() -> decoders.Decoder:
    """Pieces -> text."""
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def pieces_from_gguf(metadata: Mapping[str, Any]) -> Pieces:
    """The vocabulary in the metadata of a GGUF file of a Gemma model.

    Raises:
        CheckpointError: the file has no such vocabulary, or one of another kind.
    """
    if (model := metadata.get("tokenizer.ggml.model")) != "llama":
        raise CheckpointError(f"The GGUF file's tokenizer is {model!r}, but Gemma's is 'llama' (SentencePiece).")
    texts, scores, kinds = (_array(metadata, name) for name in ("tokens", "scores", "token_type"))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 3)
    return Pieces(vocabulary_texts(texts, kinds), scores, kinds, unknown if isinstance(unknown, int) else -1)


def in_bytes(kinds: Sequence[int]) -> bytes:
    """A byte for each kind: its number, or 0 for what is none."""
    try:
        return bytes(kinds).translate(_KNOWN)
    except (TypeError, ValueError):  # one is no number, or not that of a byte
        return bytes(map(_NUMBERS.get, kinds, repeat(0)))


def vocabulary_texts(texts: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """The pieces as the official tokenizer.json writes them."""
    # Runs of spaces are user-defined pieces with plain spaces in GGUF files.
    if len(texts) != len(kinds):
        return list(texts)  # which Pieces refuses
    written = list(texts)
    for token in compress(count(), in_bytes(kinds).translate(_IS_USER_DEFINED)):
        written[token] = str(written[token]).replace(" ", SPACE)
    # Older vocabularies have the tab only as a byte; to merge what contains tabs, it must be a piece.
    if "<0x09>" in written and "\t" not in written:
        written[written.index("<0x09>")] = "\t"
    return written


def _merges(
    texts: Sequence[str], scores: Sequence[float], kinds: Sequence[int], ids: Collection[str]
) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best first; among those of one score the longest left part first."""
    # Scores are minus the rank. User-defined pieces come first: SentencePiece never splits them.
    normal, first = int(Kind.NORMAL), int(Kind.USER_DEFINED)  # plain numbers compare faster
    ranked = [
        (0.0 if kind == first else -score, text)
        for text, score, kind in zip(texts, scores, kinds, strict=True)
        if kind in (normal, first)
    ]
    ranked.sort(key=itemgetter(0))
    ranks, ordered = [rank for rank, _ in ranked], [text for _, text in ranked]
    shared = sorted(rank for rank, count in Counter(ranks).items() if count > 1)
    # Every second stretch is of pieces that share a rank. Most pieces, and the last stretch, do not.
    borders = [0, *(find(ranks, rank) for rank in shared for find in (bisect_left, bisect_right)), len(ranks)]
    known, merges = frozenset(ids), list[tuple[str, str]]()
    for number, (start, end) in enumerate(pairwise(borders)):
        pairs = [
            (left, right)
            for text in ordered[start:end]
            for cut in range(len(text) - 1, 0, -1)
            if (right := text[cut:]) in known and (left := text[:cut]) in known
        ]
        if number % 2:
            pairs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))
        merges += pairs
    return merges


def _array(metadata: Mapping[str, Any], name: str) -> Sequence[Any]:
    array = metadata.get(f"tokenizer.ggml.{name}")
    if array is None or isinstance(array, str) or not hasattr(array, "__len__"):
        raise CheckpointError(f"The GGUF file has no list 'tokenizer.ggml.{name}': it holds no vocabulary.")
    return array
