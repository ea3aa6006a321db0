"""The tokenizer of a GGUF file, which holds the pieces of a SentencePiece vocabulary but not the order of its merges.

The order follows from the scores: SentencePiece joins the two neighbours that make the piece with the best score, so
every way to split a piece into two others is a merge with that piece's rank. Built on the `tokenizers` library, this
gives the ids of the original `tokenizer.json`.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from gemlens.errors import CheckpointError

SPACE = "\u2581"  # how SentencePiece writes a space


class Kind(IntEnum):
    """`tokenizer.ggml.token_type`, as llama.cpp numbers it."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from the metadata of a GGUF file of a Gemma model.

    `encode` puts `<bos>` first, once; `decode` leaves control tokens out.

    Raises:
        CheckpointError: the file has no such vocabulary, or one of another kind.
    """
    if (model := metadata.get("tokenizer.ggml.model")) != "llama":
        raise CheckpointError(f"The GGUF file's tokenizer is {model!r}, but Gemma's is 'llama' (SentencePiece).")
    texts, scores, kinds = (list(_array(metadata, name)) for name in ("tokens", "scores", "token_type"))
    if not len(texts) == len(scores) == len(kinds):
        raise CheckpointError(
            f"The GGUF file has {len(texts)} tokens, {len(scores)} scores and {len(kinds)} types; they must agree."
        )
    # Runs of spaces are user-defined tokens with plain spaces here, but the vocabulary they come from writes SPACE.
    pieces = [
        text.replace(" ", SPACE) if kind == Kind.USER_DEFINED else text for text, kind in zip(texts, kinds, strict=True)
    ]
    ids = {piece: token for token, piece in enumerate(pieces)}
    unknown = pieces[int(metadata.get("tokenizer.ggml.unknown_token_id", 3))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids, merges=_merges(pieces, scores, kinds, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(_added(pieces, kinds, Kind.CONTROL))
    tokenizer.add_tokens(_added(pieces, kinds, Kind.USER_DEFINED))
    bos = int(metadata.get("tokenizer.ggml.bos_token_id", 2))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{pieces[bos]} $A", special_tokens=[(pieces[bos], bos)]
    )
    return tokenizer


def _added(pieces: Sequence[str], kinds: Sequence[int], wanted: Kind) -> list[AddedToken]:
    """Pieces that are found in a text before anything is merged."""
    return [AddedToken(piece, normalized=False) for piece, kind in zip(pieces, kinds, strict=True) if kind == wanted]


def _merges(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best first; among those of one score the longest left part first."""
    ranked = []
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        if kind not in (Kind.NORMAL, Kind.USER_DEFINED):
            continue
        rank = 0.0 if kind == Kind.USER_DEFINED else -score  # scores are minus the rank; user-defined pieces come first
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                ranked.append((rank, -len(left), -len(right), left, right))
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def _array(metadata: Mapping[str, Any], name: str) -> Sequence[Any]:
    array = metadata.get(f"tokenizer.ggml.{name}")
    if array is None or isinstance(array, str) or not hasattr(array, "__len__"):
        raise CheckpointError(f"The GGUF file has no list 'tokenizer.ggml.{name}': it holds no vocabulary.")
    return array
