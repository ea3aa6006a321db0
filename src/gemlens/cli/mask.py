"""`gemlens mask`: which tokens of a prompt see which, drawn in the terminal or to a file."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.folders import save_description
from gemlens.cli.prompts import Picture
from gemlens.cli.terminal import tell, waiting

if TYPE_CHECKING:
    from gemlens.visualize.visualizer import AttentionMaskVisualizer


def mask(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A text, with <img> where a picture stands.")],
    image: options.Images = None,
    suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The answer to learn, drawn behind the prompt.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Also write it: .svg or .png.")] = None,
) -> None:
    """Draw which tokens of a prompt see which, in each kind of layer. Weights are not read.

    \b
    gemlens mask google/paligemma2-3b-mix-224 "<img> What is this?" --suffix "a cow"
    gemlens mask google/gemma-3-4b-it "<img> and <img>: the same?" --save mask.svg
    """
    pictures = [Picture.open(source).image for source in image or ()]
    checkpoint = Checkpoint.of(model)
    with waiting(f"Reading {checkpoint.name}"):
        visualizer = _visualizer(checkpoint)
    drawing = visualizer(prompt, pictures or None, suffix)
    if save is not None:
        drawing.save(save)
        tell(f"Saved to {save}.")


def _visualizer(checkpoint: Checkpoint) -> "AttentionMaskVisualizer":
    from gemlens.visualize.visualizer import AttentionMaskVisualizer

    if not checkpoint.gguf:
        return AttentionMaskVisualizer(checkpoint.place)
    with TemporaryDirectory() as folder:  # it reads folders, and a GGUF file says the same in another way
        config = checkpoint.config()
        save_description(Path(folder), config, checkpoint.reader(config))
        visualizer = AttentionMaskVisualizer(folder)
    visualizer.model_name = checkpoint.name
    return visualizer
