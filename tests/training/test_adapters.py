"""Adapters in peft's format: what we save opens in peft, what peft saves opens here, and nothing is left out."""

import json
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import lora_pairs
import peft
import pytest
import torch
from lora_pairs import plain, stir, with_peft
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemlens.errors import CheckpointError, InputError
from gemlens.training.adapters import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from gemlens.training.freezing import train_only
from gemlens.training.lora import LoraSettings, add_lora, lora_layers, merge_lora

cases = pytest.mark.parametrize("case", lora_pairs.CASES)
peft_copies_both = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
PALIGEMMA, TEXT = "PaliGemmaForConditionalGeneration-Gemma", "Gemma3ForCausalLM"
PICTURES = [PALIGEMMA, "Gemma3ForConditionalGeneration"]


def edit(folder: Path, **changes: Any) -> None:
    """Changes fields of an adapter_config.json."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Any) -> None:
    """Puts change(tensors) in the place of an adapter's tensors."""
    save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE)


@torch.no_grad()
def assert_same(theirs: Any, ours: Any, rows: Any) -> None:
    expected, found = theirs(**rows.reference()).logits, ours(**rows.ours()).logits
    assert (expected[rows.real] - found[rows.real]).abs().max() < 2e-5


def ours_saved(case: str, folder: Path, parts: tuple[str, ...] = ("lora",), **settings: Any) -> tuple[Any, Any]:
    """Our model with an adapter that does something, saved; and a batch."""
    pair, rows = plain(case)
    add_lora(pair.ours, LoraSettings(**{"rank": 4, "alpha": 6.0, **settings}))
    train_only(pair.ours, parts)
    stir(pair.ours)
    save_adapter(pair.ours, folder, base_model="somewhere/else")
    return pair.ours, rows


def test_a_model_with_an_adapter_is_not_saved_as_a_checkpoint(tmp_path: Path) -> None:
    ours, _ = ours_saved(TEXT, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"'model\.layers\.0\..*' has an adapter.*merge it first"):
        ours.save_pretrained(tmp_path / "model")
    merge_lora(ours)
    ours.save_pretrained(tmp_path / "model")


class TestOursInPeft:
    @cases
    def test_the_logits_are_the_same(self, case: str, tmp_path: Path) -> None:
        ours, rows = ours_saved(case, tmp_path)
        theirs = peft.PeftModel.from_pretrained(plain(case)[0].reference, tmp_path)
        assert_same(theirs, ours.eval(), rows)

    @peft_copies_both
    @pytest.mark.parametrize("case", PICTURES)
    @pytest.mark.parametrize("parts", [("projector",), ("projector", "vision"), ("norms",), ("embeddings", "head")])
    def test_with_modules_that_were_trained_in_full(self, case: str, parts: tuple[str, ...], tmp_path: Path) -> None:
        ours, rows = ours_saved(case, tmp_path, ("lora", *parts))
        theirs = peft.PeftModel.from_pretrained(plain(case)[0].reference, tmp_path)
        assert_same(theirs, ours.eval(), rows)

    @pytest.mark.parametrize(
        "settings",
        [{"rslora": True}, {"targets": ("vision", "q_proj")}, {"targets": ("all-linear",)}, {"dtype": "bfloat16"}],
        ids=str,
    )
    def test_with_other_settings(self, settings: dict[str, Any], tmp_path: Path) -> None:
        ours, rows = ours_saved(PALIGEMMA, tmp_path, **settings)
        theirs = peft.PeftModel.from_pretrained(plain()[0].reference, tmp_path)
        assert_same(theirs, ours.eval(), rows)

    @cases
    def test_names_and_shapes_in_the_file_are_those_that_peft_writes(self, case: str, tmp_path: Path) -> None:
        ours_saved(case, tmp_path / "ours")
        with_peft(plain(case)[0].reference).save_pretrained(tmp_path / "theirs")
        ours, theirs = (load_file(tmp_path / side / WEIGHTS_FILE) for side in ("ours", "theirs"))
        assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}

    def test_the_config_names_layers_shortly_but_not_those_of_the_picture_encoder(self, tmp_path: Path) -> None:
        for case, expected in (
            (TEXT, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
            (PALIGEMMA, r".*language_model.*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)"),
        ):
            ours_saved(case, tmp_path)
            content = json.loads((tmp_path / CONFIG_FILE).read_text())
            assert content["target_modules"] == expected
            assert content["base_model_name_or_path"] == "somewhere/else"

    def test_layers_of_different_ranks(self, tmp_path: Path) -> None:
        pair, rows = plain(TEXT)
        theirs = with_peft(pair.reference, rank_pattern={"layers.1.*q_proj": 2}, alpha_pattern={"v_proj": 9})
        theirs.save_pretrained(tmp_path / "theirs")
        load_adapter(pair.ours, tmp_path / "theirs")
        assert_same(theirs, pair.ours, rows)
        save_adapter(pair.ours, tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(plain(TEXT)[0].reference, tmp_path / "ours")
        assert_same(again, pair.ours, rows)


class TestPeftInOurs:
    @cases
    def test_the_logits_are_the_same(self, case: str, tmp_path: Path) -> None:
        pair, rows = plain(case)
        theirs = with_peft(pair.reference)
        theirs.save_pretrained(tmp_path)
        names = load_adapter(pair.ours, tmp_path)
        assert set(names) == set(lora_layers(pair.ours))
        assert_same(theirs, pair.ours, rows)

    @pytest.mark.parametrize("case", PICTURES)
    def test_with_the_projector_trained_in_full(self, case: str, tmp_path: Path) -> None:
        pair, rows = plain(case)
        theirs = with_peft(pair.reference, modules_to_save=["multi_modal_projector"])
        theirs.save_pretrained(tmp_path)
        load_adapter(pair.ours, tmp_path)
        assert_same(theirs, pair.ours, rows)
        learning = {name for name, weight in pair.ours.named_parameters() if weight.requires_grad}
        full = {name for name in learning if "lora" not in name}
        assert full
        assert all(name.startswith("model.multi_modal_projector.") for name in full)

    @peft_copies_both
    @pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids=str)
    def test_with_a_tied_head_trained_by_itself(self, names: list[str], tmp_path: Path) -> None:
        """peft copies what it trains in full, so the tie is cut there; here too, and in what is saved."""
        pair, rows = plain(TEXT)
        theirs = with_peft(pair.reference, modules_to_save=names)
        theirs.save_pretrained(tmp_path / "adapter")
        load_adapter(pair.ours, tmp_path / "adapter")
        assert_same(theirs, pair.ours, rows)
        merge_lora(pair.ours)
        pair.ours.save_pretrained(tmp_path / "merged")
        assert_same(theirs, type(pair.ours).from_pretrained(tmp_path / "merged"), rows)

    @pytest.mark.parametrize(
        "changes",
        [
            {"use_rslora": True},
            {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
            {"layers_to_transform": 1},
            {"exclude_modules": ["v_proj"]},
            {"exclude_modules": r".*\.2\..*"},
            {"init_lora_weights": "gaussian"},
            {"rank_pattern": {r"^model\.layers\.0.*": 3}, "alpha_pattern": {"up_proj": 1}},
            {"target_modules": "all-linear"},
            {"target_modules": ["model.layers.1.mlp.up_proj", "q_proj"]},
        ],
        ids=str,
    )
    def test_with_what_else_peft_can_be_told(self, changes: dict[str, Any], tmp_path: Path) -> None:
        pair, rows = plain(TEXT)
        targets = changes.pop("target_modules", ["q_proj", "v_proj", "up_proj"])
        theirs = with_peft(pair.reference, targets, **changes)
        theirs.save_pretrained(tmp_path)
        load_adapter(pair.ours, tmp_path)
        assert_same(theirs, pair.ours, rows)

    @pytest.mark.parametrize("case", PICTURES)
    def test_from_an_older_transformers_with_other_names(self, case: str, tmp_path: Path) -> None:
        pair, rows = plain(case)
        theirs = with_peft(pair.reference, modules_to_save=["multi_modal_projector"])
        theirs.save_pretrained(tmp_path)

        def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            names = {
                name: name.replace(".model.model.language_model.", ".model.language_model.model.") for name in tensors
            }
            return {new.replace(".model.model.multi", ".model.multi"): tensors[name] for name, new in names.items()}

        rewrite(tmp_path, older)
        edit(tmp_path, target_modules=r"language_model\.model.*\.([qkvo]|gate|up|down)_proj")
        load_adapter(pair.ours, tmp_path)
        assert_same(theirs, pair.ours, rows)

    def test_what_was_loaded_is_saved_again_as_it_was(self, tmp_path: Path) -> None:
        pair, _ = plain()
        theirs = with_peft(pair.reference, modules_to_save=["multi_modal_projector"], lora_dropout=0.25)
        theirs.save_pretrained(tmp_path / "theirs")
        load_adapter(pair.ours, tmp_path / "theirs")
        save_adapter(pair.ours, tmp_path / "ours")
        expected, found = (load_file(tmp_path / side / WEIGHTS_FILE) for side in ("theirs", "ours"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        said, again = (json.loads((tmp_path / side / CONFIG_FILE).read_text()) for side in ("theirs", "ours"))
        for field in ("r", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "use_rslora"):
            assert again[field] == said[field], field


class TestRefusals:
    """Whatever does not fit exactly is an error, and the model is as it was."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        ours_saved(PALIGEMMA, tmp_path, ("lora", "projector"))
        return tmp_path

    def refused(self, folder: Path, sentence: str, case: str = PALIGEMMA) -> None:
        model = plain(case)[0].ours
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=sentence):
            load_adapter(model, folder)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(weight, after[name]) for name, weight in before.items())

    def test_a_wrong_prefix(self, folder: Path) -> None:
        """Elsewhere such a file loads without a word and leaves the base model."""
        rewrite(folder, lambda tensors: {f"x.{name}": tensor for name, tensor in tensors.items()})
        self.refused(folder, r"does not fit.* missing: .*q_proj\.lora_A\.weight.*left over: 'x\.base_model")

    def test_a_tensor_that_is_missing(self, folder: Path) -> None:
        for lost in ("lora_A", "lora_B", "projector.linear.bias"):
            kept = load_file(folder / WEIGHTS_FILE)
            name = next(name for name in kept if lost in name)
            save_file({other: tensor for other, tensor in kept.items() if other != name}, folder / WEIGHTS_FILE)
            self.refused(folder, rf"missing: '{re.escape(name.removeprefix('base_model.model.'))}'")
            save_file(kept, folder / WEIGHTS_FILE)

    def test_a_layer_that_is_missing_whole(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: {name: tensors[name] for name in tensors if "layers.1.mlp.up" not in name})
        self.refused(folder, r"missing: .*layers\.1\.mlp\.up_proj\.lora_A.*layers\.1\.mlp\.up_proj\.lora_B")

    def test_a_tensor_too_many(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: {**tensors, "base_model.model.model.what.lora_A.weight": torch.ones(4, 4)})
        self.refused(folder, r"left over: 'base_model\.model\.model\.what\.lora_A\.weight'")

    def test_an_adapter_of_another_model(self, folder: Path, tmp_path: Path) -> None:
        self.refused(folder, r"left over: .*multi_modal_projector", case=TEXT)
        ours_saved("Gemma2ForCausalLM", tmp_path / "gemma2")
        self.refused(tmp_path / "gemma2", "layers", case=TEXT)

    def test_a_rank_that_is_not_the_configs(self, folder: Path) -> None:
        edit(folder, r=8)
        self.refused(folder, r"of the wrong shape: .*lora_A\.weight' is \[4, 32\] but should be \[8, 32\]")

    @pytest.mark.parametrize(
        "field",
        [
            {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"fan_in_fan_out": True},
            {"trainable_token_indices": [1]}, {"layer_replication": [[0, 2]]}, {"init_lora_weights": "pissa"},
            {"peft_type": "LOHA"}, {"target_parameters": ["x"]}, {"a_field_of_the_future": 3},
        ],
        ids=str,
    )  # fmt: skip
    def test_settings_that_would_change_the_numbers(self, folder: Path, field: dict[str, Any]) -> None:
        edit(folder, **field)
        name, value = next(iter(field.items()))
        self.refused(folder, rf"^adapter_config.json has {name} = {re.escape(repr(value))}, which changes")

    @pytest.mark.parametrize(
        "field",
        [{"r": None}, {"r": 0}, {"lora_alpha": "x"}, {"target_modules": "("}, {"target_modules": [1]},
         {"rank_pattern": {"(": 1}}, {"rank_pattern": 7}, {"rank_pattern": {"q_proj": "x"}},
         {"layers_to_transform": "all"}, {"layers_to_transform": [0.5]}, {"layers_pattern": "("},
         {"exclude_modules": 5}],
        ids=str,
    )  # fmt: skip
    def test_fields_that_make_no_sense(self, folder: Path, field: dict[str, Any]) -> None:
        edit(folder, **field)
        self.refused(folder, "none of peft's")

    def test_files_that_are_missing_damaged_or_pickled(self, folder: Path, tmp_path: Path) -> None:
        weights = (folder / WEIGHTS_FILE).read_bytes()
        (folder / WEIGHTS_FILE).write_bytes(weights[:1000])
        self.refused(folder, "no sound safetensors file|can hold")
        (folder / WEIGHTS_FILE).unlink()
        self.refused(folder, "There is no 'adapter_model.safetensors'")
        (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
        self.refused(folder, r"only 'adapter_model.bin'; such files are pickles")
        (folder / CONFIG_FILE).unlink()
        self.refused(folder, "There is no 'adapter_config.json'")

    def test_a_second_adapter(self, folder: Path) -> None:
        model = plain()[0].ours
        load_adapter(model, folder)
        with pytest.raises(InputError, match="has an adapter already"):
            load_adapter(model, folder)


class TestSaving:
    def test_a_model_without_an_adapter_is_refused(self, tiny: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no adapter to save"):
            save_adapter(tiny.fresh("gemma3"), tmp_path)

    def test_what_peft_cannot_say_is_refused(self, tiny: ModuleType, tmp_path: Path) -> None:
        model = tiny.fresh("paligemma")
        add_lora(model, LoraSettings())
        train_only(model, ["lora", r".*projector\.linear\.bias"])
        with pytest.raises(InputError, match=r"linear\.bias' learned while another weight of the same module did not"):
            save_adapter(model, tmp_path)
        train_only(model, ["lora", "mlp"])
        with pytest.raises(InputError, match=r"base_layer\.weight' learned beside the adapter of its layer"):
            save_adapter(model, tmp_path)
        assert not any(tmp_path.iterdir())

    def test_a_failure_leaves_the_old_adapter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gemlens.checkpoints import save

        ours, _ = ours_saved(TEXT, tmp_path)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(save.os, "fsync", full)
        stir(ours)
        with pytest.raises(CheckpointError, match="No space left"):
            save_adapter(ours, tmp_path)
        monkeypatch.undo()
        assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
        load_adapter(plain(TEXT)[0].ours, tmp_path)

    def test_saving_twice_replaces_the_first(self, tmp_path: Path) -> None:
        ours, rows = ours_saved(TEXT, tmp_path)
        stir(ours, seed=8)
        save_adapter(ours, tmp_path)
        again = plain(TEXT)[0].ours
        load_adapter(again, tmp_path)
        with torch.no_grad():
            assert torch.equal(again(**rows.ours()).logits, ours.eval()(**rows.ours()).logits)

    def test_the_file_is_plain_safetensors_that_say_so(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        ours_saved(TEXT, tmp_path)
        with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
