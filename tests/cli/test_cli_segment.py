"""`gemlens segment`: as `gemlens detect`, with masks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripted_model import make_all_say
from typer.testing import Result

import gemlens as library
from gemlens.processing.pictures.pictures import open_picture
from gemlens.tasks import rle
from gemlens.tasks.drawing import draw
from gemlens.tasks.mask_codec import MaskCodec

Call = Callable[..., Result]
CODES = "".join(f"<seg{n:03d}>" for n in range(16))
TEXT = f"<loc0100><loc0200><loc0900><loc0800>{CODES} cat ; <loc0000><loc0000><loc0200><loc0200>{CODES} cat"


@pytest.fixture
def model(checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PaliGemma with a codec beside it that says TEXT; of the codec's mask half is inside."""
    torch.manual_seed(0)
    codec, folder = MaskCodec(), tmp_path / "model"
    (*_, last) = codec.decoder.parameters()
    with torch.no_grad():
        last -= codec.decode(torch.arange(16)[None]).median()
    shutil.copytree(checkpoint("paligemma"), folder)
    codec.save(folder / "mask_codec.npz")
    make_all_say(monkeypatch, str(folder), {"segment cat": TEXT})
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    Image.new("RGB", (120, 90), "white").save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def expected(model: Path, scene: Path) -> Any:
    return library.pipeline("segment", model, device=-1)(scene, "cat")


def test_json_has_masks_in_run_lengths(gemlens: Call, model: Path, scene: Path) -> None:
    result = gemlens("segment", scene, "cat", "--model", model, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = json.loads(result.stdout)["findings"]
    for told, found in zip((first, second), expected(model, scene), strict=True):
        assert (rle.decode(told["mask"]) == found.mask).all()
        assert found.mask.any()


def test_masks_and_the_drawing_are_written(gemlens: Call, model: Path, scene: Path, tmp_path: Path) -> None:
    out, masks = tmp_path / "out.png", tmp_path / "masks"
    result = gemlens("segment", scene, "cat", "--model", model, "--save", out, "--masks", masks)
    assert result.stderr == f"Saved to {out} and {masks}.\n"
    findings = expected(model, scene)
    assert open_picture(out).tobytes() == draw(open_picture(scene), findings).tobytes()
    assert {path.name for path in masks.iterdir()} == {"scene-1.png", "scene-2.png"}
    for number, found in enumerate(findings, 1):
        assert (np.asarray(open_picture(masks / f"scene-{number}.png"))[..., 0] == found.mask * 255).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_coco_has_masks_that_pycocotools_reads(gemlens: Call, model: Path, scene: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    gemlens("segment", scene, "cat", "--model", model, "--coco", tmp_path / "found.json")
    coco = COCO(str(tmp_path / "found.json"))
    for annotation, found in zip(coco.dataset["annotations"], expected(model, scene), strict=True):
        assert (coco.annToMask(annotation).astype(bool) == found.mask).all()


def test_a_codec_may_lie_elsewhere_and_is_asked_for_where_there_is_none(
    gemlens: Call, model: Path, scene: Path, tmp_path: Path
) -> None:
    with_codec = gemlens("segment", scene, "cat", "--model", model, "--json").stdout
    elsewhere = tmp_path / "vae-oid.npz"
    (model / "mask_codec.npz").rename(elsewhere)
    without = gemlens("segment", scene, "cat", "--model", model)
    assert without.exit_code == 1
    assert "brings no 'mask_codec.npz', which makes masks of <seg> tokens; pass --mask-codec" in without.stderr
    named = gemlens("segment", scene, "cat", "--model", model, "--json", "--mask-codec", elsewhere)
    assert named.stdout == with_codec
