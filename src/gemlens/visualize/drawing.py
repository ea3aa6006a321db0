"""MaskDrawing: what the visualizer gives; text for the terminal, PNG or SVG for a page."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from gemlens.errors import InputError
from gemlens.visualize import png, svg, terminal
from gemlens.visualize.chart import Chart, LayerMask, Token, clipped, make_chart, shown
from gemlens.visualize.page import lay_out

_MOST_IN_PICTURES = 200  # lines: two masks side by side are then 30 million points


@dataclass(frozen=True, repr=False)
class MaskDrawing:
    """The masks of one prompt.

    Args:
        model: name of the model.
        tokens: the S tokens that the model reads.
        masks: by kind of layer, in the order of their first layers.
        tokens_per_picture_drawn: how many lines a picture may take whose tokens are alike.
    """

    model: str
    tokens: tuple[Token, ...]
    masks: tuple[LayerMask, ...]
    tokens_per_picture_drawn: int = 5

    def text(self, colour: bool = True, width: int | None = None) -> str:
        """The drawing for a terminal of `width` columns (None: this one's); without `colour`, in signs alone."""
        width = shutil.get_terminal_size().columns if width is None else width
        return terminal.draw(self.chart(terminal.room(width, len(self.tokens))), colour, width)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the drawing into a file whose name ends in `.png` or `.svg`.

        Raises:
            InputError: another ending, or a place that cannot be written to.
        """
        place = Path(path)
        ending = place.suffix.lower()
        if ending not in (".png", ".svg"):
            raise InputError(f"'{place}' ends in '{ending}', but a mask is saved as '.png' or '.svg'.")
        page = lay_out(self.chart(_MOST_IN_PICTURES))
        try:
            if ending == ".svg":
                place.write_text(svg.draw(page), encoding="utf-8")
            else:
                png.draw(page).save(place, format="PNG")
        except OSError as error:
            raise InputError(f"'{place}' cannot be written ({error.strerror}); choose another place.") from error

    def chart(self, most: int) -> Chart:
        """What is drawn with room for `most` lines."""
        title = f"{clipped(shown(self.model), 100)}: {len(self.tokens)} tokens"
        return make_chart(title, self.tokens, self.masks, self.tokens_per_picture_drawn, most)

    def __repr__(self) -> str:
        return f"<MaskDrawing of {len(self.tokens)} tokens: {'; '.join(mask.title for mask in self.masks)}>"
