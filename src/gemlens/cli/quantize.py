"""`gemlens quantize`: a checkpoint with rounded weights: GGUF files by our own rounding, or a folder by torchao's."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.folders import check_free, folder_size
from gemlens.cli.prompts import Reader
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import size_text, tell, waiting
from gemlens.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gemlens.models.generative import GenerativeModel

_GGUF = ("q8", "q4")
_MOST = {"q8": 0.05, "q4": 0.5}  # of the logits' own size, by which rounding may change them


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF file, or the folder, that is written.")],
    kind: Annotated[
        Literal["q8", "q4", "int8_weight_only", "int4_weight_only"],
        typer.Option("--type", help="q8, q4: a GGUF file, with an mmproj file beside it for pictures."),
    ],
    group_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Weights that share a scale; default: the format's.")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    force: options.Force = False,
) -> None:
    """Round the weights of a checkpoint to integers and write it.

    q8 and q4 write GGUF files, which gemlens and llama.cpp open, read them again and compare logits. The others write a
    folder, by torchao.

    \b
    gemlens quantize google/gemma-3-1b-it gemma-3-1b-q8.gguf --type q8
    gemlens quantize google/gemma-3-1b-it gemma-int4 --type int4_weight_only --group-size 64
    """
    checkpoint = Checkpoint.of(model)
    if kind in _GGUF:
        _to_gguf(checkpoint, out, kind, Loading(dtype, device), group_size, force)
        return
    from gemlens.quantization.config import TorchAoConfig

    check_free(out, force)
    quantization = TorchAoConfig(kind, quant_type_kwargs={} if group_size is None else {"group_size": group_size})
    reader = checkpoint.reader(checkpoint.config())
    with waiting(f"Rounding the weights of {checkpoint.name}"):
        rounded = checkpoint.load(Loading(dtype, device), quantization)
    with waiting(f"Writing {out}"):
        rounded.save_pretrained(out)
        reader.save_pretrained(out)
    tell(f"Wrote {size_text(folder_size(out))} to {out}.")


def _to_gguf(
    checkpoint: Checkpoint, path: Path, kind: str, loading: Loading, group_size: int | None, force: bool
) -> None:
    from gemlens.checkpoints.gguf_export import export_gguf, mmproj_beside
    from gemlens.processing.text.gguf_vocabulary import gguf_vocabulary

    if group_size is not None:
        raise InputError(f"In a GGUF file 32 weights share a scale; leave --group-size out with --type {kind}.")
    if path.suffix != ".gguf":
        raise InputError(f"'{path}' is to be a GGUF file; give it a name that ends in .gguf.")
    config = checkpoint.config()
    paths = [path, mmproj_beside(path)] if hasattr(config, "vision_config") else [path]
    if (there := [str(each) for each in paths if each.exists()]) and not force:
        raise InputError(f"'{there[0]}' exists; name another file, or pass --force to replace it.")
    tokenizer = Reader(checkpoint.reader(config)).tokenizer
    with waiting(f"Reading {checkpoint.name}"):
        exact = checkpoint.load(replace(loading, dtype="float32") if _is_free(checkpoint, loading) else loading)
    text: Any = config.get_text_config()
    vocabulary = gguf_vocabulary(tokenizer, text.vocab_size)
    with waiting(f"Rounding and writing {path}"):
        written = export_gguf(exact, vocabulary, path, kind)
    with waiting("Comparing logits"):
        again = Checkpoint(str(path.parent), tuple(each.name for each in written))
        change = _change(exact, again.load(replace(loading, dtype="float32")))
    if not change <= _MOST[kind]:
        raise CheckpointError(
            f"Read again, the logits of '{path}' differ from those of {checkpoint.name} by {change:.1%}, but rounding "
            f"changes them by {_MOST[kind]:.0%} at most: the file does not hold this model. Please report this."
        )
    size = sum(each.stat().st_size for each in written)
    names = " and ".join(str(each) for each in written)
    tell(f"Wrote {size_text(size)} to {names}. Read again, logits differ by {change:.1%} from those of exact weights.")


def _is_free(checkpoint: Checkpoint, loading: Loading) -> bool:
    """Whether nobody chose in which numbers blocks are read, so that nothing need be lost."""
    return bool(checkpoint.gguf) and loading.dtype == "auto"


def _change(exact: "GenerativeModel", rounded: "GenerativeModel") -> float:
    """By how much of their own size the logits of a text differ."""
    import torch

    text: Any = exact.config.get_text_config()
    ids = torch.randint(3, min(text.vocab_size, 200_000), (1, 64), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = text.bos_token_id
    with torch.inference_mode():
        wanted, said = (model(input_ids=ids.to(model.device)).logits.float() for model in (exact, rounded))
    return float((said - wanted).norm() / wanted.norm())
