"""Exports: COCO JSON and run lengths as pycocotools reads them, PNG, supervision."""

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from gemlens.errors import InputError
from gemlens.tasks import rle
from gemlens.tasks.boxes import Box
from gemlens.tasks.coco import FoundIn, to_coco
from gemlens.tasks.findings import Finding
from gemlens.tasks.mask_pictures import label_picture, mask_pictures
from gemlens.tasks.supervision_export import to_supervision


def block(size: tuple[int, int], box: Box) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=bool)
    mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return mask


SIZE = (40, 30)
FIRST, SECOND = Box(2, 3, 20, 13), Box(10, 5, 38.5, 29.25)
CAT = Finding("cat", FIRST, block(SIZE, FIRST), score=0.75)
DOG = Finding("dog", SECOND, block(SIZE, SECOND))
BARE = Finding("cat", SECOND)


# -- run lengths -------------------------------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(0, 60), st.integers(0, 60)))
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    return dice.random(shape) < draw(st.sampled_from([0, 0.02, 0.5, 0.98, 1]))


@given(masks())
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray) -> None:
    theirs = oracle.encode(np.asfortranarray(mask, dtype=np.uint8))
    ours = rle.encode(mask)
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    json.dumps(ours)
    assert (rle.decode(ours) == mask).all()
    assert (rle.decode(theirs) == mask).all(), "bytes"
    assert (rle.decode({"size": theirs["size"], "counts": rle.runs(mask)}) == mask).all(), "a list"
    assert rle.decode(ours).dtype == np.bool_


@given(st.lists(st.integers(0, 2**26), min_size=1, max_size=12))
def test_uncompressed_run_lengths_become_the_string_of_pycocotools(lengths: list[int]) -> None:
    theirs = oracle.frPyObjects({"size": [sum(lengths), 1], "counts": lengths}, sum(lengths), 1)["counts"].decode()
    assert rle.compress(lengths) == theirs
    assert rle.decompress(theirs) == lengths


def test_pixels_are_read_column_by_column() -> None:
    mask = np.array([[False, True, True], [False, False, True]])
    assert rle.runs(mask) == [2, 1, 1, 2]
    assert rle.runs(~mask) == [0, 2, 1, 1, 2]


@pytest.mark.parametrize(
    "segmentation",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": [4]},
        {"size": [2, -2], "counts": [4]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [2.0, 2.0]},
        {"size": [2, 2], "counts": 4},
        {"size": [2, 2], "counts": "\x00"},
        {"size": [2, 2], "counts": "4\u732b"},
        {"size": [2, 2], "counts": b"4\xff"},
        {"size": [2, 2], "counts": "T"},
        {"size": [2, 2], "counts": "o" * 100_000},
        {"size": [10**6, 10**6], "counts": [10**12]},
    ],
    ids=lambda segmentation: ascii(segmentation)[:50],
)
def test_damaged_run_lengths_are_a_sentence(segmentation: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"(?i)(run lengths|the mask has)"):
        rle.decode(segmentation)


@given(st.text(max_size=12) | st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12), masks())
def test_any_string_is_a_mask_or_a_sentence(text: str, mask: np.ndarray) -> None:
    with contextlib.suppress(InputError):
        assert rle.decode({"size": list(mask.shape), "counts": text}).shape == mask.shape


def test_what_is_no_mask_has_no_run_lengths() -> None:
    with pytest.raises(InputError, match=r"A mask is bool \[height, width\], not float64 \[3, 3\]"):
        rle.encode(np.ones((3, 3)))


# -- COCO JSON ---------------------------------------------------------------------------------------------------------


def opened(exported: dict[str, Any], folder: Path) -> COCO:
    path = folder / "found.json"
    path.write_text(json.dumps(exported))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools, with numpy 2
def test_pycocotools_reads_what_was_found(tmp_path: Path) -> None:
    pictures = [FoundIn("a.png", SIZE, [CAT, DOG]), FoundIn("b.png", (80, 60), []), FoundIn("c.png", SIZE, [BARE])]
    coco = opened(to_coco(pictures), tmp_path)
    assert [coco.imgs[number]["file_name"] for number in (1, 2, 3)] == ["a.png", "b.png", "c.png"]
    assert [coco.imgs[2][key] for key in ("width", "height")] == [80, 60]
    names = {number: category["name"] for number, category in coco.cats.items()}
    found = [(names[a["category_id"]], a["image_id"], a["bbox"]) for a in coco.loadAnns(coco.getAnnIds())]
    second = [10, 5, 28.5, 24.25]
    assert found == [("cat", 1, [2, 3, 18, 10]), ("dog", 1, second), ("cat", 3, second)]
    for number, finding in enumerate((CAT, DOG), 1):
        assert (coco.annToMask(coco.anns[number]) == finding.mask).all()
        assert coco.anns[number]["area"] == oracle.area(coco.annToRLE(coco.anns[number]))
    assert coco.anns[1]["score"] == 0.75
    assert not coco.anns[3].keys() & {"segmentation", "score"}
    assert coco.anns[3]["area"] == 28.5 * 24.25
    assert coco.getAnnIds(catIds=[1]) == [1, 3]
    assert coco.getAnnIds(iscrowd=False) == [1, 2, 3]


def test_no_number_is_zero() -> None:
    """pycocotools takes a match with annotation 0 for no match."""
    exported = to_coco([FoundIn("a.png", SIZE, [CAT, DOG])])
    for rows in exported.values():
        assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))


def test_categories_keep_the_order_that_was_passed() -> None:
    exported = to_coco([FoundIn("a.png", SIZE, [CAT])], labels=["dog", "cat"])
    assert exported["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert exported["annotations"][0]["category_id"] == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.png has 'cat', which is none of the labels passed"):
        to_coco([FoundIn("a.png", SIZE, [CAT])], labels=["dog"])
    with pytest.raises(InputError, match=r"A mask in a.png is .* \[30, 40\], but the picture is \[40, 30\]"):
        to_coco([FoundIn("a.png", (30, 40), [CAT])])
    with pytest.raises(InputError, match="The size of a picture is"):
        to_coco([FoundIn("a.png", (0, 40), [])])


# -- PNG ---------------------------------------------------------------------------------------------------------------


def saved(picture: Image.Image, folder: Path) -> np.ndarray:
    picture.save(folder / "mask.png")
    return np.asarray(Image.open(folder / "mask.png"))


def test_a_picture_per_finding_is_white_in_its_mask(tmp_path: Path) -> None:
    cat, bare, dog = mask_pictures([CAT, BARE, DOG], SIZE)
    assert bare is None
    for picture, finding in ((cat, CAT), (dog, DOG)):
        assert picture is not None
        assert picture.size == SIZE
        assert finding.mask is not None
        assert (saved(picture, tmp_path) == np.where(finding.mask, 255, 0)).all()


def test_one_picture_numbers_its_findings_and_the_first_lies_on_top(tmp_path: Path) -> None:
    numbers = saved(label_picture([DOG, BARE, CAT], SIZE), tmp_path)
    assert DOG.mask is not None
    assert CAT.mask is not None
    assert (DOG.mask & CAT.mask).any()
    assert (numbers == np.where(DOG.mask, 1, np.where(CAT.mask, 3, 0))).all()


def test_one_picture_numbers_more_findings_than_a_byte_has(tmp_path: Path) -> None:
    findings = [*[BARE] * 299, CAT]
    assert set(np.unique(saved(label_picture(findings, SIZE), tmp_path))) == {0, 300}
    with pytest.raises(InputError, match="65536 findings came"):
        label_picture([BARE] * 65_536, SIZE)


def test_masks_of_another_picture_are_refused() -> None:
    for function in (mask_pictures, label_picture):
        with pytest.raises(InputError, match=r"\[30, 40\], but the picture is \[40, 30\]"):
            function([CAT], SIZE[::-1])


# -- supervision -------------------------------------------------------------------------------------------------------


@pytest.fixture
def supervision() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for OpenCV
        return pytest.importorskip("supervision")


def test_supervision_gets_all_there_is(supervision: Any) -> None:
    found = to_supervision([CAT, DOG, BARE])
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[2, 3, 20, 13], [10, 5, 38.5, 29.25], [10, 5, 38.5, 29.25]]
    assert found.class_id.tolist() == [0, 1, 0]
    assert found["class_name"].tolist() == ["cat", "dog", "cat"]
    assert found.confidence.tolist() == [0.75, 1, 1]
    assert (found.mask == np.stack([CAT.mask, DOG.mask, np.zeros_like(CAT.mask)])).all()
    assert len(found[found.class_id == 0]) == 2


def test_supervision_gets_no_masks_or_scores_where_there_are_none(supervision: Any) -> None:
    found = to_supervision([BARE], labels=["dog", "cat"])
    assert found.mask is found.confidence is None
    assert found.class_id.tolist() == [1]
    assert len(to_supervision([])) == 0
    assert isinstance(to_supervision([]), supervision.Detections)


def test_supervision_gets_no_label_that_was_not_passed(supervision: Any) -> None:
    with pytest.raises(InputError, match="'cat' was found, which is none of the labels passed"):
        to_supervision([CAT], labels=["dog"])


def test_without_supervision_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="needs the package supervision; run 'pip install supervision'"):
        to_supervision([CAT])
