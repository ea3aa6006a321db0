"""`gemlens merge`: a model and an adapter -> a model that has learned, compared with both before it is written."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.folders import check_free, folder_size
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import size_text, tell, waiting
from gemlens.errors import InputError

_WORDS = "The quick brown fox jumps over the lazy dog."


def merge(
    model: options.Model,
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder or hub id with a LoRA in peft's format.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the merged checkpoint is written.")],
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    force: options.Force = False,
) -> None:
    """Add an adapter to the weights it was learned for, and write an ordinary checkpoint.

    Logits before and after are compared; more difference than rounding explains is an error, and nothing is written.

    \b
    gemlens merge google/paligemma2-3b-pt-224 boxes/best merged
    """
    from gemlens.training.adapters import load_adapter
    from gemlens.training.lora import merge_verified

    checkpoint = Checkpoint.of(model)
    if checkpoint.gguf:
        raise InputError("An adapter is merged into safetensors; gemlens convert makes them of a GGUF file.")
    check_free(folder, force)
    reader = checkpoint.reader(checkpoint.config())
    with waiting(f"Merging {adapter} into {checkpoint.name}"):
        loaded = checkpoint.load(Loading(dtype, device))
        layers = load_adapter(loaded, adapter)
        gap = merge_verified(loaded, _probe(reader, loaded.device))
    with waiting(f"Writing {folder}"):
        loaded.save_pretrained(folder)
        reader.save_pretrained(folder)
    tell(f"Merged {len(layers)} layers; logits differ by {gap:.1e} of their spread.")
    tell(f"Wrote {size_text(folder_size(folder))} to {folder}.")


def _probe(reader: Any, device: Any) -> dict[str, Any]:
    """Arguments of a call: a sentence, and where the model sees, a picture."""
    from PIL import Image

    from gemlens.processing.text.tokenizer import GemmaTokenizerFast

    if isinstance(reader, GemmaTokenizerFast):
        batch = reader(_WORDS, return_tensors="pt")
    else:
        picture = Image.radial_gradient("L").convert("RGB")
        mark = getattr(reader, "boi_token", "") or ""
        batch = reader(images=picture, text=f"{mark}{_WORDS}", return_tensors="pt")
    return {name: tensor.to(device) for name, tensor in batch.items()}
