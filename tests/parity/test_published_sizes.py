"""Every published size, built without memory: parameter names, shapes and ties are the reference's."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import gemlens

SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14
}  # fmt: skip


def shape(
    width: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """A text config in the order of the published tables."""
    return dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        **more,
    )


GEMMA = {
    "gemma-2b": shape(2048, 16384, 18, 8, 1, 256, 256000),
    "gemma-7b": shape(3072, 24576, 28, 16, 16, 256, 256000),
}
GEMMA2 = {
    "gemma-2-2b": shape(2304, 9216, 26, 8, 4, 256, 256000),
    "gemma-2-9b": shape(3584, 14336, 42, 16, 8, 256, 256000),
    "gemma-2-27b": shape(4608, 36864, 46, 32, 16, 128, 256000, query_pre_attn_scalar=144),
}
GEMMA3_TEXT = {
    "gemma-3-270m": shape(640, 2048, 18, 4, 1, 256, 262144, sliding_window=512),
    "gemma-3-1b": shape(1152, 6912, 26, 4, 1, 256, 262144, sliding_window=512),
}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 1024}
GEMMA3 = {
    "gemma-3-4b": shape(2560, 10240, 34, 8, 4, 256, 262208, **LINEAR),
    "gemma-3-12b": shape(3840, 15360, 48, 16, 8, 256, 262208, **LINEAR),
    "gemma-3-27b": shape(5376, 21504, 62, 32, 16, 128, 262208, query_pre_attn_scalar=168, **LINEAR),
}
PALIGEMMA_TEXT = {
    "paligemma-3b": shape(2048, 16384, 18, 8, 1, 256, 257216),
    "paligemma2-3b": shape(2304, 9216, 26, 8, 4, 256, 257216),
    "paligemma2-10b": shape(3584, 14336, 42, 16, 8, 256, 257216),
    "paligemma2-28b": shape(4608, 36864, 46, 32, 16, 128, 257216, query_pre_attn_scalar=144),
}


def both(model: str, configs: list[Any]) -> list[nn.Module]:
    """The reference's and our model on the meta device."""
    models = []
    for library, config in zip((transformers, gemlens), configs, strict=True):
        with torch.device("meta"), transformers.modeling_utils.no_init_weights():
            models.append(getattr(library, model)(config))
            models[-1].tie_weights()  # left out by no_init_weights
    assert all(parameter.device.type == "meta" for parameter in models[1].parameters())
    return models


def text_pair(model: str, kind: str, sizes: dict[str, Any]) -> list[nn.Module]:
    return both(model, [getattr(library, kind)(**sizes) for library in (transformers, gemlens)])


def multimodal_pair(
    model: str, config: str, kind: str, sizes: dict[str, Any], image: int, **more: Any
) -> list[nn.Module]:
    configs = []
    for library in (transformers, gemlens):
        vision = library.SiglipVisionConfig(**SO400M, image_size=image, vision_use_head=False)
        text = getattr(library, kind)(**sizes)
        configs.append(getattr(library, config)(text_config=text, vision_config=vision, **more))
    return both(model, configs)


def assert_same_parameters(theirs: nn.Module, ours: nn.Module) -> None:
    their_state, our_state = theirs.state_dict(), ours.state_dict()
    assert their_state.keys() == our_state.keys()
    assert {name: weight.shape for name, weight in their_state.items()} == {
        name: weight.shape for name, weight in our_state.items()
    }
    # Tied parameters appear once here.
    assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]


def assert_published(theirs: nn.Module, ours: nn.Module) -> None:
    assert_same_parameters(theirs, ours)
    assert "lm_head.weight" in ours.state_dict()
    assert ours.lm_head.weight is ours.get_input_embeddings().weight
    assert theirs.num_parameters() == ours.num_parameters()


@pytest.mark.parametrize("name", [*GEMMA, *GEMMA2, *GEMMA3_TEXT])
def test_text_sizes_have_the_references_parameters(name: str) -> None:
    model, kind, sizes = next(
        (model, kind, table[name])
        for model, kind, table in [
            ("GemmaForCausalLM", "GemmaConfig", GEMMA),
            ("Gemma2ForCausalLM", "Gemma2Config", GEMMA2),
            ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3_TEXT),
        ]
        if name in table
    )
    assert_published(*text_pair(model, kind, sizes))


@pytest.mark.parametrize(
    ("name", "image"),
    [(name, image) for name in PALIGEMMA_TEXT for image in (224, 448, 896) if image == 224 or "3b" in name],
)
def test_paligemma_sizes_have_the_references_parameters(name: str, image: int) -> None:
    sizes = PALIGEMMA_TEXT[name]
    kind = "GemmaConfig" if name == "paligemma-3b" else "Gemma2Config"
    theirs, ours = multimodal_pair(
        "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", kind, sizes, image, projection_dim=sizes["hidden_size"],
        image_token_index=257152,
    )  # fmt: skip
    assert ours.state_dict()["model.vision_tower.vision_model.embeddings.position_embedding.weight"].shape == (
        (image // 14) ** 2,
        1152,
    )
    if image == 224:
        assert_published(theirs, ours)
    assert_same_parameters(theirs, ours)


@pytest.mark.parametrize("name", GEMMA3)
def test_gemma_3_sizes_have_the_references_parameters(name: str) -> None:
    pair = multimodal_pair("Gemma3ForConditionalGeneration", "Gemma3Config", "Gemma3TextConfig", GEMMA3[name], 896)
    assert_published(*pair)


@pytest.mark.parametrize("model", ["Gemma3Model", "Gemma3ForSequenceClassification"])
def test_gemma_3_without_a_vocabulary_head_has_the_references_parameters(model: str) -> None:
    sizes = GEMMA3["gemma-3-4b"]
    theirs, ours = multimodal_pair(model, "Gemma3Config", "Gemma3TextConfig", sizes, 896, num_labels=5)
    assert_same_parameters(theirs, ours)
    names = ours.state_dict().keys()
    assert not any("lm_head" in name for name in names)
    assert any(name.startswith("score") for name in names) == model.endswith("Classification")


@pytest.mark.parametrize(("model", "kind"), [("GemmaModel", "GemmaConfig"), ("Gemma3TextModel", "Gemma3TextConfig")])
def test_decoders_alone_have_the_references_parameters(model: str, kind: str) -> None:
    assert_same_parameters(*text_pair(model, kind, GEMMA3_TEXT["gemma-3-270m"]))


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("image", [224, 896])
def test_so400m_has_the_references_parameters(image: int, has_head: bool) -> None:
    theirs, ours = both(
        "SiglipVisionModel",
        [
            library.SiglipVisionConfig(**SO400M, image_size=image, vision_use_head=has_head)
            for library in (transformers, gemlens)
        ],
    )
    assert_same_parameters(theirs, ours)
    assert any(".head." in name for name in ours.state_dict()) == has_head


def test_untied_heads_and_attention_biases_have_the_references_parameters() -> None:
    sizes = {**GEMMA3_TEXT["gemma-3-270m"], "tie_word_embeddings": False, "attention_bias": True}
    theirs, ours = text_pair("Gemma3ForCausalLM", "Gemma3TextConfig", sizes)
    assert_same_parameters(theirs, ours)
    assert "lm_head.weight" in dict(ours.named_parameters())
    assert "model.layers.0.self_attn.q_proj.bias" in dict(ours.named_parameters())
