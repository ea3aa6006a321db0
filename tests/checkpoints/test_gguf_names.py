"""Names, values and configs of GGUF files, against the gguf package's table of names and the published sizes."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from gguf_files import Array, write_gguf

from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.gguf_config import config_of
from gemlens.checkpoints.gguf_names import GGUFSource, parameter_of
from gemlens.errors import CheckpointError
from gemlens.kernels import formats

REAL = Path(__file__).parents[2] / "real" / "gemma-3-270m-q4_k_m.gguf"
F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
TEXT = {"gemma": MODEL_ARCH.GEMMA, "gemma2": MODEL_ARCH.GEMMA2, "gemma3": MODEL_ARCH.GEMMA3}
# Tiny models: vocabulary 40, D 32, F 64, 2 layers, 4 heads of 16, 2 kv heads; pictures of 16 pixels in patches of 2.
TEXT_KEYS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.sliding_window": 8,
}
CLIP_KEYS: dict[str, Any] = {
    "has_vision_encoder": True,
    "projector_type": "gemma3",
    "vision.projection_dim": 32,
    "vision.image_size": 16,
    "vision.patch_size": 2,
    "vision.embedding_length": 24,
    "vision.feed_forward_length": 40,
    "vision.block_count": 2,
    "vision.attention.head_count": 3,
    "vision.attention.layer_norm_epsilon": 1e-6,
}


def text_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """{parameter of the decoder: shape}, written down by hand."""
    norms = ["input_layernorm", "post_attention_layernorm"]
    if architecture != "gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (40, 32), "norm.weight": (32,)}
    for layer in ("layers.0.", "layers.1."):
        shapes |= {f"{layer}{norm}.weight": (32,) for norm in norms}
        if architecture == "gemma3":
            shapes |= {f"{layer}self_attn.{norm}.weight": (16,) for norm in ("q_norm", "k_norm")}
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (64, 32),
            f"{layer}self_attn.k_proj.weight": (32, 32),
            f"{layer}self_attn.v_proj.weight": (32, 32),
            f"{layer}self_attn.o_proj.weight": (32, 64),
            f"{layer}mlp.gate_proj.weight": (64, 32),
            f"{layer}mlp.up_proj.weight": (64, 32),
            f"{layer}mlp.down_proj.weight": (32, 64),
        }
    return shapes


def vision_shapes() -> dict[str, tuple[int, ...]]:
    """{parameter of the picture encoder and the projector: shape}, written down by hand."""
    tower = "model.vision_tower.vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}embeddings.patch_embedding.weight": (24, 3, 2, 2),
        f"{tower}embeddings.patch_embedding.bias": (24,),
        f"{tower}embeddings.position_embedding.weight": (64, 24),
        f"{tower}post_layernorm.weight": (24,),
        f"{tower}post_layernorm.bias": (24,),
        "model.multi_modal_projector.mm_input_projection_weight": (24, 32),
        "model.multi_modal_projector.mm_soft_emb_norm.weight": (24,),
    }
    for layer in (f"{tower}encoder.layers.0.", f"{tower}encoder.layers.1."):
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{name}.weight": (24,), f"{layer}{name}.bias": (24,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (24, 24), f"{layer}self_attn.{name}.bias": (24,)}
        for name, out, into in (("fc1", 40, 24), ("fc2", 24, 40)):
            shapes |= {f"{layer}mlp.{name}.weight": (out, into), f"{layer}mlp.{name}.bias": (out,)}
    return shapes


def random_values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Multiples of 2^-8 below 4, so that adding and subtracting one in fp32 is exact, and so is fp16."""
    rng = np.random.default_rng(5)
    return {name: rng.integers(-1000, 1000, shape).astype(np.float32) / 256 for name, shape in shapes.items()}


def foreign(name: str, architecture: MODEL_ARCH) -> str:
    """The GGUF name of an original checkpoint's parameter, from the gguf package's table."""
    table = gguf.get_tensor_name_map(architecture, 2)
    found = table.get_name(name.replace("projection_weight", "projection.weight"), (".weight", ".bias"))
    assert found is not None
    return found


def text_metadata(architecture: str, keys: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """TEXT_KEYS with other values for some keys; those of the tokenizer have their full names."""
    prefixes = {key: "" if key.startswith("tokenizer.") else f"{architecture}." for key in TEXT_KEYS | keys}
    return {prefixes[key] + key: value for key, value in (TEXT_KEYS | keys).items()}


def write_text(path: Path, architecture: str) -> GGUFFile:
    """What llama.cpp's converter writes: Gemma's norms plus one; matrices as Q8_0, the rest as F32."""
    tensors = {
        foreign(f"model.{name}", TEXT[architecture]): (value + 1, F32) if value.ndim == 1 else (value, Q8_0)
        for name, value in random_values(text_shapes(architecture)).items()
    }
    return GGUFFile.open(write_gguf(path, architecture, text_metadata(architecture), tensors))


def write_vision(path: Path, keys: Mapping[str, Any] = MappingProxyType({}), swapped: bool = False) -> GGUFFile:
    """What llama.cpp's converter writes; swapped: what its first script for Gemma 3 wrote."""
    tensors = {}
    for name, value in random_values(vision_shapes()).items():
        theirs = foreign(name.removeprefix("model."), MODEL_ARCH.MMPROJ)
        if swapped:
            theirs = theirs.replace("up", "x").replace("ffn_down", "ffn_up").replace("ffn_x", "ffn_down")
        stored = value + 1 if "soft_emb_norm" in name else value
        tensors[theirs] = (stored, F16 if value.ndim == 2 and "position" not in name else F32)
    metadata = {f"clip.{key}": value for key, value in (CLIP_KEYS | keys).items()}
    return GGUFFile.open(write_gguf(path, "clip", metadata, tensors))


@pytest.fixture
def text(tmp_path: Path) -> GGUFFile:
    return write_text(tmp_path / "text.gguf", "gemma3")


@pytest.fixture
def mmproj(tmp_path: Path) -> GGUFFile:
    return write_vision(tmp_path / "mmproj.gguf")


# Names and values


@pytest.mark.parametrize("architecture", TEXT)
def test_a_text_model_has_every_parameter_with_its_values(architecture: str, tmp_path: Path) -> None:
    shapes = text_shapes(architecture)
    source = GGUFSource(write_text(tmp_path / "text.gguf", architecture))
    assert source.files == (tmp_path / "text.gguf",)
    assert dict(source.shapes()) == {f"model.{name}": shape for name, shape in shapes.items()}
    for name, value in random_values(shapes).items():
        ours = source.tensor(f"model.{name}", None)
        assert ours.dtype == torch.float32
        as_stored = value if value.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(value, Q8_0), Q8_0)
        assert np.array_equal(ours.numpy(), as_stored), name
        assert torch.equal(source.tensor(f"model.{name}", torch.bfloat16), ours.bfloat16())


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_with_pictures_has_every_parameter_with_its_values(
    swapped: bool, text: GGUFFile, tmp_path: Path
) -> None:
    mmproj = write_vision(tmp_path / "mmproj.gguf", swapped=swapped)
    source = GGUFSource(text, mmproj)
    assert source.files == (text.path, mmproj.path)
    decoder = {f"model.language_model.{name}": shape for name, shape in text_shapes("gemma3").items()}
    assert dict(source.shapes()) == decoder | vision_shapes()
    for name, value in random_values(vision_shapes()).items():
        assert np.array_equal(source.tensor(name, torch.float32).numpy(), value), name
    assert source.tensor("model.multi_modal_projector.mm_input_projection_weight", None).dtype == torch.float16


def test_a_head_of_its_own_stays_at_the_top(text: GGUFFile, mmproj: GGUFFile, tmp_path: Path) -> None:
    head = np.arange(40 * 32, dtype=np.float32).reshape(40, 32)
    tensors = {name: (text.tensor(name).numpy(), F32) for name in text.tensors}
    tensors |= {"output.weight": (head, F32), "rope_freqs.weight": (head[0, :8], F32)}
    untied = GGUFFile.open(write_gguf(tmp_path / "untied.gguf", "gemma3", text_metadata("gemma3"), tensors))
    for source in (GGUFSource(untied), GGUFSource(untied, mmproj)):
        assert np.array_equal(source.tensor("lm_head.weight", None).numpy(), head)
        assert source.config()["tie_word_embeddings"] is False
        assert not any("rope" in name for name in source.shapes())


def test_blocks_are_the_bytes_of_quantised_parameters(text: GGUFFile) -> None:
    source = GGUFSource(text)
    found = source.blocks("model.embed_tokens.weight")
    assert found is not None
    assert found[1] is formats.Q8_0
    assert found[0].data_ptr() == text.raw("token_embd.weight").data_ptr()
    assert source.blocks("model.norm.weight") is None


@pytest.mark.parametrize(
    ("gguf_name", "architecture"),
    [
        ("blk.0.attn_q_norm.weight", "gemma2"),  # only Gemma 3 norms queries
        ("blk.0.post_ffw_norm.weight", "gemma"),
        ("blk.0.attn_q.bias", "gemma3"),
        ("blk.x.attn_q.weight", "gemma3"),
        ("blk.*.attn_q.weight", "gemma3"),
        ("xblk.0.attn_q.weight", "gemma3"),
        ("v.blk.0.ln1.weight", "gemma3"),
        ("blk.0.attn_q.weight", "clip"),
        ("output.weight", "clip"),
        ("token_embd.weight", "llama"),
        ("", "gemma3"),
    ],
)
def test_other_names_are_no_parameters(gguf_name: str, architecture: str) -> None:
    assert parameter_of(gguf_name, architecture) is None


def test_only_gemmas_norms_are_shifted() -> None:
    shifted = {"blk.7.attn_norm.weight", "output_norm.weight", "blk.7.attn_k_norm.weight", "blk.7.ffn_norm.weight"}
    for name in shifted | {"blk.7.ffn_up.weight", "token_embd.weight"}:
        found = parameter_of(name, "gemma3", "")
        assert found is not None
        assert found.is_shifted == (name in shifted)
    for name in ("v.post_ln.weight", "v.blk.0.ln1.weight", "mm.soft_emb_norm.weight"):
        found = parameter_of(name, "clip")
        assert found is not None
        assert found.is_shifted == (name == "mm.soft_emb_norm.weight")


def test_unknown_tensors_are_a_sentence(text: GGUFFile, tmp_path: Path) -> None:
    tensors = {name: (text.tensor(name).numpy(), F32) for name in text.tensors}
    tensors |= {f"v.blk.{layer}.ln1.weight": tensors["output_norm.weight"] for layer in range(7)}
    path = write_gguf(tmp_path / "fused.gguf", "gemma3", text_metadata("gemma3"), tensors)
    sentence = r"fused.gguf has 7 tensors that a gemma3 model does not have: 'v.blk.0.ln1.weight', .*Pass the text"
    with pytest.raises(CheckpointError, match=sentence):
        GGUFSource(GGUFFile.open(path))
    with pytest.raises(CheckpointError, match=r"There is no parameter 'lm_head.weight' in .*text.gguf. Pass"):
        GGUFSource(text).tensor("lm_head.weight", None)


# Configs


def config_from(keys: Mapping[str, Any], tmp_path: Path, architecture: str = "gemma3") -> dict[str, object]:
    """config_of a file with these metadata, a vocabulary of 3 and a tensor per layer."""
    metadata = text_metadata(architecture, keys)
    layers = min(metadata[f"{architecture}.block_count"], 100)
    names = ["token_embd.weight", *(f"blk.{layer}.attn_q.weight" for layer in range(layers))]
    tensors = dict.fromkeys(names, (np.ones((3, 1), np.float32), F32))
    return config_of(GGUFFile.open(write_gguf(tmp_path / "config.gguf", architecture, metadata, tensors)))


def test_gemma_1_in_the_layout_of_a_config_json(tmp_path: Path) -> None:
    assert config_from({"tokenizer.ggml.eot_token_id": 107}, tmp_path, "gemma") == {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "vocab_size": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 107],
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }


# layers, hidden, heads, head_dim -> query_pre_attn_scalar and, for Gemma 3, the factor of the rotation
@pytest.mark.parametrize(
    ("architecture", "size", "scalar", "factor"),
    [
        ("gemma2", (26, 2304, 8, 256), 256, None),
        ("gemma2", (42, 3584, 16, 256), 256, None),
        ("gemma2", (46, 4608, 32, 128), 144, None),
        ("gemma3", (18, 640, 4, 256), 256, None),
        ("gemma3", (26, 1152, 4, 256), 256, None),
        ("gemma3", (34, 2560, 8, 256), 256, 8.0),
        ("gemma3", (48, 3840, 16, 256), 256, 8.0),
        ("gemma3", (62, 5376, 32, 128), 168, 8.0),
    ],
)
@pytest.mark.parametrize("says", [True, False])
def test_published_sizes(
    architecture: str, size: tuple[int, int, int, int], scalar: int, factor: float | None, says: bool, tmp_path: Path
) -> None:
    names = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
    keys: dict[str, Any] = dict(zip(names, size, strict=True))
    if says and factor is not None:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    if says and architecture == "gemma2":
        keys |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    config = config_from(keys, tmp_path, architecture)
    assert config["query_pre_attn_scalar"] == scalar
    if architecture == "gemma2":
        assert config["model_type"] == "gemma2"
        assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    else:
        assert config["model_type"] == "gemma3_text"
        assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
        assert config["rope_scaling"] == (None if factor is None else {"rope_type": "linear", "factor": factor})
        assert config["final_logit_softcapping"] is None
    assert config["sliding_window"] == 8
    assert "layer_types" not in config


def test_a_file_may_say_which_layers_slide(tmp_path: Path) -> None:
    full, sliding = "full_attention", "sliding_attention"
    config = config_from({"block_count": 4, "attention.sliding_window_pattern": 3}, tmp_path)
    assert config["layer_types"] == [sliding, sliding, full, sliding]
    config = config_from({"attention.sliding_window_pattern": [False, True]}, tmp_path)
    assert config["layer_types"] == [full, sliding]


def test_gemma_3_with_pictures(text: GGUFFile, mmproj: GGUFFile) -> None:
    config = GGUFSource(text, mmproj).config()
    alone = config_of(text)
    assert alone.pop("architectures") == ["Gemma3ForCausalLM"]
    assert config == {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": alone,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 16,
            "patch_size": 2,
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 4,  # 8 x 8 patches, pooled 4 x 4
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        ({"vision.image_size": 896, "vision.patch_size": 14}, 256),  # the published encoder
        ({"vision.projector.scale_factor": 2}, 16),
        ({"projector_type": None, "vision.projector_type": "gemma3"}, 4),
    ],
)
def test_tokens_per_picture_follow_from_the_sizes(
    keys: dict[str, Any], tokens: int, text: GGUFFile, tmp_path: Path
) -> None:
    mmproj = write_vision(tmp_path / "mmproj.gguf", keys)
    assert config_of(text, mmproj)["mm_tokens_per_image"] == tokens


@pytest.mark.parametrize(
    ("architecture", "keys", "sentence"),
    [
        ("llama", {}, "'general.architecture' is 'llama', but it must be one of gemma, gemma2, gemma3; pass"),
        ("gemma3", {"embedding_length": None}, "has no metadata key 'gemma3.embedding_length'. Convert"),
        ("gemma3", {"embedding_length": "32"}, "'gemma3.embedding_length' is '32', but it must be a whole number"),
        ("gemma3", {"embedding_length": True}, "'gemma3.embedding_length' is True"),
        ("gemma3", {"feed_forward_length": [64] * 99}, r"is \[64, 64, 64, .*\], but it must be a whole number from 1"),
        ("gemma3", {"attention.head_count": 0}, "head_count' is 0, but it must be a whole number from 1 on"),
        ("gemma3", {"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon' is nan, but it must be a finite"),
        ("gemma3", {"attention.layer_norm_rms_epsilon": "small"}, "epsilon' is 'small', but it must be a finite"),
        ("gemma3", {"rope.freq_base": float("inf")}, "freq_base' is inf"),
        ("gemma3", {"rope.scaling.type": "yarn"}, "scaling.type' is 'yarn', but it must be 'linear' or 'none'"),
        ("gemma3", {"rope.scaling.type": 1}, "scaling.type' is 1, but it must be a text"),
        ("gemma3", {"attention.sliding_window": None}, "no metadata key 'gemma3.attention.sliding_window'"),
        ("gemma3", {"attention.sliding_window_pattern": [True]}, r"pattern' is \[True\], but .* 2 booleans"),
        ("gemma3", {"attention.sliding_window_pattern": 0}, "pattern' is 0, but it must be a whole number from 1"),
        ("gemma3", {"block_count": 2**31}, "block_count' is 2147483648, but it must be at most 101, the number of t"),
        ("gemma3", {"tokenizer.ggml.eos_token_id": -1}, "eos_token_id' is -1, but it must be a whole number from 0"),
    ],
)
def test_metadata_of_no_model_are_a_sentence(
    architecture: str, keys: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        config_from(keys, tmp_path, architecture)
    assert str(tmp_path / "config.gguf") in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"projector_type": "mlp"}, "'clip.projector_type' is 'mlp', but it must be gemma3; pass the mmproj file"),
        ({"vision.projection_dim": 64}, "'clip.vision.projection_dim' is 64, but it must be 32, the text model's"),
        ({"vision.image_size": 7}, "'clip.vision.image_size' is 7, but it must be at least 8, 4 patches of 2"),
        ({"vision.block_count": 10**6}, "'clip.vision.block_count' is 1000000, but it must be at most"),
    ],
)
def test_an_mmproj_file_that_does_not_fit_is_a_sentence(
    keys: dict[str, Any], sentence: str, text: GGUFFile, tmp_path: Path
) -> None:
    mmproj = write_vision(tmp_path / "mmproj.gguf", keys)
    with pytest.raises(CheckpointError, match=sentence):
        GGUFSource(text, mmproj)


def test_files_in_the_wrong_roles_are_a_sentence(text: GGUFFile, mmproj: GGUFFile, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'general.architecture' is 'clip', but it must be one of gemma"):
        GGUFSource(mmproj)
    with pytest.raises(CheckpointError, match=r"'general.architecture' is 'gemma3', but it must be clip"):
        GGUFSource(text, text)
    with pytest.raises(CheckpointError, match=r"'general.architecture' is 'gemma2', .* leave mmproj out"):
        GGUFSource(write_text(tmp_path / "gemma2.gguf", "gemma2"), mmproj)


def test_a_file_without_weights_and_a_part_of_a_file_are_a_sentence(tmp_path: Path) -> None:
    keys = text_metadata("gemma3")
    with pytest.raises(CheckpointError, match=r"has no tensor 'token_embd.weight'. Pass a file with a model's weights"):
        config_of(GGUFFile.open(write_gguf(tmp_path / "vocabulary.gguf", "gemma3", keys, {})))
    part = write_gguf(tmp_path / "part.gguf", "gemma3", {"split.count": 3, **keys}, {})
    with pytest.raises(CheckpointError, match=r"'split.count' is 3, but it must be 1; join the parts"):
        config_of(GGUFFile.open(part))


# A real file


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is missing; make it with `make real`")
def test_the_real_270m_is_the_published_one() -> None:
    source = GGUFSource(GGUFFile.open(REAL))
    assert source.config() == {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": None,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    shapes = source.shapes()
    assert len(shapes) == 236 == 2 + 18 * 13
    assert shapes["model.embed_tokens.weight"] == (262144, 640)
    assert shapes["model.layers.17.self_attn.q_norm.weight"] == (256,)
    norm = GGUFFile.open(REAL).tensor("output_norm.weight")
    assert torch.equal(source.tensor("model.norm.weight", None), norm - 1)
