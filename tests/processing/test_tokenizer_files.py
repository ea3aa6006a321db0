"""Files of tokenizers: which of them count, what survives a round trip, and what strangers may put in them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from small_vocabulary import metadata, small_pieces, small_tokenizer

from gemlens.errors import CheckpointError
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.tokenizer import GemmaTokenizerFast
from gemlens.processing.text.tokenizer_files import tokenizer_of_gguf

BOS = 2


@pytest.fixture(scope="module")
def ours() -> GemmaTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(extra_special_tokens={"image_token": "<image>"}, chat_template="{{ bos_token }}").save_pretrained(
        path
    )
    return path


def test_settings_of_a_call_beat_stored_ones(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        folder, padding_side="right", model_max_length=3, eos_token="<end_of_turn>"
    )
    assert tokenizer.padding_side == "right"
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert len(tokenizer("the cow on the beach", truncation=True)["input_ids"]) == 3


def test_the_newer_file_of_a_chat_template_wins(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "processor"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {"default": "a", "tools": "b"}
    (tmp_path / "chat_template.jinja").write_text("{{ 'jinja' }}\n")
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ 'jinja' }}\n"


def test_older_files_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    size = len(AutoTokenizer.from_pretrained(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": size}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end_of_turn>"}}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token == "<end_of_turn>"
    assert tokenizer.encode("<new>") == [BOS, size]


def test_settings_of_other_programs_survive(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    strange = {"processor_class": "Gemma3Processor", "sp_model_kwargs": None, "auto_map": {"AutoTokenizer": "code.py"}}
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **strange}))
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert written["processor_class"] == "Gemma3Processor"
    assert "auto_map" not in written


def test_the_vocabulary_of_a_gguf_file(ours: GemmaTokenizerFast) -> None:
    stored = tokenizer_of_gguf(metadata())
    tokenizer = GemmaTokenizerFast(tokenizer_object=stored.backend, **stored.settings)
    assert tokenizer.get_vocab() == ours.get_vocab()
    assert tokenizer.model_max_length == 512
    assert tokenizer.special_tokens_map == ours.special_tokens_map
    for text in ("the cow  on <mask>the beach", "\u2603\n\n\n<bos>"):
        assert tokenizer(text).data == ours(text).data


class TestDamagedFiles:
    def test_no_tokenizer_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"neither 'tokenizer\.json' nor 'tokenizer\.model'"):
            AutoTokenizer.from_pretrained(tmp_path)
        (tmp_path / "a.gguf").touch()
        with pytest.raises(CheckpointError, match=r"pass gguf_file='a\.gguf'"):
            AutoTokenizer.from_pretrained(tmp_path)

    @pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}'])
    def test_no_tokenizer_in_it(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"is no tokenizer .*download it again"):
            AutoTokenizer.from_pretrained(tmp_path)

    def test_another_family(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
        with pytest.raises(CheckpointError, match="describes a Qwen2Tokenizer, but gemlens reads Gemma's"):
            AutoTokenizer.from_pretrained(tmp_path)

    def test_files_that_disagree(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": {"content": "<bos>"}}}')
        with pytest.raises(CheckpointError, match="do not agree: '<bos>' is token 7 in one and 2 in another"):
            AutoTokenizer.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"model": "gpt2"}, "tokenizer is 'gpt2', but Gemma's is 'llama'"),
            ({"tokens": None}, "has no list 'tokenizer.ggml.tokens'"),
            ({"scores": [0.0]}, "1 scores"),
            ({"token_type": [1]}, "1 types"),
            ({"tokens": list(range(len(small_pieces().texts)))}, "pieces must be texts"),
            ({"scores": ["0"] * len(small_pieces().texts)}, "scores and types numbers"),
            ({"tokens": ["a" * 1000, *small_pieces().texts[1:]]}, "more than 128 characters"),
            ({"unknown_token_id": "3"}, "unknown token is -1"),
            ({"unknown_token_id": 10**6}, "unknown token is 1000000"),
            ({"bos_token_id": 10**6}, "bos token is 1000000, but it has"),
            ({"tokens": ["a"] * len(small_pieces().texts)}, "'a' more than once"),
        ],
    )
    def test_a_gguf_file_without_such_a_vocabulary(self, changed: dict[str, Any], words: str) -> None:
        content = metadata() | {f"tokenizer.ggml.{name}": value for name, value in changed.items()}
        with pytest.raises(CheckpointError, match=words):
            tokenizer_of_gguf(content)

    WRONG = (1, -1, 1.5, True, "x", "", [], {}, [1], {"content": 3}, "\ud800", 10**40, float("nan"))

    def test_settings_of_any_kind_are_read_or_refused(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text())
        refused = 0
        for name in (*config, "additional_special_tokens", "image_token"):
            for value in self.WRONG:
                (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, name: value}))
                try:
                    AutoTokenizer.from_pretrained(tmp_path)("the cow")
                except CheckpointError:
                    refused += 1
        assert refused > 150

    def test_mutated_files_are_read_or_refused(self, folder: Path, tmp_path: Path) -> None:
        dice = random.Random(3)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        refused = 0
        for _ in range(600):
            name = dice.choice(list(files))
            content = bytearray(files[name])
            for _ in range(dice.randint(0, 3)):
                content[dice.randrange(len(content))] = dice.choice(b'0123456789"{}[],:ntfe\xff\0')
            end = len(content) if dice.random() < 0.7 else dice.randrange(len(content))
            (tmp_path / name).write_bytes(content[:end])
            try:
                AutoTokenizer.from_pretrained(tmp_path)("the cow")
            except CheckpointError:
                refused += 1
            (tmp_path / name).write_bytes(files[name])
        assert 200 < refused < 500
