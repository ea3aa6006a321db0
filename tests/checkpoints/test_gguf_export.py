"""Models as GGUF files: the gguf package reads what was written, and read again it is the same model and tokenizer."""

from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType

import gemlens
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.gguf_export import export_gguf
from gemlens.checkpoints.gguf_write import write_gguf
from gemlens.errors import InputError
from gemlens.processing.text.gguf_vocabulary import gguf_vocabulary
from gemlens.processing.text.pieces import pieces_from_gguf
from gemlens.quantization.blocks import BlockLinear

FAMILIES = {"gemma": MODEL_ARCH.GEMMA, "gemma2": MODEL_ARCH.GEMMA2, "gemma3": MODEL_ARCH.GEMMA3}
WORDS = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0}
REAL = Path(__file__).parents[2] / "real" / "gemma-3-270m-q4_k_m.gguf"


def exported(tiny: ModuleType, folder: Path, family: str, kind: str) -> tuple[Any, tuple[Path, ...]]:
    model = tiny.fresh(family, hidden_size=64, intermediate_size=96).eval()
    return model, export_gguf(model, WORDS, folder / "model.gguf", kind)


@pytest.mark.parametrize(("kind", "inner"), [("q8", "Q8_0"), ("q4", "Q4_0")])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gguf_package_reads_its_names_numbers_and_blocks(
    tiny: ModuleType, tmp_path: Path, family: str, kind: str, inner: str
) -> None:
    model, (path,) = exported(tiny, tmp_path, family, kind)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == family
    assert fields[f"{family}.block_count"] == model.config.num_hidden_layers
    assert fields[f"{family}.attention.layer_norm_rms_epsilon"] == pytest.approx(model.config.rms_norm_eps)
    names, table = {tensor.name for tensor in reader.tensors}, gguf.get_tensor_name_map(FAMILIES[family], 3)
    state = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    for name, weight in state.items():
        theirs = table.get_name(name, (".weight",))
        tensor = next(tensor for tensor in reader.tensors if tensor.name == theirs)
        names.remove(str(theirs))
        assert tensor.shape.tolist() == list(reversed(weight.shape))
        wanted = weight.numpy() + (1 if name.endswith("norm.weight") else 0)
        form = "Q8_0" if "embed" in name else "F32" if weight.dim() == 1 else inner
        assert tensor.tensor_type.name == form
        blocks = gguf.quantize(wanted, GGMLQuantizationType[form])
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), blocks.reshape(-1).view(np.uint8)), name
    assert not names


@pytest.mark.parametrize("family", FAMILIES)
def test_read_again_it_is_the_same_model(tiny: ModuleType, tmp_path: Path, family: str) -> None:
    model, (path,) = exported(tiny, tmp_path, family, "q8")
    for extra in ({}, {"quantize": "stored"}):
        again = type(model).from_pretrained(tmp_path, gguf_file=path.name, **extra)
        for name in ("windows", "ropes", "softcaps", "query_scale", "vocab_size", "max_position_embeddings"):
            assert getattr(again.config, name) == getattr(model.config, name), name
        assert (type(again.lm_head) is BlockLinear) == bool(extra)
        prompt = tiny.prompt(family)
        with torch.no_grad():
            wanted, found = model(**prompt).logits, again(**prompt).logits
        assert 0 < (found - wanted).norm() / wanted.norm() < 0.02


def test_pictures_go_to_a_file_of_their_own(tiny: ModuleType, tmp_path: Path) -> None:
    model, paths = exported(tiny, tmp_path, "gemma3-pictures", "q8")
    assert [path.name for path in paths] == ["model.gguf", "mmproj-model.gguf"]
    names = {"gguf_file": tuple(path.name for path in paths)}
    special = {
        name: getattr(model.config, name) for name in ("image_token_index", "boi_token_index", "eoi_token_index")
    }
    again = type(model).from_pretrained(tmp_path, **names, **special)
    prompt = tiny.prompt("gemma3-pictures")
    with torch.no_grad():
        wanted, found = model(**prompt).logits, again(**prompt).logits
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.02


def test_what_has_no_place_in_such_a_file_is_a_sentence(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place for a paligemma model"):
        exported(tiny, tmp_path, "paligemma", "q8")
    with pytest.raises(InputError, match="q8 or q4, not as 'q3'"):
        exported(tiny, tmp_path, "gemma", "q3")
    with pytest.raises(InputError, match=r"'some\.key' holds -1, which GGUF has no place for"):
        write_gguf(tmp_path / "wrong.gguf", {"some.key": -1}, [])
    with pytest.raises(InputError, match=r"'some\.key' is None"):
        write_gguf(tmp_path / "wrong.gguf", {"some.key": None}, [])  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


TEXTS = (
    "The quick brown fox, 12345;\n\n\n  \u00fcber alles",
    "<start_of_turn>user\n\U0001f600 \t x",
    "    a\n\n\nb",
    "\u4f60\u597d",
)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is missing; make it with `make real`")
def test_the_real_vocabulary_comes_back() -> None:
    metadata = GGUFFile.open(REAL).metadata
    tokenizer = gemlens.AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    again = gguf_vocabulary(tokenizer, 262_144)
    theirs, ours = metadata["tokenizer.ggml.tokens"], again["tokenizer.ggml.tokens"]
    assert [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]] == []
    rebuilt = pieces_from_gguf(again).tokenizer()
    for text in TEXTS:
        assert rebuilt.encode(text).ids == tokenizer.encode(text, add_special_tokens=False)
