"""A GGUF file may be quantized by torchao as it is read, and leaves no pages of the file in memory."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_gguf_models import text_metadata, without_head, write_weights

import gemlens
from gemlens import TorchAoConfig
from gemlens.checkpoints.gguf import GGUFFile
from gemlens.checkpoints.gguf_names import GGUFSource
from gemlens.errors import CheckpointError


@pytest.fixture
def file(tiny: ModuleType, tmp_path: Path) -> Path:
    """A text model that is 128 wide."""
    model = tiny.fresh("gemma3", hidden_size=128, intermediate_size=64)
    write_weights(
        tmp_path / "model.gguf", without_head(model.state_dict()), "gemma3", text_metadata(model.config, "gemma3")
    )
    return tmp_path / "model.gguf"


def test_a_quantized_gguf_file_gives_the_logits_of_its_quantized_twin(tiny: ModuleType, file: Path) -> None:
    load = gemlens.Gemma3ForCausalLM.from_pretrained
    config = TorchAoConfig("int4_weight_only", group_size=32)
    numbers = {"query_pre_attn_scalar": 8}
    model = load(file.parent, gguf_file="model.gguf", quantization_config=config, **numbers)
    load(file.parent, gguf_file="model.gguf", **numbers).save_pretrained(file.parent)
    twin = load(file.parent, quantization_config=config)
    inputs = tiny.prompt("gemma3")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, twin(**inputs).logits)
    model.save_pretrained(file.parent / "saved")
    with torch.no_grad():
        assert torch.equal(load(file.parent / "saved")(**inputs).logits, twin(**inputs).logits)


def test_a_transient_tensor_is_the_same_and_shares_no_memory(file: Path) -> None:
    source = GGUFSource(GGUFFile.open(file))
    for name in source.shapes():
        tensor, transient = source.tensor(name), source.transient(name)
        assert torch.equal(tensor, transient)
        assert tensor.data_ptr() != transient.data_ptr()
    assert source.transient(name, torch.bfloat16).dtype == torch.bfloat16


def test_a_file_that_shrank_since_it_was_opened_is_a_sentence(file: Path) -> None:
    source = GGUFSource(GGUFFile.open(file))
    name = min(source.shapes())
    with file.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(CheckpointError, match="changed while it was read; load it again"):
        source.transient(name)
    file.unlink()
    with pytest.raises(CheckpointError, match="is not a file"):
        source.transient(name)
