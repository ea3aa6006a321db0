"""A vocabulary of some hundred pieces in the manner of Gemma's: bytes, runs of spaces, control tokens, a few words."""

from typing import Any

from hypothesis import strategies as st

from gemlens.processing.text.pieces import Kind, Pieces
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

WORDS = [
    "the",
    "\u2581the",
    "\u2581cow",
    "cow",
    "\u2581on",
    "beach",
    "\u2581beach",
    "\u00fcber",
    "\u2581a",
    "ing",
    "<2",
]
CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
USER_DEFINED = ["\n\n", "\u2581\u2581", "<b>"]
CHARACTERS = sorted({*"".join(WORDS), *"abcdefghijklmnopqrstuvwxyz<>_/.,!?", "\n", "\t", "\u2581", "\u4f60"})

PROBES = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from([*CONTROLS, *USER_DEFINED, " the cow", " on the beach", "  ", "   ", "\n", "\n\n\n", "\u2603"]),
        st.sampled_from(["<image>", "<loc0001>", "\U0001f600", "<0x41>", "\u2581", "<start_of", "_turn>"]),
    ),
    max_size=8,
).map("".join)


def small_pieces() -> Pieces:
    stems = [word[:end] for word in WORDS for end in range(2, len(word) + 1)]
    normal = [piece for piece in dict.fromkeys([*stems, *CHARACTERS]) if piece not in USER_DEFINED]
    groups = [
        (Kind.CONTROL, CONTROLS),
        (Kind.USER_DEFINED, USER_DEFINED),
        (Kind.BYTE, [f"<0x{byte:02X}>" for byte in range(256)]),
        (Kind.NORMAL, normal),
    ]
    texts = [text for _, group in groups for text in group]
    kinds = [kind for kind, group in groups for _ in group]
    scores = [-1.0 - place if kind == Kind.NORMAL else 0.0 for place, kind in enumerate(kinds)]
    return Pieces(texts, scores, kinds, unknown=3)


def small_tokenizer(**settings: Any) -> GemmaTokenizerFast:
    return GemmaTokenizerFast(tokenizer_object=small_pieces().tokenizer(), **settings)


def metadata() -> dict[str, Any]:
    """The same as the metadata of a GGUF file, which writes runs of spaces with plain spaces."""
    pieces = small_pieces()
    spaces = {"\u2581\u2581": "  "}
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": 512,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [spaces.get(text, text) for text in pieces.texts],
        "tokenizer.ggml.scores": list(pieces.scores),
        "tokenizer.ggml.token_type": [int(kind) for kind in pieces.kinds],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
    }
