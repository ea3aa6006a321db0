"""Rotary position embedding as a value: a base period and one of the six scalings that checkpoints name.

Sources: RoPE (arXiv 2104.09864), linear interpolation (arXiv 2306.15595), dynamic NTK (the same thread of work),
YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), Llama 3.1 (its model card). models/rope.py does the arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemlens.errors import ConfigError

# What a `rope_scaling` dict must and may say, by type.
REQUIRED: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({"factor"}),
    "longrope": frozenset({"short_factor", "long_factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}
NUMBERS = frozenset(
    [
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "mscale",
        "mscale_all_dim",
    ]
)


@dataclass(frozen=True)
class RopeSpec:
    """Which rotation a layer applies.

    Args:
        theta: base period.
        head_dim: H, size of a head; H/2 frequencies.
        max_positions: the length that the model was made for (`max_position_embeddings`).
        scaling: the checked `rope_scaling` dict as sorted pairs (so that equal specs are equal keys); empty for none.
    """

    theta: float
    head_dim: int
    max_positions: int
    scaling: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """One of the six names."""
        return str(dict(self.scaling).get("rope_type", "default"))


def checked_scaling(scaling: object, head_dim: int) -> dict[str, Any] | None:
    """A `rope_scaling` dict with the key `rope_type` (older files say `type`), or None.

    Raises:
        ConfigError: an unknown type, a missing or wrong value.
    """
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling is {scaling!r}, but it must be a dict with the key 'rope_type' or None.")
    kind = scaling.get("rope_type", scaling.get("type"))
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise ConfigError(f"rope_scaling has the type {kind!r}; known are {', '.join(REQUIRED)}.")
    if missing := sorted(REQUIRED[kind] - scaling.keys()):
        raise ConfigError(f"rope_scaling of type {kind!r} needs {', '.join(missing)}.")
    for name in sorted(NUMBERS & scaling.keys()):
        value = scaling[name]
        if not _is_positive(value) and (value is not None or name in REQUIRED[kind]):
            raise ConfigError(f"rope_scaling[{name!r}] is {value!r}, but it must be a finite number above 0.")
    for name in sorted({"short_factor", "long_factor"} & scaling.keys()):
        factors = scaling[name]
        count = head_dim // 2
        if not isinstance(factors, list | tuple) or len(factors) != count or not all(map(_is_positive, factors)):
            raise ConfigError(f"rope_scaling[{name!r}] must list {count} numbers above 0, one per frequency.")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ConfigError("rope_scaling['low_freq_factor'] must be below rope_scaling['high_freq_factor'].")
    return {**{name: value for name, value in scaling.items() if name != "type"}, "rope_type": kind}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def rope_spec(theta: float, head_dim: int, max_positions: int, scaling: Mapping[str, Any] | None) -> RopeSpec:
    """The value for a checked `rope_scaling`; type 'default' is the same as none."""
    if scaling is None or scaling["rope_type"] == "default":
        return RopeSpec(theta, head_dim, max_positions)
    pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in scaling.items()}
    return RopeSpec(theta, head_dim, max_positions, tuple(sorted(pairs.items())))


def from_rope_parameters(parameters: object) -> dict[str, Any]:
    """The fields that newer files fold into one `rope_parameters` dict: {field: value}.

    The dict holds `rope_theta` and the scaling, at its top (one rotation for all layers) or per layer type.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_parameters is {parameters!r}, but it must be a dict.")
    full = parameters.get("full_attention", parameters)
    local = parameters.get("sliding_attention")
    if not isinstance(full, Mapping) or not isinstance(local, Mapping | None):
        raise ConfigError(f"rope_parameters is {parameters!r}, but each layer type must map to a dict.")
    scaling = {name: value for name, value in full.items() if name != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    fields: dict[str, Any] = {"rope_scaling": None if kind == "default" else scaling}
    if "rope_theta" in full:
        fields["rope_theta"] = full["rope_theta"]
    if local is not None and "rope_theta" in local:
        fields["rope_local_base_freq"] = local["rope_theta"]
    return fields
