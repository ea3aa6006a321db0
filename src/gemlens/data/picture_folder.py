"""The folder that pictures of a data file lie in: names in the file -> files, none of them outside unless allowed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from gemlens.data.example import Example, Picture
from gemlens.data.where import Where, shown
from gemlens.errors import PictureError
from gemlens.processing.pictures.pictures import open_picture


@dataclass(frozen=True)
class PictureFolder:
    """Where names of pictures begin.

    Args:
        path: of the folder.
        allow_outside: whether a name may lead out of it: by `..`, as an absolute path, or through a link. A data file
            from somebody else could otherwise name any picture of this machine.
    """

    path: Path
    allow_outside: bool = False

    def picture(self, value: Any, where: Where) -> Picture:
        """The picture that a row names; it is not opened.

        Args:
            value: a name, a `data:` URL, the bytes of a file, or {"bytes": ..., "path": ...} as `datasets` writes it.
            where: of the row.

        Raises:
            InputError: it is none of these.
            PictureError: the file is missing, or outside the folder; a `data:` URL holds no picture.
        """
        if isinstance(value, Mapping):
            data, name = value.get("bytes"), value.get("path")
            value = data if data is not None else name
        if isinstance(value, bytes):
            return value
        name = where.text(value, "the picture")
        if name[:5].lower() == "data:":
            return self._decoded(name, where)
        if name[:7].lower() == "http://" or name[:8].lower() == "https://":
            where.refuse(f"the picture {shown(name)} is a URL, and data is read without a network; download it first.")
        return self._file(name, where)

    def _decoded(self, url: str, where: Where) -> Picture:
        try:
            return open_picture(url, allow_urls=False)
        except PictureError as error:
            raise PictureError(f"{where}: {error}") from None

    def _file(self, name: str, where: Where) -> Path:
        path = self.path / name
        try:
            real, root = os.path.realpath(path, strict=True), os.path.realpath(self.path, strict=True)
        except FileNotFoundError:
            raise PictureError(f"{where}: the picture {shown(name)} is not in '{self.path}'.") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte
            reason = (getattr(error, "strerror", None) or "no name of a file").lower()
            raise PictureError(f"{where}: the picture {shown(name)} cannot be read ({reason}).") from None
        if not self.allow_outside and not Path(real).is_relative_to(root):
            raise PictureError(
                f"{where}: the picture {shown(name)} is outside '{self.path}'; allow that with allow_outside=True, or "
                "on the command line with --allow-outside, if you trust the file."
            )
        if not Path(real).is_file():
            raise PictureError(f"{where}: the picture {shown(name)} is no file but a folder, a pipe or a device.")
        return path


def open_pictures(example: Example) -> list[Image]:
    """The pictures of an example, decoded: RGB, upright, on white.

    Raises:
        PictureError: one is damaged, too large or of no known kind; the sentence says of which example.
    """
    try:
        return [open_picture(picture, allow_urls=False) for picture in example.pictures]
    except PictureError as error:
        raise PictureError(f"{example.id}: {error}") from None
