"""Every layout in the wild reaches every kind of model, and what we write opens in transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gemlens.checkpoints.names import (
    MULTIMODAL,
    MULTIMODAL_BASE,
    MULTIMODAL_CLASSIFIER,
    TEXT,
    TEXT_BASE,
    VISION,
    Layout,
    canonical,
    match,
    published_name,
    quoted,
)
from gemlens.checkpoints.save import save_weights
from gemlens.errors import CheckpointError

TEXT_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
}
VISION_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}


def text_config(kind: str, tied: bool) -> Any:
    return getattr(transformers, kind)(**TEXT_SIZES, tie_word_embeddings=tied)


def paligemma(tied: bool) -> Any:
    text = {"model_type": "gemma2", "tie_word_embeddings": tied, **TEXT_SIZES}
    return transformers.PaliGemmaConfig(
        text_config=text, vision_config=VISION_SIZES, projection_dim=16, image_token_index=63, tie_word_embeddings=tied
    )


def gemma3(tied: bool) -> Any:
    text = {"tie_word_embeddings": tied, **TEXT_SIZES}
    return transformers.Gemma3Config(
        text_config=text, vision_config=VISION_SIZES, mm_tokens_per_image=4, tie_word_embeddings=tied
    )


def siglip(tied: bool) -> Any:
    return transformers.SiglipVisionConfig(**VISION_SIZES)


CLASSES: dict[str, tuple[Layout, Any]] = {
    "PaliGemmaForConditionalGeneration": (MULTIMODAL, paligemma),
    "Gemma3ForConditionalGeneration": (MULTIMODAL, gemma3),
    "Gemma3ForSequenceClassification": (MULTIMODAL_CLASSIFIER, gemma3),
    "PaliGemmaModel": (MULTIMODAL_BASE, paligemma),
    "Gemma3Model": (MULTIMODAL_BASE, gemma3),
    "Gemma3ForCausalLM": (TEXT, lambda tied: text_config("Gemma3TextConfig", tied)),
    "Gemma2ForCausalLM": (TEXT, lambda tied: text_config("Gemma2Config", tied)),
    "GemmaForCausalLM": (TEXT, lambda tied: text_config("GemmaConfig", tied)),
    "Gemma3TextModel": (TEXT_BASE, lambda tied: text_config("Gemma3TextConfig", tied)),
    "SiglipVisionModel": (VISION, siglip),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_we_write_opens_in_transformers_and_what_it_writes_is_the_same(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    layout, config = CLASSES[kind]
    transformers.logging.set_verbosity_error()
    model = getattr(transformers, kind)(config(tied)).eval()
    state = {published_name(name, layout): tensor for name, tensor in model.state_dict().items()}
    save_weights(state, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())

    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key: list(found) for key, found in info.items() if found} == {}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)

    written, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "theirs"))
    assert written.keys() == theirs.keys()
    found = match(theirs, layout)
    assert not found.ignored
    assert not found.unknown
    assert model.state_dict().keys() - found.names.keys() <= ({"lm_head.weight"} if tied else set())


# A layer norm of each part, the head and the score, as each kind of file names them.
OLDER = {
    "text": "language_model.model.norm.weight",
    "vision": "vision_tower.vision_model.post_layernorm.bias",
    "projector": "multi_modal_projector.linear.weight",
    "head": "language_model.lm_head.weight",
}
NEWER = {
    "text": "model.language_model.norm.weight",
    "vision": "model.vision_tower.vision_model.post_layernorm.bias",
    "projector": "model.multi_modal_projector.linear.weight",
    "head": "lm_head.weight",
}
FLAT_TOWER = NEWER | {"vision": "model.vision_tower.post_layernorm.bias"}
BASE = {
    "text": "language_model.norm.weight",
    "vision": "vision_tower.vision_model.post_layernorm.bias",
    "projector": "multi_modal_projector.linear.weight",
}
CLASSIFIER = OLDER | {"score": "score.weight"}
TEXT_FILE = {"text": "model.norm.weight", "head": "lm_head.weight"}
BARE_TEXT_FILE = {"text": "norm.weight"}
VISION_FILE = {"vision": "vision_model.post_layernorm.bias"}
BARE_VISION_FILE = {"vision": "post_layernorm.bias"}
FILES = [OLDER, NEWER, FLAT_TOWER, BASE, CLASSIFIER, TEXT_FILE, BARE_TEXT_FILE, VISION_FILE, BARE_VISION_FILE]
MODELS = {
    MULTIMODAL: NEWER,
    MULTIMODAL_CLASSIFIER: {name: NEWER[name] for name in BASE} | {"score": "score.weight"},
    MULTIMODAL_BASE: BASE,
    TEXT: TEXT_FILE,
    TEXT_BASE: BARE_TEXT_FILE,
    VISION: VISION_FILE,
}


@pytest.mark.parametrize("layout", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_each_part_of_any_file_finds_its_place_in_any_model(file: dict[str, str], layout: Layout) -> None:
    ours = MODELS[layout]
    found = match(file.values(), layout)
    assert found.names == {ours[part]: name for part, name in file.items() if part in ours}
    assert found.ignored == {name for part, name in file.items() if part not in ours}
    assert not found.unknown


@pytest.mark.parametrize("layout", MODELS)
def test_a_saved_name_comes_back(layout: Layout) -> None:
    for name in MODELS[layout].values():
        assert match([published_name(name, layout)], layout).names == {name: published_name(name, layout)}


def test_multimodal_models_are_written_in_the_published_layout() -> None:
    assert {published_name(name, MULTIMODAL) for name in NEWER.values()} == set(OLDER.values())
    assert {published_name(name, MULTIMODAL_BASE) for name in BASE.values()} == set(OLDER.values()) - {OLDER["head"]}
    assert published_name("score.weight", MULTIMODAL_CLASSIFIER) == "score.weight"
    assert published_name("model.norm.weight", TEXT) == "model.norm.weight"
    assert published_name("value_head.weight", MULTIMODAL) == "value_head.weight"


def test_a_name_that_no_layout_has_is_unknown_and_not_dropped() -> None:
    assert canonical("value_head.weight") is None
    found = match(["value_head.weight", "model.norm.weight"], TEXT)
    assert found.unknown == {"value_head.weight"}


def test_buffers_that_old_files_stored_and_the_rest_of_siglip_are_ignored() -> None:
    names = [
        "vision_tower.vision_model.embeddings.position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "text_model.encoder.layers.0.layer_norm1.bias",
        "logit_scale",
        "logit_bias",
    ]
    for layout in MODELS:
        assert match(names, layout).ignored == set(names)


def test_one_weight_under_two_names_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"holds the weight 'model.language_model.norm.weight' twice, as .* and"):
        match([OLDER["text"], NEWER["text"]], MULTIMODAL)


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert quoted(["b", "a"]) == "'a', 'b'"
    assert quoted([f"{i:03d}" for i in range(1000)]).endswith("'019' and 980 more")
