"""Tokenizers <-> files: `tokenizer.json`, `tokenizer.model` or GGUF, and the settings beside them.

Origin -> StoredTokenizer (the tokenizer underneath, {setting: value}) -> GemmaTokenizerFast
"""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.hub import Origin, first_line, read_json
from gemlens.checkpoints.memory import give_back_memory
from gemlens.checkpoints.save import write_json
from gemlens.errors import CheckpointError, InputError
from gemlens.processing.text.piece_tokenizer import PieceTokenizer, tokenizer_of
from gemlens.processing.text.pieces import SPECIAL, pieces_from_gguf
from gemlens.processing.text.sentencepiece_model import pieces_from_sentencepiece
from gemlens.processing.text.special_tokens import is_text
from gemlens.processing.text.tokenizer_settings import check_values

TOKENIZER, MODEL = "tokenizer.json", "tokenizer.model"
CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
_LARGEST = 200_000_000  # bytes of a tokenizer.json; Gemma 3's has 33 MB
_CLASSES = {"GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"}
_TRUTHS_OF_A_TOKEN = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Of a Gemma 3 vocabulary: the token that pictures take the place of has no piece, only the id after the last.
_GEMMA3_PIECES = 262_144
_GEMMA3_PICTURES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


@dataclass(frozen=True)
class StoredTokenizer:
    """What files say: a tokenizer with all its tokens, and its settings."""

    backend: PieceTokenizer | Tokenizer
    settings: Mapping[str, Any]


def read_tokenizer(origin: Origin, gguf_file: str | None = None) -> StoredTokenizer:
    """The tokenizer of a folder or repository.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another family.
    """
    if gguf_file is not None:
        stored = tokenizer_of_gguf(GGUFFile.open(origin.fetch(gguf_file)).metadata)
        give_back_memory()  # of texts that were read
        return stored
    settings = _settings(origin)
    if (path := origin.find(TOKENIZER)) is not None:
        backend = read_backend(path)
    elif (path := origin.find(MODEL)) is not None:
        backend = pieces_from_sentencepiece(path).tokenizer()
    else:
        found = [name for name in origin.listing() if name.endswith(".gguf")]
        hint = f"pass gguf_file={found[0]!r}" if found else "check that this is the folder of a model"
        raise CheckpointError(f"There is neither '{TOKENIZER}' nor '{MODEL}' in {origin}; {hint}.")
    padding = backend.padding or {}
    backend.no_padding()
    backend.no_truncation()
    if "direction" in padding:
        settings.setdefault("padding_side", padding["direction"])
    try:
        check_values(settings)
        _add_stored(backend, settings.pop("added_tokens_decoder", None) or {}, origin)
    except InputError as error:
        raise CheckpointError(f"{CONFIG} in {origin} does not describe a tokenizer: {error}") from error
    return StoredTokenizer(backend, settings)


def read_backend(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}).") from error
    if size > _LARGEST:
        raise CheckpointError(f"'{path}' is larger than {_LARGEST} bytes; this is no tokenizer of Gemma.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"'{path}' is no tokenizer ({first_line(error)}); download it again.") from error


def tokenizer_of_gguf(metadata: Mapping[str, Any]) -> StoredTokenizer:
    """The tokenizer in the metadata of a GGUF file of a Gemma model.

    Raises:
        CheckpointError: the file has no such vocabulary, or one of another kind.
    """
    pieces = pieces_from_gguf(metadata)
    settings: dict[str, Any] = {}
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int):
            if not 0 <= token < len(pieces.texts):
                raise CheckpointError(f"The GGUF file's {key} token is {token}, but it has {len(pieces.texts)} pieces.")
            settings[f"{name}_token"] = pieces.texts[token]
    for name in ("add_bos_token", "add_eos_token"):
        settings[name] = bool(metadata.get(f"tokenizer.ggml.{name}", name == "add_bos_token"))
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = str(template)
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(length, int):
        settings["model_max_length"] = length
    special = SPECIAL | {token for token in settings.values() if isinstance(token, str)}
    extra: list[str] = []
    if len(pieces.texts) == _GEMMA3_PIECES and _GEMMA3_PICTURES["boi_token"] in pieces.texts:
        extra.append(_GEMMA3_PICTURES["image_token"])
        settings["extra_special_tokens"] = dict(_GEMMA3_PICTURES)
    return StoredTokenizer(tokenizer_of(pieces, special, extra), settings)


def write_tokenizer(
    folder: str | os.PathLike[str], backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, Any]
) -> tuple[str, ...]:
    """Writes the files that transformers and `read_tokenizer` read; gives their paths.

    Args:
        folder: made if it does not exist.
        backend: with its post-processor, so that the `tokenizers` library alone gives the same ids.
        config: settings; a `chat_template` of one text gets a file of its own.
        special: {name: token}.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    config = dict(config)
    template = config.get("chat_template")
    place = Path(folder)
    config["added_tokens_decoder"] = {
        str(token): {"content": added.content, **{flag: getattr(added, flag) for flag in _TRUTHS_OF_A_TOKEN}}
        for token, added in sorted(backend.get_added_tokens_decoder().items())
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        written = [_write_text(place / TOKENIZER, backend.to_str(pretty=True))]
        if isinstance(template, str):
            written.append(_write_text(place / TEMPLATE, config.pop("chat_template")))
        else:
            (place / TEMPLATE).unlink(missing_ok=True)  # an older one would win over what is saved now
    except OSError as error:
        raise CheckpointError(
            f"'{folder}' cannot be written to ({error.strerror}); make room or choose another folder."
        ) from error
    write_json(place / CONFIG, config)
    write_json(place / SPECIAL_MAP, special)
    return tuple(str(path) for path in (place / CONFIG, place / SPECIAL_MAP, *written))


def _write_text(path: Path, text: str) -> Path:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _settings(origin: Origin) -> dict[str, Any]:
    """What tokenizer_config.json and the older files beside it say."""
    config = origin.find(CONFIG)
    settings = read_json(config) if config is not None else {}
    name = settings.pop("tokenizer_class", None)
    if name is not None and str(name) not in _CLASSES:
        raise CheckpointError(f"{CONFIG} in {origin} describes a {name}, but gemlens reads Gemma's tokenizers only.")
    if "added_tokens_decoder" not in settings:  # as in the reference: the older files count only without it
        if (path := origin.find(SPECIAL_MAP)) is not None:
            settings |= read_json(path)
        if (path := origin.find(ADDED)) is not None:
            settings["added_tokens_decoder"] = {
                token: {"content": text, "normalized": False} for text, token in read_json(path).items()
            }
    if (path := origin.find(TEMPLATE)) is not None:
        settings["chat_template"] = _text(path)
    elif "chat_template" not in settings and (path := origin.find(TEMPLATE_JSON)) is not None:
        settings["chat_template"] = read_json(path).get("chat_template")
    if isinstance(settings.get("chat_template"), list):  # [{"name": ..., "template": ...}]
        settings["chat_template"] = {each["name"]: each["template"] for each in settings["chat_template"]}
    return settings


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read as text ({first_line(error)}).") from error


def _add_stored(backend: Tokenizer, stored: Mapping[str, Any], origin: Origin) -> None:
    """Adds tokens that the settings name and the tokenizer lacks, or has with other flags."""
    have = {token: _flags(added) for token, added in backend.get_added_tokens_decoder().items()}
    if not isinstance(stored, Mapping) or not all(str(number).isdecimal() for number in stored):
        raise InputError("added_tokens_decoder is no table of tokens by id.")
    for number, token in sorted((int(number), token) for number, token in stored.items()):
        text = token.get("content") if isinstance(token, Mapping) else None
        if not is_text(text):
            raise InputError(f"token {number} in added_tokens_decoder has no text.")
        added = AddedToken(text, **{flag: bool(token[flag]) for flag in _TRUTHS_OF_A_TOKEN if flag in token})
        if have.get(number) == _flags(added):
            continue
        backend.add_tokens([added])
        if backend.token_to_id(added.content) != number:
            raise CheckpointError(
                f"The files of {origin} do not agree: {added.content!r} is token {number} in one and "
                f"{backend.token_to_id(added.content)} in another; download them again."
            )


def _flags(token: AddedToken) -> tuple[Any, ...]:
    return (token.content, *(getattr(token, flag) for flag in _TRUTHS_OF_A_TOKEN))
