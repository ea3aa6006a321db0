"""from_pretrained with gguf_file=: whole models out of files that the gguf package wrote, as llama.cpp does."""

from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import pytest
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from gguf_files import write_gguf

import gemlens
from gemlens.errors import CheckpointError, ConfigError, InputError
from gemlens.models.configs.siglip import SiglipVisionConfig
from gemlens.models.configs.text import TextConfig

ARCHITECTURES = {"gemma": MODEL_ARCH.GEMMA, "gemma2": MODEL_ARCH.GEMMA2, "gemma3": MODEL_ARCH.GEMMA3}
F32 = GGMLQuantizationType.F32


def text_metadata(config: TextConfig, architecture: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if architecture != "gemma":
        numbers["attention.sliding_window"] = config.windows[0]
        numbers["attention.sliding_window_pattern"] = [window is not None for window in config.windows]
    if architecture == "gemma2":
        numbers["attn_logit_softcapping"], numbers["final_logit_softcapping"] = config.softcaps
    if architecture == "gemma3":
        numbers["rope.freq_base_swa"] = 100.0
    return {f"{architecture}.{key}": value for key, value in numbers.items()}


def vision_metadata(config: SiglipVisionConfig, width: int, tokens_per_side: int) -> dict[str, Any]:
    numbers = {
        "projection_dim": width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_epsilon": config.layer_norm_eps,
        "projector.scale_factor": config.patches_per_side // tokens_per_side,
    }
    return {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        **{f"clip.vision.{key}": value for key, value in numbers.items()},
    }


def write_weights(
    path: Path,
    weights: dict[str, torch.Tensor],
    architecture: str,
    metadata: dict[str, Any],
    matrices: GGMLQuantizationType = F32,
) -> None:
    kind = ARCHITECTURES.get(architecture, MODEL_ARCH.MMPROJ)
    table = gguf.get_tensor_name_map(kind, 3)
    tensors = {}
    for name, weight in weights.items():
        theirs = table.get_name(name.replace("projection_weight", "projection.weight"), (".weight", ".bias"))
        assert theirs is not None, name
        is_gemma_norm = name.endswith("norm.weight") and "vision" not in name
        values = (weight + 1 if is_gemma_norm else weight).numpy()
        tensors[theirs] = (values, matrices if weight.dim() == 2 else F32)
    write_gguf(path, architecture, metadata, tensors)


def without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if name != "lm_head.weight"}


def close(ours: Any, theirs: Any) -> None:
    """Adding one to a norm's weight and subtracting it again rounds it."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        assert torch.allclose(weight, other[name], rtol=0, atol=2e-7 if "norm" in name else 0), name


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_text_model_opens_from_its_gguf_file(tiny: ModuleType, family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    metadata = text_metadata(model.config, family)
    write_weights(tmp_path / "model.gguf", without_head(model.state_dict()), family, metadata)
    again = gemlens.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", **{"query_pre_attn_scalar": 8} if family != "gemma" else {}
    )
    assert type(again) is type(model)
    close(again, model)
    assert again.config.windows == model.config.windows
    assert again.config.ropes == model.config.ropes
    assert again.config.softcaps == model.config.softcaps
    inputs = tiny.prompt(family)
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, model(**inputs).logits, atol=1e-5)


@pytest.fixture
def pair(tiny: ModuleType, tmp_path: Path) -> Path:
    """A folder with the text file and the mmproj file of Gemma 3 with pictures, and its saved twin."""
    model = tiny.model("gemma3-pictures")
    weights = without_head(model.state_dict())
    prefix = "model.language_model."
    text = {f"model.{name.removeprefix(prefix)}": value for name, value in weights.items() if name.startswith(prefix)}
    vision = {name.removeprefix("model."): value for name, value in weights.items() if not name.startswith(prefix)}
    config = model.config
    write_weights(tmp_path / "text.gguf", text, "gemma3", text_metadata(config.text_config, "gemma3"))
    side = int(config.mm_tokens_per_image**0.5)
    numbers = vision_metadata(config.vision_config, config.text_config.hidden_size, side)
    write_weights(tmp_path / "mmproj-model.gguf", vision, "clip", numbers)
    return tmp_path


@pytest.mark.parametrize("gguf_file", ["text.gguf", ("text.gguf", "mmproj-model.gguf")])
@pytest.mark.parametrize("load", [gemlens.Gemma3ForConditionalGeneration, gemlens.AutoModelForImageTextToText])
def test_pictures_open_from_the_pair(tiny: ModuleType, pair: Path, gguf_file: Any, load: Any) -> None:
    model = load.from_pretrained(pair, gguf_file=gguf_file)
    close(model, tiny.model("gemma3-pictures"))
    assert model.config.mm_tokens_per_image == tiny.TOKENS_PER_PICTURE


def test_the_text_file_alone_is_a_text_model(tiny: ModuleType, pair: Path) -> None:
    model = gemlens.AutoModelForCausalLM.from_pretrained(pair, gguf_file="text.gguf")
    close(model.model, tiny.model("gemma3-pictures").language_model)
    assert isinstance(gemlens.AutoConfig.from_pretrained(pair, gguf_file="text.gguf"), gemlens.Gemma3TextConfig)


def test_files_that_do_not_make_the_model_are_sentences(pair: Path) -> None:
    load = gemlens.Gemma3ForConditionalGeneration.from_pretrained
    with pytest.raises(CheckpointError, match=r"no 'nothing\.gguf'"):
        load(pair, gguf_file="nothing.gguf")
    with pytest.raises(InputError, match="names 3 files"):
        load(pair, gguf_file=("text.gguf", "mmproj-model.gguf", "text.gguf"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'gemma3_text'"):
        gemlens.GemmaForCausalLM.from_pretrained(pair, gguf_file="text.gguf")
    (pair / "mmproj-model.gguf").unlink()
    with pytest.raises(CheckpointError, match="need an mmproj file"):
        load(pair, gguf_file="text.gguf")
    with pytest.raises(CheckpointError, match=r"'text\.gguf'; pass its name as gguf_file"):
        gemlens.Gemma3ForCausalLM.from_pretrained(pair, config=gemlens.Gemma3TextConfig())


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, torch.float32), ("auto", torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_dtype_of_weights_from_gguf(pair: Path, asked: Any, expected: torch.dtype) -> None:
    model = gemlens.Gemma3ForConditionalGeneration.from_pretrained(pair, gguf_file="text.gguf", dtype=asked)
    assert {weight.dtype for weight in model.parameters()} == {expected}
