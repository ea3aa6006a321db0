"""A model is filled whole or not at all, with views where possible."""

import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gemlens.checkpoints.hub import Origin
from gemlens.checkpoints.load import fill
from gemlens.checkpoints.names import MULTIMODAL, TEXT, TEXT_BASE
from gemlens.checkpoints.safetensors import open_weights
from gemlens.checkpoints.save import save_weights
from gemlens.errors import CheckpointError


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.Linear(4, 1, bias=False)
        self.norm.weight.requires_grad = False


class WithHead(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(4, 6, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


class Weights:
    """A source in memory that counts what is read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.read: list[str] = []

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def tensor(self, name: str, dtype: torch.dtype | None) -> Tensor:
        self.read.append(name)
        return self.tensors[name].to(dtype or self.tensors[name].dtype)


def on_meta(tied: bool = True) -> WithHead:
    with torch.device("meta"):
        return WithHead(tied)


def weights(tied: bool = True) -> Weights:
    state = {name: tensor.detach().clone() for name, tensor in WithHead(tied).state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    return Weights(state)


def assert_untouched(model: nn.Module) -> None:
    assert all(parameter.is_meta for parameter in model.parameters())


def test_every_parameter_gets_its_tensor_without_a_copy() -> None:
    model, source = on_meta(), weights()
    fill(model, source, TEXT)
    for name, tensor in source.tensors.items():
        assert model.get_parameter(name).data_ptr() == tensor.data_ptr()
    assert sorted(source.read) == sorted(source.tensors)  # each once
    assert model.model.layers[0].weight.requires_grad
    assert not model.model.norm.weight.requires_grad
    assert model.lm_head(model.model.embed_tokens(torch.tensor([1]))).shape == (1, 6)


def test_tied_parameters_stay_tied_whichever_name_the_file_has() -> None:
    model, source = on_meta(), weights()
    fill(model, source, TEXT)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    source.tensors["lm_head.weight"] = source.tensors.pop("model.embed_tokens.weight")
    model = on_meta()
    fill(model, source, TEXT)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_that_is_not_tied_must_be_in_the_file() -> None:
    model = on_meta(tied=False)
    with pytest.raises(CheckpointError, match=r"missing: 'lm_head.weight'\. Check"):
        fill(model, weights(tied=True), TEXT)
    assert_untouched(model)
    fill(model, weights(tied=False), TEXT)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_a_twin_of_a_tied_weight_is_silent_if_equal_and_one_warning_if_not() -> None:
    source = weights()
    source.tensors["lm_head.weight"] = source.tensors["model.embed_tokens.weight"].clone()
    fill(on_meta(), source, TEXT)
    source.tensors["lm_head.weight"] += 1
    model = on_meta()
    with pytest.warns(
        UserWarning, match=r"'lm_head.weight' with values of its own, .* \(tie_word_embeddings\)"
    ) as caught:
        fill(model, source, TEXT)
    assert len(caught) == 1
    assert model.lm_head.weight.data_ptr() == source.tensors["model.embed_tokens.weight"].data_ptr()


def test_all_that_does_not_fit_is_said_at_once_before_anything_is_read() -> None:
    model, source = on_meta(), weights()
    source.tensors["model.norm.weight"] = torch.zeros(2, 3)
    source.tensors["model.layers.2.weight"] = torch.zeros(1)
    source.tensors["adapter.weight"] = torch.zeros(1)
    del source.tensors["model.layers.1.bias"], source.tensors["model.embed_tokens.weight"]
    with pytest.raises(CheckpointError) as caught:
        fill(model, source, TEXT)
    assert str(caught.value) == (
        "The weights do not fit the model; missing: 'model.embed_tokens.weight', 'model.layers.1.bias'; "
        "left over: 'adapter.weight', 'model.layers.2.weight'; "
        "of the wrong shape: 'model.norm.weight' is [2, 3] in the file and [1, 4] in the model. "
        "Check that config and weights are of one checkpoint, and that it was saved from this model class."
    )
    assert source.read == []
    assert_untouched(model)


def test_a_twin_of_the_wrong_shape_is_said() -> None:
    source = weights()
    source.tensors["lm_head.weight"] = torch.zeros(7, 4)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is \[7, 4\] in the file and \[6, 4\] in the model"):
        fill(on_meta(), source, TEXT)


def test_long_lists_are_cut_and_counted() -> None:
    source = weights()
    source.tensors.update({f"model.layers.{i}.odd": torch.zeros(1) for i in range(100, 200)})
    with pytest.raises(CheckpointError, match=r"'model.layers.119.odd' and 80 more"):
        fill(on_meta(), source, TEXT)


def test_a_tensor_that_cannot_be_read_leaves_the_model_untouched() -> None:
    class Torn(Weights):
        def tensor(self, name: str, dtype: torch.dtype | None) -> Tensor:
            if name == "model.norm.weight":
                raise CheckpointError("torn")
            return super().tensor(name, dtype)

    model = on_meta()
    with pytest.raises(CheckpointError, match="torn"):
        fill(model, Torn(weights().tensors), TEXT)
    assert_untouched(model)


def test_parts_that_the_model_has_not_are_ignored() -> None:
    names = {"model.norm": "language_model.model.norm", "model.layers": "language_model.model.layers"}
    source = weights()
    for ours, theirs in {**names, "model.embed": "language_model.model.embed"}.items():
        source.tensors = {name.replace(ours, theirs): tensor for name, tensor in source.tensors.items()}
    source.tensors["vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(3)
    source.tensors["multi_modal_projector.linear.weight"] = torch.zeros(3)
    fill(on_meta(), source, TEXT)
    assert not any(name.startswith(("vision", "multi")) for name in source.read)
    with torch.device("meta"):
        bare = Backbone()
    fill(bare, source, TEXT_BASE)


def test_the_number_format_and_the_device_are_those_asked_for() -> None:
    model, asked = on_meta(), list[str]()

    def place(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    fill(model, weights(), TEXT, dtype=torch.bfloat16, device=place)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert asked == [name for name, _ in model.named_parameters()]


def test_a_fresh_head_keeps_its_values_unless_the_file_has_one() -> None:
    model = on_meta(tied=False)
    model.lm_head.weight = nn.Parameter(torch.full((6, 4), 3.0))
    fill(model, weights(tied=True), TEXT, fresh={"lm_head.weight"})
    assert (model.lm_head.weight == 3).all()
    source = weights(tied=False)
    fill(model, source, TEXT, fresh={"lm_head.weight"})
    assert model.lm_head.weight.data_ptr() == source.tensors["lm_head.weight"].data_ptr()


def test_nothing_may_be_left_on_the_meta_device() -> None:
    model = on_meta()
    model.register_buffer("inv_freq", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match="The model class left 'inv_freq' on the meta device"):
        fill(model, weights(), TEXT)
    model = on_meta(tied=False)
    with pytest.raises(CheckpointError, match=r"The model class left 'lm_head.weight' on the meta device"):
        fill(model, weights(), TEXT, fresh=["lm_head.weight"])
    assert_untouched(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_weights_give_one_warning_that_names_them(dtype: torch.dtype, value: float) -> None:
    for place in (0, 777, 1022):  # vector loops and their tails
        source = weights()
        source.tensors["model.layers.0.weight"] = torch.zeros(4, 4, dtype=dtype)
        source.tensors["model.layers.0.weight"].view(-1)[place % 16] = value
        source.tensors["model.layers.1.bias"][3] = float("nan")
        with pytest.warns(
            UserWarning, match=r"infinity.*'model.layers.0.weight', 'model.layers.1.bias'; the"
        ) as caught:
            fill(on_meta(), source, TEXT)
        assert len(caught) == 1


def test_values_too_large_for_the_number_format_asked_for_are_warned_of() -> None:
    source = weights()
    source.tensors["model.norm.weight"].fill_(1e6)
    fill(on_meta(), source, TEXT, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"'model.norm.weight'; .* too large for the number format asked for"):
        fill(on_meta(), source, TEXT, dtype=torch.float16)


def test_an_empty_parameter_is_no_trouble() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"norm": nn.LayerNorm(0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(model, Weights({"norm.weight": torch.zeros(0), "norm.bias": torch.zeros(0)}), TEXT_BASE)


def test_a_checkpoint_for_another_kind_of_model_is_refused_whole() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"model": nn.ModuleDict({"language_model": Backbone()})})
    with pytest.raises(CheckpointError, match=r"missing: 'model.language_model.layers.1.bias'"):
        fill(model, Weights({k: v for k, v in weights().tensors.items() if k != "model.layers.1.bias"}), MULTIMODAL)


MEGABYTES = 300
MEASURE = """
import sys, torch
from torch import nn
from gemlens.checkpoints.hub import Origin
from gemlens.checkpoints.load import fill
from gemlens.checkpoints.names import TEXT_BASE
from gemlens.checkpoints.safetensors import open_weights

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024

with torch.device("meta"):
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(5000, 5000, bias=False) for _ in range(6)])})
torch.ones(10).bfloat16().aminmax()
before = status("VmRSS")
fill(model, open_weights(Origin(sys.argv[1])), TEXT_BASE)
assert sum(parameter.sum().item() for parameter in model.parameters()) == 0
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory the Linux way")
@pytest.mark.parametrize("shard", ["5GB", "110MB"])
def test_a_load_needs_less_than_a_fifth_more_memory_than_the_model(tmp_path: Path, shard: str) -> None:
    state = {f"layers.{i}.weight": torch.zeros(5000, 5000, dtype=torch.bfloat16) for i in range(6)}
    save_weights(state, tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard == "5GB" else 3)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert 0.9 * MEGABYTES / 1.05 < float(run.stdout) < 1.2 * MEGABYTES / 1.05  # 300 MB are 286 MiB


def test_a_file_and_a_model_meet(tmp_path: Path) -> None:
    source = weights()
    save_weights(source.tensors, tmp_path, max_shard_size=200)
    model = on_meta()
    fill(model, open_weights(Origin(tmp_path)), TEXT)
    for name, tensor in source.tensors.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor, rtol=0, atol=0)
