"""TorchAoConfig: the forms that transformers knows, to config.json and back, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
import torchao.quantization
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    MappingType,
    PerGroup,
    PerRow,
    PerTensor,
)

from gemlens import TorchAoConfig
from gemlens.errors import InputError
from gemlens.quantization.config import Scheme

NAMED = [
    (("int4_weight_only", {}), Scheme(4, 128)),
    (("int4_weight_only", {"group_size": 64}), Scheme(4, 64)),
    (("int8_weight_only", {}), Scheme(8)),
    (("int8_weight_only", {"group_size": None}), Scheme(8)),
    (("int8_weight_only", {"group_size": 32}), Scheme(8, 32)),
    (("int8_dynamic_activation_int8_weight", {}), Scheme(8, dynamic=True)),
]
OBJECTS = [
    (Int4WeightOnlyConfig(group_size=64), Scheme(4, 64)),
    (PrototypeInt4WeightOnlyConfig(group_size=32), Scheme(4, 32)),
    (Int8WeightOnlyConfig(), Scheme(8)),
    (Int8WeightOnlyConfig(granularity=PerGroup(32), set_inductor_config=False), Scheme(8, 32)),
    (Int8DynamicActivationInt8WeightConfig(), Scheme(8, dynamic=True)),
]


@pytest.fixture
def older_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that torchao had until 0.14 and that the reference asks for: they were its classes."""
    monkeypatch.setattr(torchao.quantization, "autoquant", None, raising=False)
    monkeypatch.setattr(torchao.quantization, "int4_weight_only", Int4WeightOnlyConfig, raising=False)
    monkeypatch.setattr(torchao.quantization, "int8_weight_only", Int8WeightOnlyConfig, raising=False)
    dynamic = Int8DynamicActivationInt8WeightConfig
    monkeypatch.setattr(torchao.quantization, "int8_dynamic_activation_int8_weight", dynamic, raising=False)


@pytest.mark.usefixtures("older_torchao")
@pytest.mark.parametrize(("named", "scheme"), NAMED)
@pytest.mark.parametrize("left_out", [None, ["vision_tower", "lm_head"]])
def test_names_are_read_and_written_as_by_the_reference(named: Any, scheme: Scheme, left_out: Any) -> None:
    ours = TorchAoConfig(named[0], modules_to_not_convert=left_out, **named[1])
    theirs = transformers.TorchAoConfig(named[0], modules_to_not_convert=left_out, **named[1])
    assert ours.scheme == scheme
    assert ours.to_dict() == theirs.to_dict()
    assert TorchAoConfig.from_dict(theirs.to_dict()) == ours
    assert transformers.TorchAoConfig.from_dict(ours.to_dict()).to_dict() == theirs.to_dict()


@pytest.mark.parametrize(("thing", "scheme"), OBJECTS)
def test_objects_of_torchao_are_read_and_written_as_by_the_reference(thing: Any, scheme: Scheme) -> None:
    ours, theirs = TorchAoConfig(thing), transformers.TorchAoConfig(thing)
    assert ours.scheme == scheme
    assert ours.to_dict() == theirs.to_dict()
    assert TorchAoConfig.from_dict(theirs.to_dict()) == ours
    if type(thing) is not PrototypeInt4WeightOnlyConfig:  # which torchao's own reader does not find
        assert transformers.TorchAoConfig.from_dict(ours.to_dict()).quant_type == thing


def test_names_fail_there_with_this_torchao_and_not_here() -> None:
    with pytest.raises(ImportError, match="autoquant"):
        transformers.TorchAoConfig("int4_weight_only", group_size=128)
    assert TorchAoConfig("int4_weight_only", group_size=128).scheme == Scheme(4, 128)


def test_arguments_may_come_as_one_dict() -> None:
    one_by_one = TorchAoConfig("int4_weight_only", group_size=64)
    assert TorchAoConfig("int4_weight_only", quant_type_kwargs={"group_size": 64}) == one_by_one
    assert TorchAoConfig.from_dict({"quant_type": "int4_weight_only", "group_size": 64}) == one_by_one
    assert one_by_one != TorchAoConfig("int4_weight_only", group_size=32)
    assert "group_size': 64" in repr(one_by_one)


def test_the_callers_dict_stays_as_it_is() -> None:
    said = {"quant_method": "torchao", "quant_type": "int8_weight_only", "quant_type_kwargs": {}}
    config = TorchAoConfig.from_dict(said)
    config.to_dict()["quant_type_kwargs"]["group_size"] = 3
    assert said == {"quant_method": "torchao", "quant_type": "int8_weight_only", "quant_type_kwargs": {}}
    assert config.quant_type_kwargs == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["int3"], {}), r"quant_type is 'int3', but it must be one of int4_weight_only, int8_weight_only, int8_dyn"),
        ((["autoquant"], {}), "quant_type is 'autoquant', but it must be one of"),
        (([4], {}), "quant_type is 4, but"),
        (([PerRow()], {}), r"quant_type is PerRow\(dim=-1\), but"),
        (([Float8WeightOnlyConfig()], {}), "the known classes are Int4WeightOnlyConfig, "),
        (([Int8WeightOnlyConfig(granularity=PerTensor())], {}), "with granularity=.*PerTensor.* is not known"),
        (
            ([Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)], {}),
            "with act_mapping_type=.*ASYMMETRIC.* leave act_mapping_type as it is",
        ),
        (([Int8DynamicActivationInt8WeightConfig(reduce_range=True)], {}), "with reduce_range=True is not known"),
        (([Int4WeightOnlyConfig()], {"group_size": 32}), "group_size came beside an object"),
        (([Int4WeightOnlyConfig(group_size=48)], {}), "group_size is 48, but"),
        ((["int4_weight_only"], {"groupsize": 64}), "int4_weight_only has no argument 'groupsize'; it takes group_siz"),
        ((["int8_dynamic_activation_int8_weight"], {"group_size": 64}), "'group_size'; it takes no arguments"),
        ((["int4_weight_only"], {"group_size": 0}), "group_size is 0, but for int4_weight_only it must be 32, 64, 128"),
        ((["int4_weight_only"], {"group_size": -32}), "group_size is -32, but"),
        ((["int4_weight_only"], {"group_size": "64"}), "group_size is '64', but"),
        ((["int4_weight_only"], {"group_size": None}), "group_size is None, but"),
        ((["int8_weight_only"], {"group_size": 0}), "group_size is 0, but it must be a positive integer or None"),
        ((["int8_weight_only"], {"group_size": True}), "group_size is True, but"),
        (
            (["int8_weight_only"], {"quant_type_kwargs": {}, "group_size": 32}),
            r"beside \['group_size'\]; pass one dict",
        ),
        (
            (["int8_weight_only"], {"quant_type_kwargs": [32]}),
            r"quant_type_kwargs is \[32\] beside \[\]; pass one dict",
        ),
        ((["int8_weight_only", "lm_head"], {}), "modules_to_not_convert is 'lm_head', but it must be a list"),
        ((["int8_weight_only"], {"include_input_output_embeddings": True}), "must be False: only linear layers are"),
        ((["int8_weight_only"], {"untie_embedding_weights": True}), "must be False: only linear layers are"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(arguments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        TorchAoConfig(*arguments[0], **arguments[1])


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "is one of 'gptq', but only torchao's are known"),
        ({"quant_method": "torchao"}, "has no quant_type, but it must be one of int4_weight_only"),
        ({"quant_type": {"default": {"_type": "quantize_", "_data": {}}}}, "the known classes are"),
        ({"quant_type": {"other": {}}}, "the known classes are"),
        ({"quant_type": "int8_weight_only", "quant_type_kwargs": {}, "self": 1}, r"beside \['self'\]"),
        ({"quant_type": "int8_weight_only", "self": 1}, "has no argument 'self'"),
    ],
)
def test_dicts_that_say_nothing_known_are_sentences(said: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        TorchAoConfig.from_dict(said)


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda part: (
    st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["_type", "_data", "default", "group_size"]), part)
), max_leaves=8)  # fmt: skip
names = st.sampled_from(["int4_weight_only", "int8_weight_only", "Int8WeightOnlyConfig", "PerGroup", "granularity"])
keys = ["quant_type", "quant_type_kwargs", "modules_to_not_convert", "quant_method", "group_size", "self", "cls"]


@given(st.dictionaries(st.sampled_from(keys), anything | names))
def test_a_strangers_dict_is_a_config_or_a_sentence(said: dict[str, Any]) -> None:
    try:
        config = TorchAoConfig.from_dict(said)
    except InputError:
        return
    assert TorchAoConfig.from_dict(config.to_dict()) == config


def test_a_config_is_made_without_torch_and_torchao() -> None:
    program = "import sys, gemlens; gemlens.TorchAoConfig('int4_weight_only'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "torchao"} & set(done.stdout.split())
