"""PieceTokenizer beside its plain twin, the `tokenizers` library with all merges, and what never needs that twin."""

import copy
import pickle
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabulary import PROBES, metadata, small_pieces
from tokenizers import AddedToken, Tokenizer

from gemlens.errors import CheckpointError, InputError
from gemlens.kernels.machine import Machine, machine
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor
from gemlens.processing.text import piece_tokenizer
from gemlens.processing.text.backend import Backend
from gemlens.processing.text.piece_tokenizer import PieceTokenizer, tokenizer_of
from gemlens.processing.text.pieces import SPACE, Kind, Pieces
from gemlens.processing.text.streaming import TextStream
from gemlens.processing.text.tokenizer import GemmaTokenizerFast
from gemlens.processing.text.tokenizer_files import tokenizer_of_gguf

needs_kernels = pytest.mark.skipif(machine().native is None, reason="there are no compiled kernels here")

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["a", "b", "c", ">", "\n", "\0", SPACE, "\u00fc", "\U0001f600", "<0x41>", "<0x00>", "x"]
KINDS = [*[Kind.NORMAL] * 9, Kind.USER_DEFINED, Kind.CONTROL, Kind.UNUSED, 77]
TEXTS = st.lists(st.one_of(st.sampled_from([*LETTERS, " ", "  ", "A", "d"]), st.text(max_size=3)), max_size=20).map(
    "".join
)
BYTES_OF = st.sampled_from([[], BYTES, BYTES[::2], BYTES[:0xC3] + BYTES[0xC4:]])


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[Pieces, set[str], list[str]]:
    """Few letters and fewer scores, so that many pieces tie and each can be made in several ways."""
    letters = draw(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=3, unique=True))
    made = draw(st.lists(st.lists(st.sampled_from(letters), min_size=1, max_size=5).map("".join), max_size=30))
    unknown = draw(st.sampled_from(["<unk>", "", "x"]))
    texts = list(dict.fromkeys([unknown, *made, *letters[draw(st.integers(0, 1)) :], *draw(BYTES_OF)]))
    kinds = [Kind.BYTE if text in BYTES[1:] else draw(st.sampled_from(KINDS)) for text in texts]
    kinds[0] = draw(st.sampled_from([Kind.UNKNOWN, Kind.CONTROL, Kind.NORMAL]))
    scores = [0.0 if kind == Kind.BYTE else draw(st.sampled_from([-2.0, -1, 0.0, 1.5])) for kind in kinds]
    special = set(draw(st.lists(st.sampled_from(texts), max_size=5)))
    extra = draw(st.lists(st.one_of(st.just("<extra>"), st.sampled_from(texts)), max_size=2, unique=True))
    return Pieces(texts, scores, kinds, unknown=0), special, extra


def twins(vocabulary: tuple[Pieces, set[str], list[str]]) -> tuple[PieceTokenizer, Tokenizer]:
    pieces, special, extra = vocabulary
    return PieceTokenizer(pieces, special, extra), pieces.tokenizer(special, extra)


TEMPLATE = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['content'] }}<end_of_turn>{% endfor %}"


def opened(kernels: bool = True, **settings: Any) -> GemmaTokenizerFast:
    """The tokenizer of a GGUF file, with compiled kernels or without."""
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setattr(piece_tokenizer, "machine", lambda: Machine("reference", 1, None))
        stored = tokenizer_of_gguf(metadata() | {"tokenizer.chat_template": TEMPLATE})
    return GemmaTokenizerFast(tokenizer_object=stored.backend, **{**stored.settings, **settings})


def is_light(tokenizer: GemmaTokenizerFast) -> bool:
    return isinstance(tokenizer._backend.reader, PieceTokenizer)


@pytest.fixture(scope="module")
def plain() -> GemmaTokenizerFast:
    return opened(kernels=False)


@pytest.fixture
def light() -> Iterator[GemmaTokenizerFast]:
    """Whatever a test does with it, the library's tokenizer is not built."""
    tokenizer = opened()
    yield tokenizer
    assert is_light(tokenizer)


# -- beside the twin ---------------------------------------------------------------------------------------------------


@needs_kernels
@settings(max_examples=600)
@given(vocabulary=vocabularies(), data=st.data(), split=st.booleans())
def test_ids_and_places_are_the_librarys(vocabulary: Any, data: st.DataObject, split: bool) -> None:
    light, library = twins(vocabulary)
    pieces = st.lists(st.sampled_from([*vocabulary[0].texts, "<extra>", "A"]), max_size=12).map("".join)
    texts = [data.draw(TEXTS), *data.draw(st.lists(pieces, max_size=5)), data.draw(pieces).replace(SPACE, " ")]
    expected = Backend(library).encode(texts, split, places=True)
    assert Backend(light).encode(texts, split, places=True) == expected
    assert Backend(light).encode(texts, split, places=False) == [(ids, []) for ids, _ in expected]


@needs_kernels
@pytest.mark.parametrize("seed", range(200))
def test_pieces_of_one_score_are_joined_in_the_librarys_order(seed: int) -> None:
    """All texts of eight letters, one of them the space, by vocabularies in which nearly everything ties."""
    dice = random.Random(seed)
    words = ["".join(word) for size in (2, 3, 4) for word in product(f"a{SPACE}", repeat=size)]
    texts = ["?", "a", SPACE, *dice.sample(words, dice.randint(2, 20))]
    kinds = [Kind.NORMAL] * 3 + dice.choices([Kind.NORMAL, Kind.USER_DEFINED], (9, seed % 2), k=len(texts) - 3)
    scores = [dice.choice([-1.0, 0.0, 0.5][: 1 + seed % 3]) for _ in texts]
    pieces = Pieces(texts, scores, kinds, unknown=0)
    every = ["".join(letters) for letters in product("a ", repeat=8)]
    light, library = twins((pieces, set(), []))
    found = Backend(library).encode(every, split=True, places=False)
    assert Backend(light).encode(every, split=True, places=False) == found


@needs_kernels
@settings(max_examples=300)
@given(vocabulary=vocabularies(), ids=st.lists(st.integers(0, 330), max_size=20), skip=st.booleans())
def test_texts_and_pieces_are_the_librarys(vocabulary: Any, ids: list[int], skip: bool) -> None:
    light, library = twins(vocabulary)
    assert light.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)
    assert [light.id_to_token(token) for token in ids] == [library.id_to_token(token) for token in ids]
    for text in [*vocabulary[0].texts, *LETTERS, "<extra>", "ba"]:
        assert light.token_to_id(text) == library.token_to_id(text)
    for added in (True, False):
        assert light.get_vocab(added) == library.get_vocab(added)
        assert light.get_vocab_size(added) == library.get_vocab_size(added)
    ours, theirs = light.get_added_tokens_decoder(), library.get_added_tokens_decoder()
    assert {token: repr(each) for token, each in ours.items()} == {token: repr(each) for token, each in theirs.items()}
    assert Backend(light).found_texts() == Backend(library).found_texts()


@needs_kernels
@settings(max_examples=50)
@given(vocabulary=vocabularies())
def test_the_library_that_it_makes_is_its_twin(vocabulary: Any) -> None:
    light, library = twins(vocabulary)
    assert light.library().to_str() == library.to_str()
    assert pickle.loads(pickle.dumps(light)).library().to_str() == library.to_str()


BYTE_RUNS = [[f"<0x{byte:02X}>" for byte in text] for text in (b"\xe2\x98\x83", b"\xe2\x98", b"a\xff\x80", b"\xc3\xa9")]


@needs_kernels
@given(pieces=st.lists(st.sampled_from([*BYTE_RUNS, ["<bos>"], [SPACE], ["the"], ["<mask>"]])), skip=st.booleans())
def test_runs_of_bytes_are_decoded_like_the_librarys(plain: GemmaTokenizerFast, pieces: Any, skip: bool) -> None:
    light = opened()
    ids = plain.convert_tokens_to_ids([piece for run in pieces for piece in run])
    assert light.decode(ids, skip_special_tokens=skip) == plain.decode(ids, skip_special_tokens=skip)
    stream = TextStream(light, skip_special_tokens=skip)
    assert "".join(map(stream.put, ids)) + stream.finish() == plain.decode(ids, skip_special_tokens=skip)
    tokens = plain.convert_ids_to_tokens(ids)
    assert light.convert_tokens_to_string(tokens) == plain.convert_tokens_to_string(tokens)
    assert is_light(light)


# -- in use ------------------------------------------------------------------------------------------------------------


@needs_kernels
@given(text=PROBES, split=st.booleans(), bos=st.booleans())
def test_calls_are_answered_without_the_library(plain: GemmaTokenizerFast, text: str, split: bool, bos: bool) -> None:
    light = opened()
    options: dict[str, Any] = {"split_special_tokens": split, "add_special_tokens": bos, "return_offsets_mapping": True}
    assert light(text, text[::-1], **options).data == plain(text, text[::-1], **options).data
    parts = [(text[:3], True), (text[3:], split)]
    assert light.encode_parts(parts) == plain.encode_parts(parts)
    assert light.tokenize(text) == plain.tokenize(text)
    chat = [{"role": "user", "content": text}]
    assert light.apply_chat_template(chat) == plain.apply_chat_template(chat)
    assert is_light(light)


@needs_kernels
def test_questions_are_answered_without_the_library(light: GemmaTokenizerFast, plain: GemmaTokenizerFast) -> None:
    assert len(light) == len(plain)
    assert repr(light) == repr(plain)
    assert light.get_vocab() == plain.get_vocab()
    for name in (
        *("vocab_size", "bos_token_id", "eos_token", "pad_token_id", "unk_token_id", "all_special_tokens"),
        *("all_special_ids", "special_tokens_map", "additional_special_tokens", "init_kwargs"),
    ):
        assert getattr(light, name) == getattr(plain, name), name
    assert light.get_added_vocab() == plain.get_added_vocab()
    assert light.convert_tokens_to_ids(["<bos>", "the", "no such piece"]) == [2, plain.convert_tokens_to_ids("the"), 3]
    assert light.convert_ids_to_tokens([2, 10**6, 3], skip_special_tokens=True) == [None]
    light.eos_token = "<end_of_turn>"
    assert light.eos_token_id == plain.convert_tokens_to_ids("<end_of_turn>")
    with pytest.raises(InputError, match="half a character"):
        light.encode("\ud800")
    with pytest.raises(UnicodeEncodeError):
        light.convert_tokens_to_ids("\ud800")


@needs_kernels
def test_after_the_library_is_built_it_counts(plain: GemmaTokenizerFast) -> None:
    tokenizer, text = opened(add_eos_token=True), "the cow <mask>on <new>\u2603"
    stream = TextStream(tokenizer)
    before = tokenizer(text).data
    backend = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    assert backend is tokenizer.backend_tokenizer
    assert not is_light(tokenizer)
    assert tokenizer(text).data == before
    assert backend.encode(text).ids == before["input_ids"]  # with <bos> and <eos>
    backend.add_tokens([AddedToken("<new>", normalized=False)])
    new = backend.token_to_id("<new>")
    assert new in tokenizer.encode(text)
    assert stream.put(new) == "<new>"
    assert tokenizer.convert_tokens_to_ids("<new>") == new == len(tokenizer) - 1


@needs_kernels
def test_added_tokens_are_found(plain: GemmaTokenizerFast) -> None:
    tokenizer = opened()
    assert tokenizer.add_tokens(["<new>", "the cow"]) == 2
    assert tokenizer.add_special_tokens({"image_token": "<image>"}) == 1
    added = [tokenizer.convert_tokens_to_ids(token) for token in ("<new>", "the cow", "<image>")]
    assert added == [len(plain), len(plain) + 1, len(plain) + 2]
    assert tokenizer.encode("<new>the cow<image>") == [2, *added]
    assert tokenizer.image_token_id == added[2]


@needs_kernels
def test_a_named_token_that_is_no_control_token_is_found() -> None:
    """Such a file is rare: its vocabulary is built by the library."""
    theirs, ours = opened(kernels=False, sep_token="<sep>"), opened(sep_token="<sep>")
    for text in ("a<sep>b", "<mask>"):
        assert ours(text).data == theirs(text).data


@needs_kernels
def test_copies_and_pickles_stay_light_and_equal(light: GemmaTokenizerFast) -> None:
    text = "the <bos>cow  \u2603"
    for twin in (copy.deepcopy(light), pickle.loads(pickle.dumps(light))):
        assert is_light(twin)
        assert twin(text).data == light(text).data
        assert twin.backend_tokenizer.to_str() == opened().backend_tokenizer.to_str()
        assert twin(text).data == light(text).data


@needs_kernels
def test_what_is_saved_is_what_the_library_saves(plain: GemmaTokenizerFast, tmp_path: Path) -> None:
    opened().save_pretrained(tmp_path / "light")
    plain.save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "light" / file.name).read_text() == file.read_text(), file.name


@needs_kernels
def test_threads_build_the_library_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built, tokenizer, build = [], opened(), Pieces.tokenizer

    def build_slowly(*arguments: Any) -> Tokenizer:
        built.append(1)
        time.sleep(0.1)
        return build(*arguments)

    monkeypatch.setattr(Pieces, "tokenizer", build_slowly)
    expected = tokenizer.encode("the cow\u2603")

    def use(number: int) -> bool:
        library = tokenizer.backend_tokenizer if number % 3 == 0 else None
        same = tokenizer.encode("the cow\u2603", split_special_tokens=number % 2 == 0) == expected
        return same and library in (None, tokenizer.backend_tokenizer)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(60)))
    assert built == [1]


@needs_kernels
@pytest.mark.parametrize("text", ["a", " ", "\n", "<", "\u2603", "the cow ", "<bos>"])
def test_long_texts_take_no_quadratic_time(text: str) -> None:
    tokenizer = tokenizer_of(small_pieces())
    text = text * (300_000 // len(text))
    begin = time.perf_counter()
    ids, _ = tokenizer.encode(text, False, False)
    assert time.perf_counter() - begin < 20, "seconds; a tenth of one is usual"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@needs_kernels
def test_damaged_vocabularies_are_refused_by_both() -> None:
    for make in (PieceTokenizer, Pieces.tokenizer):
        with pytest.raises(CheckpointError, match="has the piece 'b' more than once"):
            make(Pieces(["a", "b", "b"], [0.0] * 3, [1] * 3, unknown=0))
    with pytest.raises(CheckpointError, match="a score that is no number"):
        Pieces(["a"], [float("nan")], [1], unknown=0)


def test_without_kernels_the_library_does_it(plain: GemmaTokenizerFast) -> None:
    assert not is_light(plain)
    assert isinstance(plain.backend_tokenizer, Tokenizer)


@needs_kernels
def test_a_processor_does_not_build_the_library() -> None:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<mask>", "image_token": "<b>"}
    light = opened(extra_special_tokens=named)
    processor = Gemma3Processor(Gemma3ImageProcessor(size={"height": 18, "width": 18}), light)
    given = processor(text="the cow", return_offsets_mapping=True)
    assert given["input_ids"] == [light.encode("the cow")]
    assert is_light(light)
