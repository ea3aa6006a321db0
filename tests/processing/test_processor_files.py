"""Processors on disk: what we save opens in the reference, and the reverse; what is damaged is named."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from processor_pairs import TEMPLATE, assert_same, gemma3_pair, paligemma_pair, picture, rows

from gemlens.errors import CheckpointError, GemlensError, InputError
from gemlens.processing.auto_processor import AutoProcessor
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor
from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

A, WIDE = picture(1), picture(2, 60, 20)
MARK = "<start_of_image>"
CHAT = [{"role": "user", "content": [{"type": "image", "image": WIDE}, {"type": "text", "text": "What?"}]}]
GEMMA3 = {"images": [[A], [WIDE, A]], "text": [f"{MARK} the work", f"{MARK}\n{MARK}"], "padding": True}
PALIGEMMA = {"images": [A, WIDE], "text": ["caption en", "<loc0003> the"], "suffix": ["a work", "no"], "padding": True}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return gemma3_pair(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return paligemma_pair(tmp_path_factory.mktemp("paligemma"))


@pytest.fixture
def saved(gemma3: tuple[Any, Any], tmp_path: Path) -> Path:
    """A folder of our Gemma3Processor."""
    gemma3[0].save_pretrained(tmp_path)
    return tmp_path


class TestBothLibraries:
    """One set of files."""

    def test_what_we_save_of_gemma_3_opens_in_the_reference(self, saved: Path, gemma3: tuple[Any, Any]) -> None:
        for kind in (transformers.Gemma3Processor, transformers.AutoProcessor):
            theirs = kind.from_pretrained(saved)
            assert type(theirs) is transformers.Gemma3Processor
            assert theirs.chat_template == TEMPLATE
            assert theirs.image_seq_length == 3
            assert_same(gemma3[0](**GEMMA3), theirs(**GEMMA3))

    def test_what_the_reference_saves_of_gemma_3_opens_here(self, gemma3: tuple[Any, Any], tmp_path: Path) -> None:
        gemma3[1].save_pretrained(tmp_path)
        for kind in (Gemma3Processor, AutoProcessor):
            ours = kind.from_pretrained(tmp_path)
            assert type(ours) is Gemma3Processor
            assert type(ours.image_processor) is Gemma3ImageProcessor
            assert ours.chat_template == TEMPLATE
            assert_same(ours(**GEMMA3), gemma3[1](**GEMMA3))

    def test_what_we_save_of_paligemma_opens_in_the_reference(self, paligemma: tuple[Any, Any], tmp_path: Path) -> None:
        paligemma[0].save_pretrained(tmp_path)
        for kind in (transformers.PaliGemmaProcessor, transformers.AutoProcessor):
            theirs = kind.from_pretrained(tmp_path)
            assert type(theirs) is transformers.PaliGemmaProcessor
            assert_same(paligemma[0](**PALIGEMMA), theirs(**PALIGEMMA))

    def test_what_the_reference_saves_of_paligemma_opens_here(self, paligemma: tuple[Any, Any], tmp_path: Path) -> None:
        paligemma[1].save_pretrained(tmp_path)
        for kind in (PaliGemmaProcessor, AutoProcessor):
            ours = kind.from_pretrained(tmp_path)
            assert type(ours) is PaliGemmaProcessor
            assert_same(ours(**PALIGEMMA), paligemma[1](**PALIGEMMA))

    @pytest.mark.parametrize("several", [False, True])
    def test_chat_templates_of_the_reference(self, gemma3: tuple[Any, Any], tmp_path: Path, several: bool) -> None:
        """In their old file, and by name in their new folder."""
        theirs = copy.copy(gemma3[1])
        if several:
            theirs.chat_template = {"default": TEMPLATE, "short": "{{ bos_token }}s"}
        theirs.save_pretrained(tmp_path, save_jinja_files=several)
        assert (tmp_path / "chat_template.json").exists() is not several
        ours = Gemma3Processor.from_pretrained(tmp_path)
        assert ours.chat_template == theirs.chat_template
        assert ours.apply_chat_template(CHAT) == gemma3[1].apply_chat_template(CHAT)

    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    def test_our_templates_by_name_open_in_the_reference(self, gemma3: tuple[Any, Any], tmp_path: Path) -> None:
        templates = {"default": TEMPLATE, "short": "{{ bos_token }}s"}
        ours = Gemma3Processor(gemma3[0].image_processor, gemma3[0].tokenizer, templates, image_seq_length=3)
        ours.save_pretrained(tmp_path)
        assert transformers.Gemma3Processor.from_pretrained(tmp_path).chat_template == templates
        assert Gemma3Processor.from_pretrained(tmp_path).chat_template == templates


class TestRoundTrip:
    """What is saved comes back."""

    def test_everything_comes_back(self, saved: Path, gemma3: tuple[Any, Any]) -> None:
        again = Gemma3Processor.from_pretrained(saved)
        assert again.to_dict() == {"processor_class": "Gemma3Processor", "image_seq_length": 3}
        assert_same(again(**GEMMA3), gemma3[0](**GEMMA3))
        assert again.apply_chat_template(CHAT, tokenize=True) == gemma3[0].apply_chat_template(CHAT, tokenize=True)

    def test_the_paths_written_are_given(self, gemma3: tuple[Any, Any], tmp_path: Path) -> None:
        paths = gemma3[0].save_pretrained(tmp_path)
        assert sorted(paths) == sorted(str(path) for path in tmp_path.iterdir())
        names = {Path(path).name for path in paths}
        assert {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "chat_template.jinja"} <= names

    def test_the_kind_of_image_processor_comes_back(self, saved: Path) -> None:
        fast = AutoProcessor.from_pretrained(saved, use_fast=True)
        assert type(fast.image_processor) is Gemma3ImageProcessorFast
        fast.save_pretrained(saved)
        assert type(AutoProcessor.from_pretrained(saved).image_processor) is Gemma3ImageProcessorFast

    def test_settings_of_the_call_win_over_those_of_the_files(self, saved: Path) -> None:
        settings = {"padding_side": "right", "do_pan_and_scan": True, "image_seq_length": 5, "chat_template": "{{ 1 }}"}
        ours = AutoProcessor.from_pretrained(saved, pan_and_scan_min_crop_size=8, **settings)
        assert ours.tokenizer.padding_side == "right"
        assert ours.image_seq_length == 5
        assert ours.apply_chat_template(CHAT[:1], ours.chat_template + "{# type #}") == "1"
        assert ours(images=WIDE, text=MARK).num_crops == [[3]]
        with pytest.raises(InputError, match="paddding_side"):
            AutoProcessor.from_pretrained(saved, paddding_side="right")

    def test_files_may_stand_in_a_subfolder(self, saved: Path) -> None:
        inner = saved / "inner"
        inner.mkdir()
        for path in [*saved.iterdir()]:
            if path.is_file():
                shutil.move(path, inner)
        assert type(AutoProcessor.from_pretrained(saved, subfolder="inner")) is Gemma3Processor

    def test_processors_can_be_copied_and_sent(self, gemma3: tuple[Any, Any]) -> None:
        for again in (copy.deepcopy(gemma3[0]), pickle.loads(pickle.dumps(gemma3[0]))):
            assert_same(again(**GEMMA3), gemma3[0](**GEMMA3))

    def test_batches_can_be_moved_sent_and_unpacked(self, gemma3: tuple[Any, Any]) -> None:
        batch = gemma3[0](**GEMMA3, return_tensors="pt").to("cpu", torch.bfloat16)
        assert batch["pixel_values"].dtype == torch.bfloat16
        assert batch.num_crops == [[0], [0, 0]]
        assert {*dict(**batch)} == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
        assert pickle.loads(pickle.dumps(batch)).num_crops == batch.num_crops

    def test_decoding_is_the_tokenizers(self, gemma3: tuple[Any, Any]) -> None:
        ours, theirs = gemma3
        ids = rows(ours(text=["the work", "of"], padding=True)["input_ids"])
        assert ours.batch_decode(ids) == theirs.batch_decode(ids)
        assert ours.decode(ids[0], skip_special_tokens=True) == "the work"
        for form in (ids, torch.tensor(ids)):
            assert ours.post_process_image_text_to_text(form) == ["the work", "of"]
        assert ours.post_process_image_text_to_text(torch.tensor(ids[0])) == ["the work"]
        assert ours.post_process_image_text_to_text(ids[0]) == ["the work"]


class TestFindingTheClass:
    """AutoProcessor goes by whatever file names the class."""

    def strip(self, folder: Path, *names: str) -> None:
        """Takes the class out of the files, and processor_config.json away."""
        (folder / "processor_config.json").unlink()
        for name in ("preprocessor_config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text())
            content.pop("processor_class", None)
            if name in names:
                content["processor_class"] = "Gemma3Processor"
            (folder / name).write_text(json.dumps(content))

    @pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json"])
    def test_by_the_files_of_the_parts(self, saved: Path, name: str) -> None:
        self.strip(saved, name)
        assert type(AutoProcessor.from_pretrained(saved)) is Gemma3Processor

    @pytest.mark.parametrize(("kind", "named"), [("gemma3", Gemma3Processor), ("paligemma", PaliGemmaProcessor)])
    def test_by_the_model(self, saved: Path, paligemma: tuple[Any, Any], kind: str, named: Any) -> None:
        if kind == "paligemma":
            paligemma[0].save_pretrained(saved)
        self.strip(saved)
        (saved / "config.json").write_text(json.dumps({"model_type": kind}))
        assert type(AutoProcessor.from_pretrained(saved)) is named

    def test_a_model_of_text_has_a_tokenizer(self, saved: Path) -> None:
        self.strip(saved)
        (saved / "preprocessor_config.json").unlink()
        assert type(AutoProcessor.from_pretrained(saved, padding_side="right")) is GemmaTokenizerFast
        (saved / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}))
        assert type(AutoProcessor.from_pretrained(saved, use_fast=True)) is GemmaTokenizerFast

    def test_other_families_are_refused(self, saved: Path) -> None:
        (saved / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
        with pytest.raises(CheckpointError, match="LlavaProcessor"):
            AutoProcessor.from_pretrained(saved)
        with pytest.raises(CheckpointError, match="not a Gemma3Processor; use AutoProcessor"):
            Gemma3Processor.from_pretrained(saved)

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="names a processor"):
            AutoProcessor.from_pretrained(tmp_path)
        with pytest.raises(CheckpointError):
            Gemma3Processor.from_pretrained(tmp_path)


class TestDamage:
    """Damaged files are named in a sentence."""

    def test_the_new_template_wins_over_the_old_one(self, saved: Path) -> None:
        (saved / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
        assert Gemma3Processor.from_pretrained(saved).chat_template == TEMPLATE
        (saved / "chat_template.jinja").unlink()
        assert Gemma3Processor.from_pretrained(saved).chat_template == "old"

    def test_without_a_template_the_tokenizers_own_is_used(self, saved: Path) -> None:
        (saved / "chat_template.jinja").unlink()
        config = json.loads((saved / "tokenizer_config.json").read_text())
        (saved / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ bos_token }}own type"}))
        ours = Gemma3Processor.from_pretrained(saved)
        assert ours.apply_chat_template(CHAT) == "<bos>own type"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("processor_config.json", b"{"),
            ("processor_config.json", b"[]"),
            ("processor_config.json", b'{"processor_class": "Gemma3Processor", "image_seq_length": -3}'),
            ("processor_config.json", b'{"processor_class": "Gemma3Processor", "image_seq_length": "many"}'),
            ("chat_template.jinja", b"\xff\xfe\xfd"),
            ("chat_template.jinja", b"x" * 300_000),
            ("preprocessor_config.json", b"{]"),
            ("tokenizer.json", b"{}"),
        ],
    )
    def test_damaged_files(self, saved: Path, name: str, content: bytes) -> None:
        (saved / name).write_bytes(content)
        with pytest.raises(GemlensError) as caught:
            AutoProcessor.from_pretrained(saved)
        assert str(caught.value).endswith(".")

    def test_a_damaged_old_template(self, saved: Path) -> None:
        (saved / "chat_template.jinja").unlink()
        (saved / "chat_template.json").write_text('{"chat_template": 3}')
        with pytest.raises(CheckpointError, match="no text under 'chat_template'"):
            Gemma3Processor.from_pretrained(saved)

    def test_a_file_is_no_folder(self, gemma3: tuple[Any, Any], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(GemlensError):
            gemma3[0].save_pretrained(tmp_path / "file")

    def test_names_of_templates_are_no_paths(self, gemma3: tuple[Any, Any], tmp_path: Path) -> None:
        ours = Gemma3Processor(gemma3[0].image_processor, gemma3[0].tokenizer, {"../../x": "a"})
        with pytest.raises(InputError, match="no name for a chat template"):
            ours.save_pretrained(tmp_path)
