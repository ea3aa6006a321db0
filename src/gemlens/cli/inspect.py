"""`gemlens inspect`: what a checkpoint is, without loading its weights; `--trace` runs one prompt through it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.facts import BYTES, Memory, Stored, memory_plan, parameters_by_part, stored_tensors, windows_of
from gemlens.cli.prompts import Reader
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import columns, plain, size_text, waiting
from gemlens.cli.trace import Stop, trace

if TYPE_CHECKING:
    from gemlens.models.configs.pretrained import PretrainedConfig

_USUAL_CONTEXT = 8192


def inspect(
    model: options.ModelOrNone = None,
    machine: Annotated[
        bool, typer.Option("--machine", help="Show which kernels run here, and on how many threads.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors of the files.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Plan the memory.")] = False,
    context: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens per row to plan for; default: 8192 or the model's.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="B", min=1, help="Rows to plan for.")] = 1,
    trace_prompt: Annotated[
        str | None,
        typer.Option("--trace", metavar="PROMPT", help="Load the model and run this through the seven stops."),
    ] = None,
    image: options.Images = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Show what a checkpoint is: config, parameters, layers; more with --memory, --tensors, --trace.

    Only config and headers are read, never the weights, except for --trace. Of a hub id, --tensors downloads the files.

    \b
    gemlens inspect google/gemma-3-4b-it --memory --context 32768 --batch 4
    gemlens inspect real/gemma-3-270m-q4_k_m.gguf --tensors
    gemlens inspect real/gemma-3-270m-q4_k_m.gguf --trace "The sky is"
    gemlens inspect --machine
    """
    if machine:
        print(json.dumps(_here()) if as_json else "\n".join(columns(_here_as_rows())))
    if model is None:
        if machine:
            return
        raise typer.BadParameter("Name a model to look at, or pass --machine to see what runs here.")
    checkpoint = Checkpoint.of(model)
    config = checkpoint.config()
    parts = parameters_by_part(config)
    text: Any = config.get_text_config()
    tokens = context or min(_USUAL_CONTEXT, text.max_position_embeddings)
    plans = {name: memory_plan(config, sum(parts.values()), name, tokens, batch) for name in BYTES}
    stored = stored_tensors(checkpoint) if tensors else []
    stops = _trace(checkpoint, config, trace_prompt, image or (), dtype, device) if trace_prompt is not None else []
    if as_json:
        print(json.dumps(_as_json(config, parts, plans, (tokens, batch), stored, stops)))
        return
    sections = [_summary(checkpoint, config, parts), _layers(config)]
    if memory or context is not None or batch > 1:
        sections.append(_memory(plans, tokens, batch))
    if tensors:
        sections.append(_tensors(stored))
    if stops:
        sections.append(_stops(stops))
    print("\n\n".join("\n".join(lines) for lines in sections))


def _here() -> dict[str, Any]:
    """What kernels and torch run on."""
    import torch

    from gemlens.kernels.machine import REFERENCE, cores, machine

    here = machine()
    usable = [] if here.native is None else list(here.native.names())
    return {
        "kernels": here.kernels,
        "usable": [*usable, REFERENCE],
        "threads": here.threads,
        "cores": cores(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def _here_as_rows() -> list[tuple[str, str]]:
    here = _here()
    return [
        ("kernels", f"{here['kernels']}; GEMLENS_KERNELS chooses of {', '.join(here['usable'])}"),
        (
            "threads",
            f"{here['threads']} on {here['cores']} cores that this process may use; GEMLENS_THREADS sets it",
        ),
        ("torch", f"{here['torch']} on {here['torch_threads']} threads"),
    ]


def _trace(
    checkpoint: Checkpoint, config: "PretrainedConfig", prompt: str, sources: Sequence[str], dtype: str, device: str
) -> list[Stop]:
    with waiting(f"Loading {checkpoint.name}"):
        reader = Reader(checkpoint.reader(config))
        model = checkpoint.load_to_answer(Loading(dtype, device))
    return trace(model, reader, prompt, sources)


def _as_json(
    config: "PretrainedConfig",
    parts: dict[str, int],
    plans: dict[str, Memory],
    planned_for: tuple[int, int],
    stored: list[Stored],
    stops: list[Stop],
) -> dict[str, Any]:
    """Everything; the tensors and the trace where they were asked for."""
    plan = {name: {**asdict(plan), "total": plan.total} for name, plan in plans.items()}
    found: dict[str, Any] = {
        "config": config.to_dict(),
        "parameters": {**parts, "total": sum(parts.values())},
        "windows": list(windows_of(config)),
        "memory": {"context": planned_for[0], "batch": planned_for[1], **plan},
    }
    if stored:
        found["tensors"] = [asdict(tensor) for tensor in stored]
    if stops:
        found["trace"] = [asdict(stop) for stop in stops]
    return found


def _summary(checkpoint: Checkpoint, config: "PretrainedConfig", parts: dict[str, int]) -> list[str]:
    text: Any = config.get_text_config()
    vision: Any = getattr(config, "vision_config", None)
    rows = [
        ("model", f"{config.model_type} in {checkpoint.name}"),
        ("decoder", f"{text.num_hidden_layers} layers of width {text.hidden_size}, MLP {text.intermediate_size}"),
        (
            "attention",
            f"{text.num_attention_heads} heads of {text.head_dim}, {text.num_key_value_heads} of keys and values",
        ),
        ("vocabulary", f"{text.vocab_size:,} tokens"),
        ("made for", f"{text.max_position_embeddings:,} tokens"),
    ]
    if vision is not None:
        size, tokens = vision.image_size, getattr(config, "tokens_per_image")  # noqa: B009 - only these have pictures
        rows.append(("pictures", f"{size} x {size} pixels, {vision.num_hidden_layers} layers, {tokens} tokens each"))
    counts = ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in parts.items())
    rows.append(("parameters", f"{sum(parts.values()) / 1e6:,.1f} M: {counts}"))
    return columns(rows)


def _layers(config: "PretrainedConfig") -> list[str]:
    """Which layers see how far; layers of one kind in one line."""
    kinds: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows_of(config)):
        kinds.setdefault(window, []).append(layer)
    rows = [
        (f"{len(layers)} layers", "see all" if window is None else f"see {window} tokens", _numbers(layers))
        for window, layers in kinds.items()
    ]
    return columns(rows)


def _numbers(layers: list[int]) -> str:
    """0-4, 6-10: runs of layer numbers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _memory(plans: dict[str, Memory], context: int, batch: int) -> list[str]:
    named = {
        "weights": "weights",
        "per_1000_tokens": "keys and values of 1,000 tokens",
        "keys_and_values": f"keys and values, {batch} x {context:,} tokens",
        "picture": "picture encoder, one picture",
        "total": "weights, keys and values, picture",
    }
    rows = [("memory", *plans)]
    rows += [(said, *(size_text(getattr(plan, name)) for plan in plans.values())) for name, said in named.items()]
    return columns(rows, right=(1, 2))


def _tensors(stored: list[Stored]) -> list[str]:
    formats = Counter[str]()
    for tensor in stored:
        formats[tensor.format] += tensor.nbytes
    rows = [("tensor", "shape", "format", "size")]
    rows += [(each.name, str(list(each.shape)), each.format, size_text(each.nbytes)) for each in stored]
    together = ", ".join(f"{name} {size_text(size)}" for name, size in formats.most_common())
    return [*columns(rows, right=(3,)), plain(f"{len(stored)} tensors, {size_text(formats.total())}: {together}")]


def _stops(stops: list[Stop]) -> list[str]:
    rows = [("stop", "takes", "gives", "ms")]
    for stop in stops:
        rows.append((stop.word, stop.takes, stop.gives, f"{stop.milliseconds:.1f}"))
    return columns(rows, right=(3,))
