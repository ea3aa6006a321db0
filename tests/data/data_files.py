"""Pictures and files of data, written by json, csv and pyarrow, never by gemlens."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BOX = "<loc0100><loc0200><loc0300><loc0400>"


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """A picture of noise, which no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=1))
    return path


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A row in PaliGemma's form."""
    return {"image": "cow.png", "prefix": f"detect cow{number}", "suffix": f"{BOX} cow{number}", **fields}


def coco(**fields: Any) -> dict[str, Any]:
    """Two pictures of 64 x 48; the first has a cat and two dogs, the second nothing."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 9, "file_name": "b.png", "width": 64, "height": 48},
        ],
        "annotations": [
            annotation(1, 3, [30, 20, 10, 12]),
            annotation(2, 2, [0, 0, 64, 48]),
            annotation(4, 3, [2, 4, 8, 8]),
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 5, "name": "emu"}],
        **fields,
    }


def annotation(number: int, category: int, box: list[float]) -> dict[str, Any]:
    corners = square(*box)
    return {"id": number, "image_id": 7, "category_id": category, "bbox": box, "segmentation": [corners]}


def square(left: float, top: float, width: float, height: float) -> list[float]:
    return [left, top, left + width, top, left + width, top + height, left, top + height]
