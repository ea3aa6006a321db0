"""LoRA (arXiv 2106.09685): the weight W of a linear layer stays as it is, and a product of two thin matrices learns.

    y = x W^T + b + scale * dropout(x) A^T B^T        A [R, in] random, B [out, R] zero at first, scale = alpha / R

A model is changed from outside: linear leaves are replaced, and model code never sees it. R is the rank.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gemlens.checkpoints.pretrained import layout_of
from gemlens.errors import CheckpointError, InputError
from gemlens.models.pretrained import PreTrainedModel
from gemlens.models.swap import swap
from gemlens.quantization.torchao import QuantizedLinear
from gemlens.training.lora_settings import LoraSettings
from gemlens.training.low_rank import frozen_product, low_rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoraLinear(nn.Module):
    """Takes the place of a linear layer.

    Args:
        base_layer: the layer; its weight learns no more. Its weight may be rounded to integers.
        settings: of what learns; `targets` mean nothing here.
    """

    def __init__(self, base_layer: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.settings = settings
        self.scale = settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)
        device, dtype = base_layer.weight.device, DTYPES[settings.dtype]
        self.lora_A = nn.Parameter(torch.empty(settings.rank, base_layer.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, settings.rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as the paper's code and peft draw it
        self.train(base_layer.training)
        self.is_rounded = is_traceable_wrapper_subclass(base_layer.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        base = self.base_layer
        product = frozen_product(hidden, base.weight, base.bias) if self.is_rounded else base(hidden)
        dropout = self.settings.dropout if self.training else 0.0
        return low_rank(product, hidden, self.lora_A, self.lora_B, self.scale, dropout)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the weight W + scale * B A, computed in float32 and rounded once to the dtype of W."""
        weight = self.base_layer.weight
        change = self.lora_B.float() @ self.lora_A.float() * self.scale
        self.base_layer.weight = nn.Parameter(change.add_(weight).to(weight.dtype), requires_grad=False)
        return self.base_layer


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Puts a LoraLinear in the place of each target; nothing else of the model learns afterwards.

    Targets are names of groups or of layers:

        language     the query, key, value and output projections and the MLPs of the decoder
        vision       the same of the picture encoder
        all-linear   every linear layer but the head
        q_proj       the last part of a layer's name, or more of it, outside the picture encoder
        .*tower.*fc1 a regular expression, or a name, that is the whole name of a layer anywhere

    Args:
        model: changed in place.
        settings: of all layers.

    Returns:
        Names of the layers.

    Raises:
        InputError: a target names no linear layer, or the model has adapters already.
    """
    return replace(model, dict.fromkeys(chosen(model, settings.targets), settings))


def replace(model: nn.Module, layers: Mapping[str, LoraSettings]) -> list[str]:
    """The same for named layers, with settings of their own."""
    refuse_second(model)
    model.requires_grad_(False)
    linear = linear_layers(model)
    ready = {name: LoraLinear(linear[name], settings) for name, settings in layers.items()}
    swap(model, lambda name, _: ready.get(name))
    return list(layers)


def refuse_second(model: nn.Module) -> None:
    """A model has one adapter at a time.

    Raises:
        InputError: there is one.
    """
    if lora_layers(model):
        raise InputError("The model has an adapter already; merge it first, or load the model anew.")


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers that `add_lora` has put in, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that can have an adapter, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    # torch has subclasses of its own, such as one inside nn.MultiheadAttention, which is never called.
    return {name: module for name, module in found.items() if type(module) in (nn.Linear, QuantizedLinear)}


def chosen(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that targets mean, in the order of the model; see `add_lora`.

    Raises:
        InputError: a target means none.
    """
    layout, linear = layout_of(type(model)), [*linear_layers(model)]
    parts = {name: (layout.split(f"{name}.weight") or ("", ""))[0] for name in linear}
    groups = {
        "language": [name for name in linear if parts[name] == "text"],
        "vision": [name for name in linear if parts[name] == "vision"],
        "all-linear": [name for name in linear if parts[name] not in ("head", "score")],
    }
    wanted: set[str] = set()
    for target in targets:
        found = groups[target] if target in groups else _named(target, linear, groups["vision"])
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(
                f"{target!r} is to get LoRA, but no linear layer of this {type(model).__name__} is called so; known "
                f"are {', '.join(groups)}, {', '.join(ends)}, and whole names such as '{linear[0]}'."
            )
        wanted.update(found)
    return [name for name in linear if name in wanted]


def _named(target: str, linear: Sequence[str], vision: Collection[str]) -> list[str]:
    # The picture encoder has layers of the same names; they are meant only where a whole name is given.
    ends = [name for name in linear if f".{name}".endswith(f".{target}") and name not in vision]
    try:
        return ends or [name for name in linear if re.fullmatch(target, name)]
    except re.error as error:
        raise InputError(f"{target!r} is neither the name of a layer nor a regular expression ({error}).") from error


def merge_lora(model: PreTrainedModel) -> list[str]:
    """Adds every adapter to the weight that it belongs to; the model is then an ordinary one.

    A head that was tied to the embedding, and had an adapter, becomes a weight of its own.

    Returns:
        Names of the layers that had one.

    Raises:
        InputError: there is none, or weights are rounded to integers.
    """
    layers = lora_layers(model)
    if not layers:
        raise InputError("The model has no adapter that could be merged; load one first.")
    if rounded := [name for name, layer in layers.items() if layer.is_rounded]:
        raise InputError(
            f"An adapter cannot be merged into weights that are rounded to integers, such as that of '{rounded[0]}'; "
            "save the adapter, and merge it into the model as it was before quantization."
        )
    tied = {name.rpartition(".")[0] for name in model.tied_weights()}
    if tied & layers.keys():
        model.config.get_text_config().tie_word_embeddings = False
    swap(model, lambda _, module: module.merged() if isinstance(module, LoraLinear) else None)
    return list(layers)


@torch.no_grad()
def merge_verified(model: PreTrainedModel, probe: Mapping[str, Any]) -> float:
    """Merges as `merge_lora` does, and compares the logits of a call before and after.

    Args:
        model: changed in place; in eval mode during the comparison.
        probe: arguments of the call, such as input_ids and pixel_values.

    Returns:
        Root of the mean square of the difference, as a share of the logits' spread.

    Raises:
        InputError: see `merge_lora`.
        CheckpointError: they differ more than rounding explains. The model is merged then, and should not be used.
    """
    was_training = model.training
    before = model.eval()(**probe).logits.float()
    merge_lora(model)
    after = model(**probe).logits.float()
    model.train(was_training)
    gap = float((after - before).square().mean().sqrt() / before.std())
    # Weights are rounded anew, so every layer adds an error of its own; in float32, kernels differ by a little more.
    allowed = max(4 * torch.finfo(model.dtype).eps * math.sqrt(len(model.text_model().layers)), 1e-4)
    if not gap <= allowed:
        raise CheckpointError(
            f"The merged model's logits differ from those with the adapter by {gap:.2g} of their spread, but rounding "
            f"explains {allowed:.2g} only; do not use it, and keep the adapter."
        )
    return gap
