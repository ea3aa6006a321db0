"""`adapter_config.json` of the peft library <-> which layers have LoRA, and with which numbers.

A field that is not known to leave the numbers alone is refused unless it is off.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemlens.errors import CheckpointError
from gemlens.training.lora_settings import LoraSettings

# Fields that say nothing about the numbers of a trained adapter.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version",
    "megatron_core", "qalora_group_size", "eva_config", "runtime_config",
}  # fmt: skip
# Fields that are read below.
_READ = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
}  # fmt: skip
# What others may be besides off; of the ways to begin, those that leave the model's own weights as they are.
_USUAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_OFF: tuple[object, ...] = (None, False, [], {})


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter_config.json says.

    Args:
        settings: of a layer that no pattern names.
        ranks, alphas: a regular expression for the end of a layer's name -> its own number.
        targets: a regular expression, "all-linear", or names and ends of names of layers.
        left_out: names that are no targets all the same, in the same form.
        blocks: numbers of the blocks whose layers are meant; None for all.
        block_names: what stands before such a number; empty for anything.
        trained: names or ends of names of modules that were trained in full.
    """

    settings: LoraSettings
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: str | Sequence[str]
    left_out: str | Sequence[str] = ()
    blocks: Collection[int] | None = None
    block_names: Sequence[str] = ()
    trained: Sequence[str] = ()

    def of(self, name: str) -> LoraSettings:
        """The settings of a layer."""
        rank = _by_pattern(self.ranks, name, self.settings.rank)
        return replace(self.settings, rank=rank, alpha=_by_pattern(self.alphas, name, self.settings.alpha))

    def means(self, name: str) -> bool:
        """Whether the linear layer of that name, as the file calls layers, has LoRA."""
        if _is_named(self.left_out, name) or self.is_trained(name):
            return False
        if self.targets == "all-linear":
            return not name.endswith(("lm_head", "score"))
        return _is_named(self.targets, name) and (isinstance(self.targets, str) or self._in_block(name))

    def is_trained(self, name: str) -> bool:
        """Whether a module, or one that it stands in, was trained in full."""
        return any(re.search(rf"(^|\.){re.escape(end)}($|\.)", name) for end in self.trained)

    def _in_block(self, name: str) -> bool:
        if self.blocks is None:
            return True
        before = "|".join(self.block_names) or r"[^.]*"
        found = re.match(rf"(?:.*?\.)?(?:{before})\.(\d+)\.", name)
        return found is not None and int(found[1]) in self.blocks


def read(content: Mapping[str, Any]) -> PeftConfig:
    """What the content of an adapter_config.json says. The dtype of its settings is that of new adapters.

    Raises:
        CheckpointError: it asks for something that would change the numbers and is not known here, or is no such file.
    """
    for name, value in content.items():
        usual = _USUAL.get(name, _OFF)
        if name not in _WITHOUT_EFFECT | _READ and not any(value is each or value == each for each in usual):
            raise CheckpointError(
                f"adapter_config.json has {name} = {value!r}, which changes what the model computes and is not known "
                "here; merge the adapter with peft, and load the merged model."
            )
    try:
        settings = LoraSettings(
            rank=content["r"],
            alpha=content["lora_alpha"],
            dropout=content.get("lora_dropout", 0.0),
            rslora=bool(content.get("use_rslora")),
        )
        config = PeftConfig(
            settings,
            ranks=dict(content.get("rank_pattern") or {}),
            alphas=dict(content.get("alpha_pattern") or {}),
            targets=_names(content["target_modules"]),
            left_out=_names(content.get("exclude_modules")),
            blocks=_numbers(content.get("layers_to_transform")),
            block_names=_listed(content.get("layers_pattern")),
            trained=_listed(content.get("modules_to_save")),
        )
        for pattern in (*config.ranks, *config.alphas, *config.block_names):
            re.compile(pattern)
        for rank in config.ranks.values():
            replace(settings, rank=rank)
        for alpha in config.alphas.values():
            replace(settings, alpha=alpha)
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"adapter_config.json is none of peft's for LoRA ({error!r}); save it again.") from error
    return config


def content_of(config: PeftConfig, base_model: str | None, task: str | None) -> dict[str, Any]:
    """The adapter_config.json that says the same; the reverse of `read`."""
    settings = config.settings
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "rank_pattern": dict(config.ranks),
        "alpha_pattern": dict(config.alphas),
        "target_modules": config.targets if isinstance(config.targets, str) else list(config.targets),
        "modules_to_save": list(config.trained) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def describe(layers: Mapping[str, LoraSettings], others: Collection[str], trained: Sequence[str]) -> PeftConfig:
    """The config that means exactly these layers.

    Args:
        layers: name of a layer -> its settings.
        others: names of the linear layers that have no LoRA.
        trained: names of modules that were trained in full.

    Raises:
        CheckpointError: layers differ in what only a whole adapter has in peft: dropout or rslora.
    """
    usual = Counter(layers.values()).most_common(1)[0][0]
    if {(each.dropout, each.rslora) for each in layers.values()} != {(usual.dropout, usual.rslora)}:
        raise CheckpointError("Layers with different dropout or rslora cannot be written as one adapter of peft.")
    config = PeftConfig(
        usual,
        ranks={re.escape(name): each.rank for name, each in layers.items() if each.rank != usual.rank},
        alphas={re.escape(name): each.alpha for name, each in layers.items() if each.alpha != usual.alpha},
        targets=sorted(layers),
        trained=trained,
    )
    ends = sorted({name.rpartition(".")[2] for name in layers})
    shorter = (ends, rf".*language_model.*\.({'|'.join(ends)})", rf".*vision_tower.*\.({'|'.join(ends)})")
    for targets in shorter:
        short = replace(config, targets=targets)
        if all(map(short.means, layers)) and not any(map(short.means, others)):
            return short
    return config


def _is_named(wanted: str | Sequence[str], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _by_pattern(patterns: Mapping[str, Any], name: str, usual: Any) -> Any:
    fitting = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(fitting, usual)


def _names(said: Any) -> str | tuple[str, ...]:
    if isinstance(said, str):
        re.compile(said)
        return said
    return _listed(said)


def _listed(said: Any) -> tuple[str, ...]:
    names = (said,) if isinstance(said, str) else tuple(said or ())
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{said!r} is no list of names")
    return names


def _numbers(said: Any) -> Collection[int] | None:
    numbers = {said} if type(said) is int else set(said or ())
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"{said!r} is no list of whole numbers")
    return numbers or None
