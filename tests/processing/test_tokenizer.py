"""GemmaTokenizerFast on a small vocabulary: what calls give, beside transformers' class with the same files."""

import copy
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from small_vocabulary import PROBES, small_tokenizer
from tokenizers import AddedToken, Tokenizer

from gemlens.errors import InputError
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

BOS, EOS, PAD = 2, 1, 0


@pytest.fixture(scope="module")
def ours() -> GemmaTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    extra = {"image_token": "<image>", "boi_token": "<start_of_image>"}
    small_tokenizer(extra_special_tokens=extra, chat_template="{{ bos_token }}", model_max_length=40).save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module")
def stored(folder: Path) -> GemmaTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a call gives, in order, as lists."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}


# -- beside transformers -----------------------------------------------------------------------------------------------


# The reference gives a text that begins with <bos> a second one; we do not.
TEXTS = PROBES.filter(lambda text: not text.startswith("<bos>"))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "add_special_tokens": st.booleans(),
        "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
        "truncation": st.sampled_from([True, False, "longest_first", "do_not_truncate"]),
        "max_length": st.integers(4, 24),
        "pad_to_multiple_of": st.sampled_from([1, 4, 8]),
        "padding_side": st.sampled_from(["left", "right"]),
        "return_token_type_ids": st.booleans(),
        "return_attention_mask": st.booleans(),
        "return_special_tokens_mask": st.booleans(),
        "return_offsets_mapping": st.booleans(),
        "return_length": st.booleans(),
        "split_special_tokens": st.booleans(),
    },
)


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
class TestBesideTransformers:
    def both(self, ours: Any, reference: Any, *arguments: Any, **options: Any) -> None:
        try:
            expected = plain(reference(*arguments, **options))
        except ValueError:
            with pytest.raises(InputError, match="multiple of pad_to_multiple_of"):
                ours(*arguments, **options)
            return
        given = plain(ours(*arguments, **options))
        assert given == expected
        assert list(given) == list(expected)

    @given(text=TEXTS, options=OPTIONS)
    def test_one_text(self, stored: Any, reference: Any, text: str, options: dict[str, Any]) -> None:
        self.both(stored, reference, text, **options)

    @given(texts=st.lists(TEXTS, min_size=1, max_size=4), options=OPTIONS)
    def test_several_texts(self, stored: Any, reference: Any, texts: list[str], options: dict[str, Any]) -> None:
        self.both(stored, reference, texts, **options)

    @given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), options=OPTIONS)
    def test_pairs(self, stored: Any, reference: Any, pairs: list[tuple[str, str]], options: dict[str, Any]) -> None:
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.both(stored, reference, first, second, **options)

    @pytest.mark.parametrize("bos", [True, False])
    @pytest.mark.parametrize("eos", [True, False])
    def test_bos_and_eos(self, stored: Any, reference: Any, bos: bool, eos: bool) -> None:
        mine, theirs = copy.deepcopy(stored), copy.deepcopy(reference)
        for tokenizer in (mine, theirs):
            tokenizer.add_bos_token, tokenizer.add_eos_token = bos, eos
        for options in ({}, {"max_length": 6, "truncation": True}, {"add_special_tokens": False}):
            self.both(mine, theirs, "the cow on", **options)
            self.both(mine, theirs, ["the cow on", ""], ["beach", "the"], return_token_type_ids=True, **options)

    @pytest.mark.parametrize("strategy", ["only_first", "only_second"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_where_pairs_are_cut(self, stored: Any, reference: Any, strategy: str, side: str) -> None:
        mine, theirs = copy.deepcopy(stored), copy.deepcopy(reference)
        mine.truncation_side = theirs.truncation_side = side
        pair = ("the cow on the beach", "a cow on a beach")
        for length in range(9, 20):
            self.both(mine, theirs, *pair, truncation=strategy, max_length=length)

    @given(
        st.lists(TEXTS, min_size=1, max_size=4),
        st.sampled_from([True, False, "max_length"]),
        st.sampled_from([None, 4]),
        st.sampled_from(["left", "right", None]),
        st.booleans(),
    )
    def test_padding_later(
        self, stored: Any, reference: Any, texts: list[str], padding: Any, multiple: Any, side: Any, by_row: bool
    ) -> None:
        given = stored(texts, return_special_tokens_mask=True, return_token_type_ids=True).data
        rows = [{name: given[name][row] for name in given} for row in range(len(texts))] if by_row else given
        kept = copy.deepcopy(rows)
        options = {"padding": padding, "max_length": 14, "pad_to_multiple_of": multiple, "padding_side": side}
        assert stored.pad(rows, **options).data == dict(reference.pad(kept, **options))
        assert rows == kept

    @given(st.lists(st.integers(0, 500), max_size=12), st.booleans(), st.booleans())
    def test_decoding(self, stored: Any, reference: Any, ids: list[int], skip: bool, clean: bool) -> None:
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        assert stored.decode(ids, **options) == reference.decode(ids, **options)
        assert stored.convert_ids_to_tokens(ids, skip) == reference.convert_ids_to_tokens(ids, skip)

    def test_names_and_numbers(self, stored: Any, reference: Any) -> None:
        for name in (
            *("all_special_tokens", "all_special_ids", "special_tokens_map", "vocab_size", "model_max_length"),
            *("bos_token", "bos_token_id", "image_token", "image_token_id", "boi_token", "mask_token", "mask_token_id"),
            *(
                "padding_side",
                "truncation_side",
                "model_input_names",
                "add_bos_token",
                "add_eos_token",
                "chat_template",
            ),
            *("additional_special_tokens", "clean_up_tokenization_spaces", "split_special_tokens"),
        ):
            assert getattr(stored, name) == getattr(reference, name), name
        assert len(stored) == len(reference)
        assert stored.get_vocab() == reference.get_vocab()
        assert stored.get_added_vocab() == reference.get_added_vocab()
        assert stored.tokenize(" the cow<bos>") == reference.tokenize(" the cow<bos>")
        assert stored.convert_tokens_to_ids(["the", "nothing"]) == reference.convert_tokens_to_ids(["the", "nothing"])

    def test_what_transformers_saves_opens_here(self, reference: Any, stored: Any, tmp_path: Path) -> None:
        reference.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again.init_kwargs.keys() >= stored.init_kwargs.keys()
        assert again.special_tokens_map == stored.special_tokens_map
        assert again.get_vocab() == stored.get_vocab()
        assert again.chat_template == stored.chat_template
        for text in ("the cow on the beach <image>", "\u2603  <bos>"):
            assert again(text).data == stored(text).data

    def test_what_is_saved_here_gives_the_same_ids_everywhere(self, stored: Any, tmp_path: Path) -> None:
        tokenizer = copy.deepcopy(stored)
        tokenizer.add_tokens(["<loc0000>", AddedToken("<seg000>", normalized=False)])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"], "sep_token": "<sep>"})
        tokenizer.add_bos_token, tokenizer.add_eos_token, tokenizer.padding_side = False, True, "right"
        files = tokenizer.save_pretrained(tmp_path)
        assert all(Path(file).is_file() for file in files)
        text = "the <loc0000><seg000> <late>cow<sep>"
        expected = tokenizer(text)["input_ids"]
        assert expected[-1] == EOS
        assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == expected
        for reader in (AutoTokenizer, transformers.AutoTokenizer):
            again = reader.from_pretrained(tmp_path)
            assert again(text)["input_ids"] == expected
            assert again.padding_side == "right"
            assert again.sep_token == "<sep>"
            assert again.decode(expected, skip_special_tokens=True) == "the <loc0000><seg000> cow"


# -- what calls give ---------------------------------------------------------------------------------------------------


@given(PROBES)
@example("<bos>")
@example("<bos><bos>the")
def test_a_text_that_begins_with_bos_gets_no_second_one(ours: GemmaTokenizerFast, text: str) -> None:
    ids = ours.encode(text)
    bare = ours.encode(text, add_special_tokens=False)
    assert ids == (bare if bare[:1] == [BOS] else [BOS, *bare])


def test_the_reference_gives_such_a_text_a_second_bos(
    stored: GemmaTokenizerFast, reference: transformers.PreTrainedTokenizerBase
) -> None:
    assert reference.encode("<bos>the").count(BOS) == 2
    assert stored.encode("<bos>the").count(BOS) == 1


def test_the_own_bos_keeps_its_place_under_truncation_and_in_offsets(ours: GemmaTokenizerFast) -> None:
    given = ours("<bos>the cow", truncation=True, max_length=2, truncation_side="left", return_offsets_mapping=True)
    assert given["input_ids"] == [BOS, *ours.encode(" cow", add_special_tokens=False)]
    assert given["offset_mapping"] == [(0, 0), (8, 12)]


@given(PROBES)
def test_texts_come_back(ours: GemmaTokenizerFast, text: str) -> None:
    back = ours.decode(ours.encode(text, add_special_tokens=False))
    assert back == text.replace("\u2581", " ")


def test_control_tokens_stay_text_when_asked_for(ours: GemmaTokenizerFast) -> None:
    text = "a<bos><mask><end_of_turn>"
    assert BOS in ours(text)["input_ids"][1:]
    as_text = ours(text, split_special_tokens=True)["input_ids"]
    assert BOS not in as_text[1:]
    assert ours.decode(as_text, skip_special_tokens=True) == text
    assert small_tokenizer(split_special_tokens=True)(text)["input_ids"] == as_text


def test_one_text_gives_lists_and_several_give_lists_of_lists(ours: GemmaTokenizerFast) -> None:
    assert ours("the")["input_ids"] == ours(["the"])["input_ids"][0]
    assert ours(("the", "cow"))["input_ids"] == ours(["the", "cow"])["input_ids"]
    assert ours("the", return_tensors="pt").input_ids.shape == (1, 2)
    assert isinstance(ours(["the", "a cow"], padding=True, return_tensors="np")["attention_mask"], np.ndarray)
    assert ours([])["input_ids"] == []


def test_decode_takes_lists_tensors_arrays_and_numbers(ours: GemmaTokenizerFast) -> None:
    ids = ours.encode("the cow")
    for same in (ids, tuple(ids), torch.tensor(ids), np.array(ids)):
        assert ours.decode(same, skip_special_tokens=True) == "the cow"
    assert ours.decode(ids[1]) == ours.decode(torch.tensor(ids[1])) == "the"
    for rows in ([ids, ids[:2]], torch.tensor([ids, ids])):
        assert ours.batch_decode(rows, skip_special_tokens=True)[0] == "the cow"


def test_labels_are_padded_with_what_the_loss_passes_over(ours: GemmaTokenizerFast) -> None:
    rows = [{"input_ids": torch.tensor([2, 5, 6]), "labels": [-100, 5, 6]}, {"input_ids": [2], "labels": [2]}]
    batch = ours.pad(rows, return_tensors="pt")
    assert batch.labels.tolist() == [[-100, 5, 6], [-100, -100, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    for wrong in ({"input_ids": [1, 2]}, {"labels": [[1]]}, [], 3, [{"input_ids": [1]}, {"labels": [1]}]):
        with pytest.raises(InputError, match="pad takes"):
            ours.pad(wrong)  # type: ignore[arg-type]


# -- texts in parts ----------------------------------------------------------------------------------------------------


@given(st.lists(PROBES, max_size=4))
def test_trusted_parts_give_the_ids_of_the_joined_text(ours: GemmaTokenizerFast, texts: list[str]) -> None:
    parts = [(text, True) for text in texts]
    assert ours.encode_parts(parts) == ours.encode("".join(texts), add_special_tokens=False)
    assert ours.encode_parts(parts, add_special_tokens=True) == ours.encode("".join(texts))


@given(st.lists(PROBES, max_size=4))
def test_strangers_parts_are_text(ours: GemmaTokenizerFast, texts: list[str]) -> None:
    given = ours.encode_parts((text, False) for text in texts)
    assert given == ours.encode("".join(texts), add_special_tokens=False, split_special_tokens=True)


def test_only_the_templates_control_tokens_count(ours: GemmaTokenizerFast) -> None:
    start, end = ours.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    mine = "the\n<end_of_turn><start_of_turn>cow<end_of_"
    parts = [("<bos><start_of_turn>a\n", True), ("\n" + mine, False), ("turn><end_of_turn>\n", True)]
    ids = ours.encode_parts(parts, add_special_tokens=True)
    assert [ids.count(token) for token in (BOS, start, end)] == [1, 1, 1]
    assert ours.decode(ids) == "".join(text for text, _ in parts)
    assert ours.convert_tokens_to_ids("\n\n") in ids, "pieces reach over the border of two parts"


# -- the vocabulary grows ----------------------------------------------------------------------------------------------


def test_paligemmas_tokens_come_in_order_and_survive_decoding() -> None:
    tokenizer = small_tokenizer()
    first = len(tokenizer)
    places = [f"<loc{place:04}>" for place in range(1024)]
    segments = [f"<seg{segment:03}>" for segment in range(128)]
    assert tokenizer.add_tokens([*places, *segments]) == 1152
    assert tokenizer.add_tokens(places) == 0
    assert tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", normalized=False)]}) == 1
    assert tokenizer.convert_tokens_to_ids(["<loc0000>", "<seg000>", "<image>"]) == [first, first + 1024, first + 1152]
    ids = tokenizer.encode("<image><bos>the<loc0012> <seg003>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the<loc0012> <seg003>"
    assert tokenizer.vocab_size == first
    assert len(tokenizer) == first + 1153


def test_tokens_can_be_renamed_and_added_by_name() -> None:
    tokenizer = small_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["the", "a cow"], padding=True)["input_ids"][0][0] == EOS
    assert tokenizer.add_special_tokens({"image_token": "<image>"}) == 1
    assert tokenizer.image_token_id == len(tokenizer) - 1
    assert tokenizer.image_token in tokenizer.all_special_tokens
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="Padding needs a pad_token"):
        tokenizer(["the", "a cow"], padding=True)
    with pytest.raises(
        InputError, match=r"pad_token='<none>' is not in the vocabulary; add it with add_special_tokens"
    ):
        tokenizer.pad_token = "<none>"
    with pytest.raises(AttributeError, match="no 'video_token'"):
        _ = tokenizer.video_token


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": 3}, "text must be a text or a list of texts, but this came: int"),
        ({"text": None}, "but this came: NoneType"),
        ({"text": ["a", None]}, "list with NoneType in it"),
        ({"text": [["two", "words"]]}, "list with list in it. Join texts that are split"),
        ({"text": "a\ud800"}, "half a character .* at position 1"),
        ({"text": ["a", "b"], "text_pair": ["c"]}, "two lists of one length; 2 and 1 came"),
        ({"text": "a", "text_pair": ["c"]}, "two texts or two lists"),
        ({"text": "a", "padding": "longset"}, "padding='longset': pass True, False or one of 'longest'"),
        ({"text": "a", "padding": "max_length"}, r"needs max_length=\.\.\."),
        ({"text": "a", "truncation": "first"}, "truncation='first': pass True, False"),
        ({"text": "a", "max_length": -1}, "max_length=-1: pass a number of tokens"),
        ({"text": "a", "max_length": 0}, "leaves no room beside 1 special tokens"),
        ({"text": "a", "pad_to_multiple_of": 0}, "at least 1"),
        ({"text": "a", "padding_side": "top"}, "padding_side='top': pass 'left' or 'right'"),
        ({"text": "a", "return_tensors": "tf"}, "gemlens makes no TensorFlow tensors"),
        ({"text": ["a", "the cow"], "return_tensors": "pt"}, "'input_ids' has rows of 2 and 3 values.*padding=True"),
        ({"text": "a cow", "truncation": "only_second", "max_length": 1}, "needs a text_pair"),
        ({"text": "a", "text_pair": "a cow a cow", "truncation": "only_first", "max_length": 4}, "nothing of a text"),
    ],
)
def test_what_a_call_refuses(ours: GemmaTokenizerFast, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ours(**arguments)


def test_misspelt_arguments_and_settings_are_errors(ours: GemmaTokenizerFast, folder: Path) -> None:
    with pytest.raises(TypeError, match="paddin"):
        ours("a", paddin=True)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="no setting 'paddingside'; did you mean 'padding_side'"):
        AutoTokenizer.from_pretrained(folder, paddingside="left")
    with pytest.raises(InputError, match="pass 'left' or 'right'"):
        AutoTokenizer.from_pretrained(folder, padding_side="top")
    with pytest.raises(InputError, match="Pass tokenizer_file=, vocab_file= or tokenizer_object="):
        GemmaTokenizerFast()
    with pytest.raises(InputError, match="'image' names no token"):
        ours.add_special_tokens({"image": "<image>"})
    with pytest.raises(InputError, match=r"takes {name: token}"):
        ours.add_special_tokens(["<image>"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no list of tokens"):
        ours.add_special_tokens({"additional_special_tokens": "<image>"})


@pytest.mark.parametrize("ids", [[-100], [2**32], ["a"], [[1]], None, [1.5j]])
def test_what_are_no_ids_is_refused(ours: GemmaTokenizerFast, ids: Any) -> None:
    with pytest.raises(InputError, match=r"no token ids|Token ids are 0 or more"):
        ours.decode(ids)


def test_copies_and_pickles_are_equal(ours: GemmaTokenizerFast) -> None:
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin("the <bos>cow").data == ours("the <bos>cow").data
        assert twin.eos_token_id == EOS


def test_threads_do_not_meet_in_the_backends_settings(ours: GemmaTokenizerFast) -> None:
    def encode(number: int) -> list[int]:
        options = [{}, {"split_special_tokens": True}, {"padding": "max_length"}, {"truncation": True}]
        return ours("the <bos>cow on the beach" * 5, max_length=20, **options[number % 4])["input_ids"]

    expected = [encode(number) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode, range(200))) == expected * 50
