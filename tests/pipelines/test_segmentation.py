"""`pipeline("segment")`: masks of the original picture's size, by the codec beside the weights; the embedded model."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripted_model import scripted

import gemlens
from gemlens.errors import CheckpointError, InputError
from gemlens.pipelines.segmentation import CODEC_FILE, SegmentationPipeline
from gemlens.tasks.findings import Finding, parse
from gemlens.tasks.mask_codec import MaskCodec

WHITE = Image.new("RGB", (120, 90), "white")
TEXT = "<loc0000><loc0000><loc0511><loc0511>" + "".join(f"<seg{n:03d}>" for n in range(16)) + " cat"
Folder = Callable[[str], str]


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec with random weights, of whose mask half is inside."""
    torch.manual_seed(0)
    codec, path = MaskCodec(), tmp_path_factory.mktemp("codec") / CODEC_FILE
    (*_, last) = codec.decoder.parameters()  # the bias of what comes out
    with torch.no_grad():
        last -= codec.decode(torch.arange(16)[None]).median()
    codec.save(path)
    return path


@pytest.fixture
def with_codec(checkpoint: Folder, codec_file: Path, tmp_path: Path) -> Path:
    """A folder of a PaliGemma with its codec."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("paligemma"), folder)
    shutil.copy(codec_file, folder)
    return folder


def says(segment: Any, text: str) -> Any:
    """The same pipeline with a model that answers this."""
    segment.model.generate = scripted(segment.processor, {"segment cat": text})
    return segment


def same(found: Finding, expected: Finding) -> bool:
    assert found.mask is not None
    assert expected.mask is not None
    return (found.label, found.box, found.codes) == (expected.label, expected.box, expected.codes) and bool(
        (found.mask == expected.mask).all()
    )


def test_masks_have_the_size_of_the_picture_by_the_codec_of_the_folder(with_codec: Path, codec_file: Path) -> None:
    segment = gemlens.pipeline("segment", with_codec, device=-1)
    assert type(segment) is SegmentationPipeline
    (found,) = says(segment, TEXT)(WHITE, "cat")
    (expected,) = parse(TEXT, WHITE.size, MaskCodec.load(codec_file))
    assert same(found, expected)
    assert found.mask.shape == (90, 120)
    assert 0 < found.mask.sum() < 90 * 120 / 4
    assert 0.99 < found.score < 1


def test_a_codec_may_come_as_a_path_or_as_it_is(checkpoint: Folder, codec_file: Path) -> None:
    (expected,) = parse(TEXT, WHITE.size, MaskCodec.load(codec_file))
    for codec in (codec_file, str(codec_file), MaskCodec.load(codec_file)):
        segment = gemlens.pipeline("segment", checkpoint("paligemma"), device=-1, codec=codec)
        assert same(says(segment, TEXT)(WHITE, "cat")[0], expected)
        assert same(says(segment, TEXT)(WHITE, "cat", codec=codec)[0], expected)


def test_a_codec_that_came_wins_over_that_of_the_folder(with_codec: Path, codec_file: Path) -> None:
    class Everything:
        """A codec whose masks fill their box."""

        def encode(self, masks: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(masks), 16, dtype=torch.long)

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(codes), 64, 64)

    (found,) = says(gemlens.pipeline("segment", with_codec, device=-1, codec=Everything()), TEXT)(WHITE, "cat")
    left, top, right, bottom = (round(edge) for edge in vars(found.box).values())
    expected = np.zeros((90, 120), dtype=bool)
    expected[top:bottom, left:right] = True
    assert (found.mask == expected).all()


def test_dicts_have_masks_as_pictures(with_codec: Path) -> None:
    segment = says(gemlens.pipeline("image-segmentation", with_codec, device=-1), TEXT)
    (told,) = segment(WHITE, "cat")
    (found,) = segment(WHITE, "cat", as_dicts=False)
    assert told.keys() == {"score", "label", "box", "mask"}
    assert told["mask"].mode == "L"
    assert (np.asarray(told["mask"]) == found.mask * 255).all()


def test_without_a_codec_a_sentence_says_what_to_pass(checkpoint: Folder) -> None:
    with pytest.raises(InputError, match=r"no 'mask_codec\.npz' lies beside .*; pass codec=.*vae-oid\.npz"):
        gemlens.pipeline("segment", checkpoint("paligemma"), device=-1)
    model = gemlens.AutoModelForImageTextToText.from_pretrained(checkpoint("paligemma"))
    segment: Any = gemlens.pipeline("segment", model, processor=checkpoint("paligemma"))
    with pytest.raises(InputError, match="pass codec="):
        says(segment, TEXT)(WHITE, "cat")
    with pytest.raises(CheckpointError, match=r"nothing\.npz"):
        segment(WHITE, "cat", codec="nothing.npz")


# -- the embedded model ------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(with_codec: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in the place of the embedded one, and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("gemlens.checkpoints.hub.MODEL", with_codec)
    return with_codec


@pytest.mark.parametrize(
    "opener",
    ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor"],
)
def test_its_name_opens_the_embedded_model_without_a_network(embedded: Path, opener: str) -> None:
    found, expected = (getattr(gemlens, opener).from_pretrained(place) for place in ("gemlens-tiny", embedded))
    assert type(found) is type(expected)
    if opener.startswith("AutoModel"):
        for (name, weight), (other, same_weight) in zip(
            found.named_parameters(), expected.named_parameters(), strict=True
        ):
            assert name == other
            assert torch.equal(weight, same_weight)


@pytest.mark.parametrize("task", ["detect", "segment", "object-detection", "image-segmentation"])
def test_without_a_model_the_embedded_one_looks(embedded: Path, task: str) -> None:
    found = gemlens.pipeline(task, device=-1)
    own = gemlens.pipeline("image-text-to-text", "gemlens-tiny", device=-1)
    for (name, weight), (other, same_weight) in zip(
        found.model.named_parameters(), own.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(weight, same_weight)


def test_a_folder_of_that_name_wins(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gemlens-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no 'config\.json' in the folder 'gemlens-tiny'"):
        gemlens.AutoConfig.from_pretrained("gemlens-tiny")


def test_other_tasks_still_need_a_model() -> None:
    with pytest.raises(InputError, match="No model came"):
        gemlens.pipeline("text-generation")
