"""`gemlens quantize`: a checkpoint with weights rounded to integers by torchao."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.folders import check_free, folder_size
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import size_text, tell, waiting


def quantize(
    model: options.Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the quantized checkpoint is written.")],
    kind: Annotated[Literal["int8_weight_only", "int4_weight_only"], typer.Option("--type", help="The format.")],
    group_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Weights that share a scale; default: the format's.")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    force: options.Force = False,
) -> None:
    """Round the linear layers' weights to integers, by torchao, and write the checkpoint.

    \b
    gemlens quantize google/gemma-3-1b-it gemma-int8 --type int8_weight_only
    gemlens quantize google/gemma-3-1b-it gemma-int4 --type int4_weight_only --group-size 64
    """
    from gemlens.quantization.config import TorchAoConfig

    checkpoint = Checkpoint.of(model)
    check_free(folder, force)
    quantization = TorchAoConfig(kind, quant_type_kwargs={} if group_size is None else {"group_size": group_size})
    reader = checkpoint.reader(checkpoint.config())
    with waiting(f"Rounding the weights of {checkpoint.name}"):
        rounded = checkpoint.load(Loading(dtype, device), quantization)
    with waiting(f"Writing {folder}"):
        rounded.save_pretrained(folder)
        reader.save_pretrained(folder)
    tell(f"Wrote {size_text(folder_size(folder))} to {folder}.")
