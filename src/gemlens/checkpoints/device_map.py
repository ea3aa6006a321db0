"""Which device each weight goes to. Several are dispatched by accelerate, an optional extra."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.models.pretrained import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


@dataclass(frozen=True)
class Placing:
    """Where weights go, and what must be done to a model that is spread over several devices.

    Args:
        device_of: from a parameter's name to its device.
        spread: module name -> device, where there are several.
    """

    device_of: Callable[[str], torch.device]
    spread: Mapping[str, Any] | None = None

    def dispatch(self, model: Model) -> Model:
        """Lets activations travel with the computation, if there are several devices."""
        if self.spread is None:
            return model
        dispatched: Model = _accelerate().dispatch_model(model, dict(self.spread))
        return dispatched


def placing_for(
    model: "PreTrainedModel", device_map: Any, dtype: torch.dtype, bits: Mapping[str, int] | None = None
) -> Placing:
    """The plan for a `device_map`: None, "auto", one device, or module names and devices.

    Args:
        model: on the meta device.
        dtype: that its weights will have.
        bits: of the numbers in those weights that will be quantized, 4 or 8, by their names.

    Raises:
        InputError: no such device, weights without one, accelerate is missing where it is needed, or quantized weights
            would have to wait on another kind of device than the one that computes.
    """
    bits = bits or {}
    if device_map == "auto":
        device_map = _fitting(model, dtype, bits) if torch.accelerator.is_available() else "cpu"
    if not isinstance(device_map, Mapping):
        device = _device("cpu" if device_map is None else device_map)
        return Placing(lambda _: device)
    devices = {name: _device(device) for name, device in device_map.items()}
    homeless = [name for name, _ in model.named_parameters() if _home(name, devices) is None]
    if homeless:
        raise InputError(f"device_map says nothing about {homeless[0]!r} and {len(homeless) - 1} other weights.")
    several = len(set(devices.values())) > 1
    if bits and len({device.type for device in devices.values()}) > 1:
        raise InputError(
            "device_map names two kinds of devices, but quantized weights cannot wait on one to be used on the other; "
            "name one kind."
        )
    return Placing(lambda name: devices[_home(name, devices) or ""], devices if several else None)


def _home(parameter: str, devices: Mapping[str, torch.device]) -> str | None:
    """The longest module name in the map that the parameter is part of."""
    homes = [name for name in devices if not name or parameter == name or parameter.startswith(f"{name}.")]
    return max(homes, key=len, default=None)


def _device(name: Any) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"device_map names {name!r}, which is no device of this machine ({error}).") from error
    if device.type == "meta":
        raise InputError("device_map names 'meta', which holds no values; pass 'cpu' or an accelerator.")
    return device


def _fitting(model: "PreTrainedModel", dtype: torch.dtype, bits: Mapping[str, int]) -> Mapping[str, Any]:
    """accelerate's plan by free memory; blocks stay whole."""
    accelerate = _accelerate()
    small = {4: accelerate.utils.CustomDtype.INT4, 8: torch.int8}
    plan: Mapping[str, Any] = accelerate.infer_auto_device_map(
        model,
        no_split_module_classes=list(model.no_split_modules),
        dtype=dtype,
        special_dtypes={name: small[count] for name, count in bits.items()},
    )
    if "disk" in plan.values():
        raise InputError("The model does not fit into the memory of this machine's devices; use a smaller dtype.")
    return plan


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise InputError("This device_map needs the accelerate package: pip install 'gemlens[device-map]'.") from error
    return accelerate
