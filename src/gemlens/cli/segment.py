"""`gemlens segment`: pictures and labels -> boxes and masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.assets import MODEL_NAME
from gemlens.cli import options
from gemlens.cli.ask import load_to_look
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.detect import Files, find_in_each
from gemlens.cli.settings import Loading
from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.pipelines.segmentation import SegmentationPipeline


def segment(
    pictures: options.Pictures,
    labels: options.Labels,
    model: options.ModelOption = MODEL_NAME,
    threshold: options.Threshold = 0.0,
    save: options.SaveDrawing = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write each mask as a PNG, white on black.")
    ] = None,
    coco: options.Coco = None,
    mask_codec: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="Makes masks of <seg> tokens; default: mask_codec.npz of the model."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of an answer at most.")] = 256,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.JsonLines = False,
) -> None:
    """Find things in pictures and say which pixels are theirs.

    Lines are as of `gemlens detect`; --json and --coco have the masks as run lengths. The codec of Google's checkpoints
    is the file vae-oid.npz that Google published beside them. Without --model the embedded model looks, which knows
    drawn scenes only and brings its codec.

    \b
    gemlens segment scene.png cat --save found.png --masks masks
    gemlens segment photo.jpg "the dog" --model google/paligemma2-3b-mix-448 --mask-codec vae-oid.npz
    """

    def load() -> "SegmentationPipeline":
        from gemlens.checkpoints.hub import Origin
        from gemlens.pipelines.segmentation import CODEC_FILE, SegmentationPipeline, codec_of

        checkpoint = Checkpoint.of(model)
        codec = mask_codec or codec_of(Origin(checkpoint.place))
        if codec is None:
            raise InputError(
                f"'{checkpoint.name}' brings no '{CODEC_FILE}', which makes masks of <seg> tokens; pass --mask-codec "
                "FILE.npz, for Google's checkpoints their vae-oid.npz."
            )
        reader = checkpoint.reader(checkpoint.config())
        settings: dict[str, Any] = {"threshold": threshold, "max_new_tokens": max_new_tokens, "codec": codec}
        return SegmentationPipeline(load_to_look(checkpoint, Loading(dtype, device)), reader, **settings)

    find_in_each(pictures, labels, load, Files(save, coco, masks), as_json)
