"""Which weights learn: parts by name, for every family; frozen ones get no gradient, others the one that they had."""

from types import ModuleType

import pytest
import torch
from torch import nn

import gemlens
from gemlens.errors import InputError
from gemlens.training.freezing import train_only
from gemlens.training.lora import LoraSettings, add_lora

PARTS = ["vision", "projector", "language", "embeddings", "norms", "attention", "mlp"]


def learning(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}


def holding(model: nn.Module, *texts: str) -> set[str]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name for name in names if any(text in name for text in texts)}


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "gemma3-pictures"])
def test_each_part_is_what_its_name_says(tiny: ModuleType, family: str) -> None:
    model = tiny.fresh(family)
    text = "model.language_model."
    in_layers = holding(model, f"{text}layers.")
    expected = {
        "vision": holding(model, "model.vision_tower."),
        "projector": holding(model, "model.multi_modal_projector."),
        "language": in_layers | {f"{text}norm.weight"},
        "embeddings": {f"{text}embed_tokens.weight", "lm_head.weight"},
        "head": {f"{text}embed_tokens.weight", "lm_head.weight"},
        "norms": {name for name in in_layers if "norm" in name} | {f"{text}norm.weight"},
        "attention": {name for name in in_layers if "self_attn" in name and "norm" not in name},
        "mlp": {name for name in in_layers if ".mlp." in name},
        "all": {name for name, _ in model.named_parameters(remove_duplicate=False)},
    }
    for part, names in expected.items():
        train_only(model, [part])
        assert learning(model) == names, part
        assert names, part


def test_parts_add_up_and_a_tied_weight_counts_once(tiny: ModuleType) -> None:
    model = tiny.fresh("paligemma")
    report = train_only(model, [*PARTS, "head"])
    assert report.count == report.of == model.num_parameters()
    assert len(report.names) == len(list(model.named_parameters()))
    one = train_only(model, ["projector"])
    assert one.count == sum(weight.numel() for weight in model.multi_modal_projector.parameters())
    assert str(one) == f"{one.count:,} of {one.of:,} numbers learn ({one.count / one.of:.2%})"


def test_a_head_of_its_own_is_not_the_embedding(tiny: ModuleType) -> None:
    model = tiny.fresh("gemma3", tie_word_embeddings=False)
    train_only(model, ["head"])
    assert learning(model) == {"lm_head.weight"}
    train_only(model, ["embeddings"])
    assert learning(model) == {"model.embed_tokens.weight"}


def test_lora_is_a_part_of_its_own(tiny: ModuleType) -> None:
    model = tiny.fresh("paligemma")
    add_lora(model, LoraSettings(rank=2))
    adapter = holding(model, "lora_")
    assert learning(model) == adapter
    train_only(model, ["lora", "projector"])
    assert learning(model) == adapter | holding(model, "projector")
    train_only(model, ["mlp"])
    assert learning(model) == holding(model, ".mlp.") - adapter - holding(model, "vision")
    train_only(model, ["all"])
    assert learning(model) >= adapter


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("model.language_model.layers.1", 9),
        ("model.vision_tower", None),
        ("model.language_model.norm.weight", 1),
        (r".*layers\.[02]\.mlp\.up_proj\.weight", 2),
    ],
)
def test_modules_weights_and_patterns_are_named_too(tiny: ModuleType, part: str, count: int | None) -> None:
    model = tiny.fresh("paligemma")
    train_only(model, [part])
    expected = len(holding(model, "vision_tower")) if count is None else count
    assert len(learning(model)) == expected


@pytest.mark.parametrize("part", ["vison", "layers", "lora", "model.language_model.layers.9", ""])
def test_a_part_that_the_model_has_not_is_refused_with_the_known_ones(tiny: ModuleType, part: str) -> None:
    model = tiny.fresh("paligemma")
    before = learning(model)
    with pytest.raises(
        InputError, match=rf"^'{part}' is to learn, but no weight .* known are vision, projector, .*all"
    ):
        train_only(model, ["projector", part])
    assert learning(model) == before


def test_a_text_model_has_neither_vision_nor_projector(tiny: ModuleType) -> None:
    for part in ("vision", "projector"):
        with pytest.raises(InputError, match="known are language, embeddings, head, norms, attention, mlp, all"):
            train_only(tiny.fresh("gemma3"), [part])


@pytest.mark.parametrize("parts", [[], "vision"])
def test_parts_are_a_list_of_names(tiny: ModuleType, parts: object) -> None:
    with pytest.raises(InputError, match="must be a list of at least one name"):
        train_only(tiny.fresh("paligemma"), parts)  # type: ignore[arg-type]


def test_a_broken_pattern_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(InputError, match=r"'\(' is neither a part of the model nor a regular expression"):
        train_only(tiny.fresh("paligemma"), ["("])


def test_rounded_weights_cannot_learn(tiny: ModuleType, tmp_path: object) -> None:
    tiny.fresh("gemma3").save_pretrained(tmp_path)
    config = gemlens.TorchAoConfig("int8_weight_only")
    model = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    with pytest.raises(InputError, match=r"'model.layers.0.*' is rounded to integers and cannot learn"):
        train_only(model, ["attention"])
    train_only(model, ["norms"])


@pytest.mark.parametrize(
    ("family", "part"),
    [("paligemma", "projector"), ("gemma3-pictures", "projector"),
     *((family, part) for family in ("gemma3", "paligemma", "gemma3-pictures") for part in ("mlp", "lora"))],
)  # fmt: skip
def test_checkpointing_below_frozen_embeddings_gives_the_gradients_of_full_training(
    tiny: ModuleType, family: str, part: str
) -> None:
    """Elsewhere the layers' inputs then need no gradient, and checkpointing silently loses all of them."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny.fresh(family)
        if part == "lora":
            torch.manual_seed(0)
            add_lora(model, LoraSettings(rank=2, dropout=0.0))
        full = model.requires_grad_(True)
        if checkpointing:
            train_only(model, [part])
            full.gradient_checkpointing_enable()
        batch = tiny.prompt(family)
        labels = batch["input_ids"].clone()
        labels[:, :6] = -100
        model.train()(**batch, labels=labels).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    everything, some = gradients
    assert some.keys() == learning(model)
    for name, gradient in some.items():
        torch.testing.assert_close(gradient, everything[name])
    assert any(gradient.abs().max() > 0 for gradient in some.values())
