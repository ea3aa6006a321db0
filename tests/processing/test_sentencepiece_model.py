"""`tokenizer.model`: ids of a vocabulary that SentencePiece itself trained, and files that are none."""

import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import assume, given
from small_vocabulary import PROBES

from gemlens.errors import CheckpointError
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.pieces import Kind, vocabulary_texts
from gemlens.processing.text.sentencepiece_model import pieces_from_sentencepiece
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

sentencepiece = pytest.importorskip("sentencepiece")
ROOT = Path(__file__).parents[2]


def train(folder: Path, **options: Any) -> Path:
    text = (ROOT / "LICENSE").read_text() + "\tif x:\n\t\treturn \u00fcber\n" * 20
    (folder / "text.txt").write_text(text)
    gemmas = {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "control_symbols": ["<start_of_turn>"],
        "user_defined_symbols": ["<b>", "\u2581\u2581", "\n", "\n\n"],
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        minloglevel=2,
        **{**gemmas, **options},
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> GemmaTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def truth(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@given(text=PROBES)
def test_ids_are_sentencepieces(ours: GemmaTokenizerFast, truth: Any, text: str) -> None:
    assume("\0" not in text)
    assert ours.encode(text, add_special_tokens=False, split_special_tokens=True) == truth.encode(text)


def test_a_long_text_has_sentencepieces_ids(ours: GemmaTokenizerFast, truth: Any) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert ours.encode(text)[1:] == truth.encode(text)


def test_pieces_are_sentencepieces(folder: Path, truth: Any) -> None:
    pieces = pieces_from_sentencepiece(folder / "tokenizer.model")
    ids = range(truth.get_piece_size())
    assert pieces.texts == [truth.id_to_piece(token) for token in ids]
    assert pieces.scores == [truth.get_score(token) for token in ids]
    assert pieces.unknown == truth.unk_id()


@given(text=PROBES)
def test_ids_are_those_of_transformers(ours: GemmaTokenizerFast, reference: Any, text: str) -> None:
    assume(not text.startswith("<bos>"))
    assert ours.encode(text) == reference.encode(text)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.GemmaTokenizerFast(vocab_file=str(folder / "tokenizer.model"))


def test_a_vocabulary_without_the_tab_takes_its_byte_for_it() -> None:
    """As the official tokenizer.json of Gemma 1 and 2 does: else no piece with a tab in it could be merged."""
    assert vocabulary_texts(["<0x09>", "a"], [Kind.BYTE, Kind.NORMAL]) == ["\t", "a"]
    assert vocabulary_texts(["<0x09>", "\t"], [Kind.BYTE, Kind.NORMAL]) == ["<0x09>", "\t"]


def test_control_tokens_are_found(folder: Path) -> None:
    ours = GemmaTokenizerFast(vocab_file=folder / "tokenizer.model")
    assert ours.encode("<start_of_turn><eos>") == [2, 4, 1]


@pytest.mark.parametrize("end", [0, 1, 7, 100, 2000, -1, -100])
def test_a_cut_file_is_refused(folder: Path, tmp_path: Path, end: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:end])
    with pytest.raises(CheckpointError, match=r"is no SentencePiece model|not a whole SentencePiece model|than Gemma"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": True}]
)
def test_models_that_prepare_text_in_another_way_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path, **options)
    with pytest.raises(CheckpointError, match=r"prepares text in another way than Gemma does.*use the tokenizer\.json"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_mutated_files_are_read_or_refused(folder: Path, tmp_path: Path) -> None:
    dice = random.Random(5)
    whole = (folder / "tokenizer.model").read_bytes()
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 20)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(content)
        try:
            AutoTokenizer.from_pretrained(tmp_path)("the cow")
        except CheckpointError:
            refused += 1
    assert 150 < refused < 300
