"""Adapters in files, as the peft library writes them, so that either opens what the other saved.

    adapter_config.json         which layers, and numbers; peft_config.py
    adapter_model.safetensors   base_model.model.<layer>.lora_A.weight [R, in], ...lora_B.weight [out, R]
                                base_model.model.<name of a weight>, of modules that were trained in full

Names are those of our models, which are the reference's; those of its older versions are read too. Every tensor of a
file must find its place, and every place that the config names its tensor, or nothing is loaded.
"""

import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gemlens.checkpoints.hub import Origin, read_json
from gemlens.checkpoints.names import match, quoted, some_of
from gemlens.checkpoints.pretrained import layout_of
from gemlens.checkpoints.safetensors import SINGLE_FILE, SafetensorsSource
from gemlens.checkpoints.save import save_weights, write_json
from gemlens.errors import CheckpointError, InputError
from gemlens.models.generative import GenerativeModel
from gemlens.models.pretrained import PreTrainedModel
from gemlens.training import lora, peft_config
from gemlens.training.lora import lora_layers
from gemlens.training.lora_settings import LoraSettings
from gemlens.training.peft_config import PeftConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_OURS = (".lora_A", ".lora_B")


def save_adapter(model: PreTrainedModel, folder: str | Path, base_model: str | None = None) -> None:
    """Writes what learned: the adapter, and other weights that require a gradient, as peft's `modules_to_save`.

    A crash leaves the old files, or no adapter_config.json.

    Args:
        model: one with an adapter.
        folder: made if it does not exist.
        base_model: what the adapter belongs to, for those who open it: a folder or a hub id.

    Raises:
        InputError: there is no adapter, or what learned cannot be said in peft's format.
        CheckpointError: the folder cannot be written to.
    """
    layers = lora_layers(model)
    if not layers:
        raise InputError("The model has no adapter to save; add_lora gives it one, save_pretrained saves whole models.")
    trained = _trained(model)
    others = [name for name in lora.linear_layers(model) if name.removesuffix(".base_layer") not in layers]
    settings = {name: layer.settings for name, layer in layers.items()}
    config = peft_config.describe(settings, others, _modules(model, trained))
    a = {name + _A: layer.lora_A for name, layer in layers.items()}
    b = {name + _B: layer.lora_B for name, layer in layers.items()}
    task = "CAUSAL_LM" if isinstance(model, GenerativeModel) else None
    _write(Path(folder), {**a, **b, **trained}, peft_config.content_of(config, base_model, task))


def load_adapter(model: PreTrainedModel, folder: str | Path) -> list[str]:
    """Adds the adapter of a folder or of a hub repository. What it holds can learn on; nothing else of the model does.

    Args:
        model: without an adapter; not changed if anything is wrong.
        folder: written by `save_adapter` or by peft.

    Returns:
        Names of the layers that it belongs to.

    Raises:
        CheckpointError: files that are missing, damaged, pickled or of another model, or that ask for more than LoRA.
        InputError: the model has an adapter already.
    """
    lora.refuse_second(model)
    origin = Origin(folder)
    config = peft_config.read(read_json(origin.fetch(CONFIG_FILE)))
    source = SafetensorsSource(_weights_of(origin))
    found = _find(model, source)
    _check(model, source, config, found)
    layers = {name: _settings(config, found, source, name) for name in found.a}
    lora.replace(model, layers)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.lora_A.copy_(source.tensor(found.a[name]))
            layer.lora_B.copy_(source.tensor(found.b[name]))
    _put(model, {name: source.tensor(file) for name, file in found.weights.items()})
    return list(layers)


# -- writing -----------------------------------------------------------------------------------------------------------


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Weights besides the adapter's that learn, by all of their names, each with memory of its own."""
    trained: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad and not name.endswith(_OURS):
            trained[name] = weight.detach().clone() if id(weight) in seen else weight.detach()
            seen.add(id(weight))
    if both := [name for name in trained if ".base_layer." in name]:
        raise InputError(
            f"'{both[0]}' learned beside the adapter of its layer, which peft's format cannot say; merge the adapter "
            "and save the model whole."
        )
    return trained


def _modules(model: nn.Module, trained: Mapping[str, Tensor]) -> list[str]:
    """Names of the largest modules of which everything learned, as peft will find them: no other name ends so."""
    found: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = {weight for weight, _ in module.named_parameters(prefix=name, remove_duplicate=False)}
        if own and own <= trained.keys() and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    if alone := [weight for weight in trained if not any(weight.startswith(f"{name}.") for name in found)]:
        raise InputError(
            f"'{alone[0]}' learned while another weight of the same module did not, which peft's format cannot say; "
            "let the whole module learn."
        )
    everywhere = [name for name, _ in model.named_modules(remove_duplicate=False)]
    leaves = {name: name.rpartition(".")[2] for name in found}
    return [leaf if sum(each.endswith(leaf) for each in everywhere) == 1 else name for name, leaf in leaves.items()]


def _write(folder: Path, state: Mapping[str, Tensor], content: Mapping[str, object]) -> None:
    """The config is there only while weights that belong to it are."""
    stage = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        save_weights({_PREFIX + name: tensor for name, tensor in state.items()}, stage, max_shard_size="1000TB")
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        (stage / SINGLE_FILE).replace(folder / WEIGHTS_FILE)
        stage.rmdir()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be written to ({error}); choose another folder.") from error
    finally:
        if stage.exists():
            shutil.rmtree(stage, ignore_errors=True)
    write_json(folder / CONFIG_FILE, content)


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the tensors of a file are to a model.

    Args:
        a, b: name of a layer -> the file's name for its A and B.
        weights: name of another weight -> the file's name for it.
        called: name of every linear layer and weight -> what the file calls it, or would.
        unknown: names of the file that no part of the model has.
    """

    a: Mapping[str, str]
    b: Mapping[str, str]
    weights: Mapping[str, str]
    called: Mapping[str, str]
    unknown: Collection[str]


def _weights_of(origin: Origin) -> Path:
    if (path := origin.find(WEIGHTS_FILE)) is not None:
        return path
    if pickles := [name for name in origin.listing() if name.endswith(".bin")]:
        raise CheckpointError(
            f"There is no '{WEIGHTS_FILE}' in {origin}, only {quoted(pickles)}; such files are pickles, which can "
            "execute code when they are opened. Convert them to safetensors where you trust them."
        )
    raise CheckpointError(f"There is no '{WEIGHTS_FILE}' in {origin}; check that this is the folder of an adapter.")


def _find(model: PreTrainedModel, source: SafetensorsSource) -> _Found:
    layout = layout_of(type(model))
    files = {name.removeprefix(_PREFIX): name for name in source.shapes() if name.startswith(_PREFIX)}
    fitting = match(files, layout)
    unknown = {name for name in source.shapes() if not name.startswith(_PREFIX)}
    unknown |= {files[name] for name in fitting.unknown | fitting.ignored}
    prefixes: dict[str, str] = {}  # of the file, by part
    for ours, theirs in fitting.names.items():
        if (split := layout.split(ours)) is not None:
            prefixes[split[0]] = theirs.removesuffix(split[1])

    def called(weight: str) -> str:
        part, rest = layout.split(weight) or ("", weight)
        return prefixes[part] + rest if part in prefixes else weight

    names = {weight: called(weight) for weight, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name: called(f"{name}.weight").removesuffix(".weight") for name in lora.linear_layers(model)}
    found = {name: files[theirs] for name, theirs in fitting.names.items()}
    a = {name.removesuffix(_A): file for name, file in found.items() if name.endswith(_A)}
    b = {name.removesuffix(_B): file for name, file in found.items() if name.endswith(_B)}
    weights = {name: file for name, file in found.items() if not name.endswith((_A, _B))}
    return _Found(a, b, weights, names, unknown)


def _check(model: PreTrainedModel, source: SafetensorsSource, config: PeftConfig, found: _Found) -> None:
    """Refuses a file of which anything has no place, or that lacks anything."""
    layers, shapes = lora.linear_layers(model), source.shapes()
    weights = dict(model.named_parameters(remove_duplicate=False))
    expected = {name for name, called in found.called.items() if config.means(called)}
    needed = {name for name in weights if config.is_trained(found.called[name])}
    missing = [f"{name}{_A}" for name in (expected | found.b.keys()) - found.a.keys()]
    missing += [f"{name}{_B}" for name in (expected | found.a.keys()) - found.b.keys()]
    missing += needed - found.weights.keys()
    homeless = [name for part in (found.a, found.b) for layer, name in part.items() if layer not in layers]
    homeless += [*found.unknown, *(file for name, file in found.weights.items() if name not in weights)]
    sizes = {file: tuple(weights[name].shape) for name, file in found.weights.items() if name in weights}
    for name in layers.keys() & found.a.keys() & found.b.keys():
        rank = config.of(found.called[name]).rank
        sizes[found.a[name]] = (rank, layers[name].in_features)
        sizes[found.b[name]] = (layers[name].out_features, rank)
    wrong = [f"'{file}' is {list(shapes[file])} but should be {list(size)}" for file, size in sizes.items()
             if tuple(shapes[file]) != size]  # fmt: skip
    troubles = {"missing": quoted(missing), "left over": quoted(homeless), "of the wrong shape": some_of(wrong)}
    if said := [f"{kind}: {names}" for kind, names in troubles.items() if names]:
        raise CheckpointError(
            f"The adapter does not fit this {type(model).__name__}; {'; '.join(said)}. Load it onto the model that it "
            "was trained on; nothing was changed."
        )
    if not found.a:
        raise CheckpointError("The adapter's file holds no LoRA at all; save it again.")


def _settings(config: PeftConfig, found: _Found, source: SafetensorsSource, name: str) -> LoraSettings:
    dtype = "bfloat16" if source.dtypes()[found.a[name]] == "BF16" else "float32"
    return replace(config.of(found.called[name]), dtype=dtype)


def _put(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Replaces weights by others, which can learn on. Tied ones are tied no more unless both are given, and equal."""
    weights = {}
    for name, tensor in tensors.items():
        old = model.get_parameter(name)
        weights[name] = nn.Parameter(tensor.to(old.device, old.dtype, copy=True))
    for twin, original in model.tied_weights().items():
        if {twin, original} <= weights.keys() and torch.equal(weights[twin], weights[original]):
            weights[twin] = weights[original]
        elif {twin, original} & weights.keys():
            model.config.get_text_config().tie_word_embeddings = False
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, weight)
