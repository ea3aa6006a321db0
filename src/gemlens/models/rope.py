"""Rotary position embedding: positions -> cosines and sines, in the six scalings of configs/rope.py.

Angles are computed in float32 whatever the model's dtype. The halves of a head are rotated against each other (first
half, second half), not neighbouring pairs. There is no buffer: a rotation is a pure function of its spec. A CPU takes
those of a few tokens from blocks of positions that it computed before.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from gemlens.models.configs.rope import RopeSpec

BLOCK = 64  # positions: few enough for torch to compute them without waking threads
FEW = 16  # tokens


def rotations(spec: RopeSpec, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [B, S, H] each, for `position_ids` [B, S]."""
    # Only these two depend on how long the text is; asking costs a synchronisation on an accelerator.
    longest = int(position_ids.max()) + 1 if spec.kind in ("dynamic", "longrope") else 0
    length_class = _length_class(spec, longest)
    cos, sin = _known(spec, length_class, position_ids) or _rotations(spec, length_class, position_ids)
    return cos.to(dtype), sin.to(dtype)


def _rotations(spec: RopeSpec, length_class: int, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    frequencies, factor = inverse_frequencies(spec, length_class, position_ids.device)
    with torch.autocast(device_type=position_ids.device.type, enabled=False):
        half = position_ids.unsqueeze(-1).float() * frequencies  # [..., H/2]
        angles = torch.cat([half, half], dim=-1)
        return angles.cos() * factor, angles.sin() * factor


def _known(spec: RopeSpec, length_class: int, position_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same of a few tokens of one block, on a CPU, where torch would wake threads for each cosine."""
    few = position_ids.device.type == "cpu" and 0 < position_ids.numel() <= FEW
    if not few or spec.kind == "dynamic" or torch.compiler.is_compiling():
        return None
    positions = position_ids.tolist()
    block = positions[0][0] // BLOCK
    if any(position // BLOCK != block for row in positions for position in row):
        return None
    cos, sin = _block(spec, length_class, block)
    first, count = positions[0][0] - block * BLOCK, len(positions[0])
    if positions == [[*range(positions[0][0], positions[0][0] + count)]]:  # as they lie there
        return cos[None, first : first + count], sin[None, first : first + count]
    places = position_ids - block * BLOCK
    return cos[places], sin[places]


@lru_cache(maxsize=16)
def _block(spec: RopeSpec, length_class: int, block: int) -> tuple[Tensor, Tensor]:
    """[BLOCK, H] each."""
    with torch.inference_mode(False):
        return _rotations(spec, length_class, torch.arange(block * BLOCK, (block + 1) * BLOCK, device="cpu"))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates queries or keys [B, N, S, H] by [B, S, H] cosines and sines."""
    first, second = states.chunk(2, dim=-1)
    return states * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)


def _length_class(spec: RopeSpec, longest: int) -> int:
    """All lengths that a scaling treats alike, as one number: `inverse_frequencies` is computed once for them."""
    if spec.kind == "dynamic":
        return max(longest, spec.max_positions)
    return int(longest > spec.max_positions)


@lru_cache(maxsize=64)
def inverse_frequencies(spec: RopeSpec, length_class: int, device: torch.device) -> tuple[Tensor, float]:
    """[H/2] float32 angular steps per position, and the factor on cosines and sines."""
    with torch.inference_mode(False), torch.device(device):
        return _KINDS[spec.kind](spec, length_class)


def _powers(spec: RopeSpec, theta: float | None = None) -> Tensor:
    """theta^(2i/H) for i below H/2."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    powers: Tensor = (spec.theta if theta is None else theta) ** exponents
    return powers


def _default(spec: RopeSpec, _: int) -> tuple[Tensor, float]:
    return 1.0 / _powers(spec), 1.0


def _linear(spec: RopeSpec, _: int) -> tuple[Tensor, float]:
    return 1.0 / _powers(spec) / dict(spec.scaling)["factor"], 1.0


def _dynamic(spec: RopeSpec, longest: int) -> tuple[Tensor, float]:
    """The base grows with the text, once it is longer than the model was made for."""
    factor = dict(spec.scaling)["factor"]
    growth = (factor * longest / spec.max_positions) - (factor - 1)
    return 1.0 / _powers(spec, spec.theta * growth ** (spec.head_dim / (spec.head_dim - 2))), 1.0


def _yarn(spec: RopeSpec, _: int) -> tuple[Tensor, float]:
    """High frequencies stay, low ones are interpolated, a ramp lies between (section 3.2 of the paper)."""
    scaling = dict(spec.scaling)
    factor, size = scaling["factor"], spec.head_dim
    trained = scaling.get("original_max_position_embeddings") or spec.max_positions

    def frequency_that_turns(times: float) -> float:
        return (size * math.log(trained / (times * 2 * math.pi))) / (2 * math.log(spec.theta))

    low = frequency_that_turns(scaling.get("beta_fast") or 32)
    high = frequency_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high  # the ramp must not divide by zero
    interpolated = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = _powers(spec)
    frequencies = (1.0 / (factor * powers)) * interpolated + (1.0 / powers) * (1 - interpolated)

    def attention_scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return frequencies, float(given)
    one, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return frequencies, attention_scale(one) / attention_scale(all_dims) if one and all_dims else attention_scale(1)


def _longrope(spec: RopeSpec, is_long: int) -> tuple[Tensor, float]:
    """One divisor per frequency, from one of two lists: for texts within and beyond the trained length."""
    scaling = dict(spec.scaling)
    divisors = torch.tensor(scaling["long_factor" if is_long else "short_factor"], dtype=torch.float32)
    factor = scaling.get("factor") or 1.0
    given = scaling.get("attention_factor")
    natural = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(spec.max_positions))
    return 1.0 / (divisors * _powers(spec)), float(natural if given is None else given)


def _llama3(spec: RopeSpec, _: int) -> tuple[Tensor, float]:
    """Long waves are stretched by the factor, short ones stay, a smooth passage lies between."""
    scaling = dict(spec.scaling)
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    frequencies = 1.0 / _powers(spec)
    waves = 2 * math.pi / frequencies
    smooth = (trained / waves - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(waves > trained / low, frequencies / factor, between)
    return torch.where(waves < trained / high, frequencies, stretched), 1.0


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
