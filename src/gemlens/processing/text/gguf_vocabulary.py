"""A tokenizer -> the vocabulary in a GGUF file's metadata: the counterpart of `pieces_from_gguf`.

llama.cpp merges the two neighbours that make the piece with the best score, so a piece's score is minus the rank of the
first merge that makes it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from gemlens.processing.text.pieces import SPACE, Kind
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LAST = -1000.0  # the score of what is never merged, as converters write it
_UNUSED = "[PAD{}]"  # so llama.cpp's converter calls rows of the embedding that have no token


def gguf_vocabulary(tokenizer: GemmaTokenizerFast, size: int) -> dict[str, Any]:
    """The `tokenizer.*` metadata.

    Args:
        tokenizer: of a Gemma.
        size: of the model's vocabulary; tokens from there on, which have no row of the embedding, are left out.
    """
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = [_UNUSED.format(token) for token in range(size)]
    kinds = [int(Kind.UNUSED)] * size
    scores = [_LAST] * size
    vocabulary: Mapping[str, int] = backend["model"]["vocab"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(backend["model"]["merges"]):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), rank)
    for text, token in vocabulary.items():
        if token < size:
            texts[token] = text
            kinds[token] = Kind.BYTE if _BYTE.fullmatch(text) else Kind.NORMAL
            scores[token] = -float(ranks.get(text, len(ranks) + token))
    for added in backend["added_tokens"]:
        if (token := added["id"]) < size:
            is_special = bool(added["special"])
            texts[token] = added["content"] if is_special else added["content"].replace(SPACE, " ")
            kinds[token] = Kind.CONTROL if is_special else Kind.USER_DEFINED
            scores[token] = _LAST
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos_token,
        "tokenizer.ggml.add_eos_token": tokenizer.add_eos_token,
        "tokenizer.ggml.add_space_prefix": False,
    }
    for key, name in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None and token < size:
            found[f"tokenizer.ggml.{key}_token_id"] = token
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found
