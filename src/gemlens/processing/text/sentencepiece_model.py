"""Reads the vocabulary of a SentencePiece `tokenizer.model`, a protobuf message, without either library.

ModelProto: 1 = piece, repeated (1 = text, 2 = score, 3 = kind); 2 = trainer (3 = algorithm, 40 = unknown id);
3 = normalizer (1 = name, 3 = adds a space in front)
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from gemlens.errors import CheckpointError
from gemlens.processing.text.pieces import Kind, Pieces, vocabulary_texts

_LARGEST = 100_000_000  # bytes; Gemma's are 4 MB
_BPE = 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types


def pieces_from_sentencepiece(path: Path) -> Pieces:
    """The vocabulary in a `tokenizer.model`.

    Raises:
        CheckpointError: the file is damaged, or its text is not prepared the way that Gemma's is.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"'{path}' is larger than {_LARGEST} bytes; this is no SentencePiece model.")
        return _pieces(path.read_bytes(), str(path))
    except (IndexError, ValueError, struct.error) as error:  # ValueError: UTF-8 too
        raise CheckpointError(f"'{path}' is not a whole SentencePiece model; download it again.") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}).") from error


def _pieces(data: bytes, path: str) -> Pieces:
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, content in _fields(data):
        if number == 1 and isinstance(content, bytes):
            piece = dict(_fields(content))
            text, score = piece.get(1, b""), piece.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise CheckpointError(f"'{path}' has a piece without text or score; this is no SentencePiece model.")
            texts.append(text.decode())
            scores.append(struct.unpack("<f", score)[0])
            kinds.append(int(piece.get(3, Kind.NORMAL)))
        elif number == 2 and isinstance(content, bytes):
            trainer = dict(_fields(content))
        elif number == 3 and isinstance(content, bytes):
            normalizer = dict(_fields(content))
    if not texts:
        raise CheckpointError(f"'{path}' has no pieces; this is no SentencePiece model.")
    if trainer.get(3, 1) != _BPE or normalizer.get(1, b"") != b"identity" or normalizer.get(3, 1):
        raise CheckpointError(
            f"'{path}' prepares text in another way than Gemma does (BPE, identity, no space in front); "
            "use the tokenizer.json of that model."
        )
    return Pieces(vocabulary_texts(texts, kinds), scores, kinds, int(trainer.get(40, 0)))


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field of a message: an int for a varint, else the bytes."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        else:
            length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire, end)
        if position + length > end:
            raise IndexError("a field passes the end of its message")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it): seven bits per byte, the lowest first."""
    byte = data[position]
    if byte < 0x80:  # nearly always
        return byte, position + 1
    value = shift = 0
    while byte >= 0x80 and shift < 63:
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        byte = data[position]
    return value | byte << shift, position + 1
