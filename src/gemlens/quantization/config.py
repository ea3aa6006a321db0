"""TorchAoConfig: what `quantization_config=` says, in every form that transformers accepts or writes.

a name and its arguments, an object of torchao, or either as config.json holds it -> Scheme
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gemlens.errors import InputError

# Names of schemes, their arguments and those arguments' defaults.
_ARGUMENTS: Mapping[str, Mapping[str, int | None]] = {
    "int4_weight_only": {"group_size": 128},
    "int8_weight_only": {"group_size": None},
    "int8_dynamic_activation_int8_weight": {},
}
# The same schemes as objects of torchao.
_CLASSES = {
    "Int4WeightOnlyConfig": "int4_weight_only",
    "PrototypeInt4WeightOnlyConfig": "int4_weight_only",  # the same numbers, for CPU
    "Int8WeightOnlyConfig": "int8_weight_only",
    "Int8DynamicActivationInt8WeightConfig": "int8_dynamic_activation_int8_weight",
}
_INT4_GROUPS = (32, 64, 128, 256)
# Fields of those objects that change no numbers: the order in memory, which follows the device here, and torch.compile.
_WITHOUT_EFFECT = {"int4_packing_format", "int4_tile_packed_ntile", "set_inductor_config"}
# What the others may be, besides groups: (class, content) as config.json has it.
_USUAL: Mapping[str, tuple[tuple[str | None, object], ...]] = {
    "granularity": (("PerRow", {"dim": -1}), ("PerRow", {})),
    "int4_choose_qparams_algorithm": (("Int4ChooseQParamsAlgorithm", "TINYGEMM"),),
    "act_mapping_type": (("MappingType", "SYMMETRIC"),),
    "weight_only_decode": ((None, False),),
    "reduce_range": ((None, False),),
}


@dataclass(frozen=True)
class Scheme:
    """How a weight [out, in] is stored.

    Args:
        bits: of each number, 4 or 8.
        group_size: how many inputs share a scale; None where all inputs of an output do.
        dynamic: whether activations are rounded to int8 as well, when they come.
    """

    bits: int
    group_size: int | None = None
    dynamic: bool = False

    def __str__(self) -> str:
        per = f"groups of {self.group_size}" if self.group_size else "rows"
        return f"int{self.bits} in {per}" + (" with int8 activations" if self.dynamic else "")


class TorchAoConfig:
    """Asks for linear layers whose weights are rounded to integers by torchao (`pip install 'gemlens[quantized]'`).

    The fields are those of transformers, so either library reads what the other writes into config.json. int8 runs on
    every device. int4 runs on CPU (groups of 32, 64 or 128; layers with a multiple of 16 outputs) and on CUDA from
    compute capability 8.0 on (bfloat16 only). torchao multiplies int8 weights slowly on CPU unless activations are
    rounded too or the model is compiled.

    Args:
        quant_type: `"int4_weight_only"` (with `group_size`, 128 unless told), `"int8_weight_only"` (with `group_size`;
            None for one scale per output) or `"int8_dynamic_activation_int8_weight"`; or torchao's object for one of
            them, such as `torchao.quantization.Int8WeightOnlyConfig()`.
        modules_to_not_convert: names of modules, or the ends of their names, that keep their weights. The default is
            the head, as in the reference. What shares the embedding's weight keeps it in any case.
        include_input_output_embeddings, untie_embedding_weights: False; embeddings are never rounded.
        **kwargs: the arguments of `quant_type`, one by one or as the dict `quant_type_kwargs`.

    Attributes:
        scheme: what all this means for a weight.

    Raises:
        InputError: no such scheme, or no such argument of it.
    """

    def __init__(
        self,
        quant_type: object,
        modules_to_not_convert: list[str] | None = None,
        include_input_output_embeddings: bool = False,
        untie_embedding_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        if include_input_output_embeddings or untie_embedding_weights:
            raise InputError(
                "include_input_output_embeddings and untie_embedding_weights must be False: only linear layers are "
                "quantized, embeddings are not."
            )
        names = modules_to_not_convert
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InputError(f"modules_to_not_convert is {names!r}, but it must be a list of names of modules or None.")
        self.quant_method = "torchao"
        self.quant_type = quant_type if isinstance(quant_type, str | Mapping) else _described(quant_type)
        self.modules_to_not_convert = names
        self.quant_type_kwargs = _arguments(kwargs)
        self.include_input_output_embeddings = False
        self.untie_embedding_weights = False
        self.scheme = _scheme(self.quant_type, self.quant_type_kwargs)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The `quantization_config` of a config.json. The mapping is not changed.

        Raises:
            InputError: it describes another method than torchao, or no scheme that is known.
        """
        fields = copy.deepcopy(dict(config_dict))
        if (method := fields.pop("quant_method", "torchao")) != "torchao":
            raise InputError(f"The quantization_config is one of {method!r}, but only torchao's are known.")
        if "quant_type" not in fields:
            raise InputError(f"The quantization_config has no quant_type, but it must be one of {_known()}.")
        own = ("quant_type", "modules_to_not_convert", "include_input_output_embeddings", "untie_embedding_weights")
        said = {name: fields.pop(name) for name in own if name in fields}
        return cls(**said, quant_type_kwargs=_arguments(fields))

    def to_dict(self) -> dict[str, Any]:
        """As transformers writes it into config.json."""
        return copy.deepcopy({name: value for name, value in vars(self).items() if name != "scheme"})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchAoConfig) and other.to_dict() == self.to_dict()

    def __repr__(self) -> str:
        return f"TorchAoConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


def _arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """One by one, or all as a dict."""
    if "quant_type_kwargs" not in kwargs:
        return kwargs
    arguments = kwargs.pop("quant_type_kwargs")
    if kwargs or not isinstance(arguments, dict):
        raise InputError(
            f"quant_type_kwargs is {arguments!r} beside {sorted(kwargs)}; pass one dict of all arguments, or no dict."
        )
    return arguments


def _described(quant_type: object) -> dict[str, Any]:
    """An object of torchao as transformers writes it into config.json."""
    if type(quant_type).__module__.startswith("torchao."):
        from torchao.core.config import AOBaseConfig, config_to_dict

        if isinstance(quant_type, AOBaseConfig):
            return {"default": config_to_dict(quant_type)}
    raise InputError(f"quant_type is {quant_type!r}, but it must be one of {_known()}, or torchao's object for it.")


def _scheme(quant_type: Any, arguments: Mapping[str, Any]) -> Scheme:
    if isinstance(quant_type, Mapping):
        if arguments:
            raise InputError(f"{', '.join(arguments)} came beside an object of torchao, which says it itself.")
        quant_type, arguments = _of_object(quant_type.get("default"))
    if quant_type not in _ARGUMENTS:
        raise InputError(f"quant_type is {quant_type!r}, but it must be one of {_known()}.")
    known = _ARGUMENTS[quant_type]
    if unknown := arguments.keys() - known.keys():
        takes = ", ".join(known) or "no arguments"
        raise InputError(f"{quant_type} has no argument {min(unknown)!r}; it takes {takes}.")
    size = arguments.get("group_size", known.get("group_size"))
    if quant_type == "int4_weight_only":
        if type(size) is not int or size not in _INT4_GROUPS:
            raise InputError(f"group_size is {size!r}, but for int4_weight_only it must be 32, 64, 128 or 256.")
        return Scheme(bits=4, group_size=size)
    if size is not None and (type(size) is not int or size < 1):
        raise InputError(f"group_size is {size!r}, but it must be a positive integer or None.")
    return Scheme(bits=8, group_size=size, dynamic=quant_type != "int8_weight_only")


def _of_object(described: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of what `_described` gives. torchao's own reader would call whatever class a file names."""
    if not isinstance(described, Mapping) or str(described.get("_type")) not in _CLASSES:
        raise InputError(f"quant_type is {described!r}, but the known classes are {', '.join(_CLASSES)}.")
    arguments: dict[str, Any] = {}
    fields = described.get("_data")
    for name, value in (fields if isinstance(fields, Mapping) else {}).items():
        kind, inner = (value.get("_type"), value.get("_data")) if isinstance(value, Mapping) else (None, value)
        size = inner.get("group_size") if kind == "PerGroup" and isinstance(inner, Mapping) else inner
        if name == "group_size" or (name, kind) == ("granularity", "PerGroup"):
            arguments |= {} if size is None else {"group_size": size}
        elif not (name in _WITHOUT_EFFECT or (kind, inner) in _USUAL.get(name, ())):
            raise InputError(f"{described['_type']} with {name}={value!r} is not known; leave {name} as it is.")
    return _CLASSES[described["_type"]], arguments


def _known() -> str:
    return ", ".join(_ARGUMENTS)
