"""COCO files: boxes, polygons and run lengths become what PaliGemma learns; pycocotools says what they cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import coco, square, write_json
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference

from gemlens.data.coco import Coco, CocoSettings
from gemlens.data.picture_folder import PictureFolder
from gemlens.data.polygons import fill
from gemlens.data.sources import open_source
from gemlens.errors import InputError
from gemlens.tasks import findings

SIZE = (64, 48)


class Codec:
    """Keeps the masks that it was given to encode; its codes are all the same."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        self.seen += [each.numpy() for each in masks]
        return torch.full((len(masks), 16), 5)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(codes), 64, 64)


def boxes(text: str, size: tuple[int, int] = SIZE) -> list[tuple[str, list[int]]]:
    """(label, [left, top, width, height]) in whole pixels."""
    return [
        (each.label, [round(side) for side in (each.box.left, each.box.top, each.box.width, each.box.height)])
        for each in findings.parse(text, size)
    ]


class TestDetect:
    def test_all_boxes_stand_by_label_and_then_from_the_top(self, folder: Path) -> None:
        first, second = (
            open_source(write_json(folder / "instances.json", coco()))[0],
            open_source(folder / "instances.json")[1],
        )
        assert first.prefix == second.prefix == "detect cat ; dog ; emu"
        assert boxes(first.suffix) == [("cat", [0, 0, 64, 48]), ("dog", [2, 4, 8, 8]), ("dog", [30, 20, 10, 12])]
        assert second.suffix == ""
        assert (first.id, second.id) == ("instances.json:image 7", "instances.json:image 9")
        assert first.pictures == (folder / "a.png",)

    def test_present_labels_only(self, folder: Path) -> None:
        source = open_source(write_json(folder / "instances.json", coco()), labels="present")
        assert [each.prefix for each in [source[number] for number in range(len(source))]] == ["detect cat ; dog"]

    def test_crowds_are_left_out(self, folder: Path) -> None:
        content = coco()
        content["annotations"][1]["iscrowd"] = 1
        example = open_source(write_json(folder / "instances.json", content))[0]
        assert [label for label, _ in boxes(example.suffix)] == ["dog", "dog"]

    def test_the_name_of_roboflows_data_is_no_category(self, folder: Path) -> None:
        pets = [{"id": 0, "name": "pets", "supercategory": "none"}]
        named = [{"id": number, "name": name, "supercategory": "pets"} for number, name in ((2, "cat"), (3, "dog"))]
        write_json(folder / "_annotations.coco.json", coco(categories=pets + named))
        assert open_source(folder)[0].prefix == "detect cat ; dog"

    def test_boxes_over_the_edge_are_cut(self, folder: Path) -> None:
        content = coco()
        content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [-10, -10, 30, 500]}]
        assert boxes(open_source(write_json(folder / "c.json", content))[0].suffix) == [("cat", [0, 0, 20, 48])]

    @pytest.mark.parametrize(
        "box", [[10, 10, 0, 5], [70, 10, 5, 5], [1, 2, 3], "box", [1, 2, 3, None], [1, 2, 1e99, 3], None]
    )
    def test_an_impossible_box_is_a_sentence_that_names_the_annotation(self, folder: Path, box: Any) -> None:
        content = coco()
        content["annotations"][2]["bbox"] = box
        source = open_source(write_json(folder / "c.json", content))
        with pytest.raises(InputError, match=r"c\.json:annotation 4: "):
            source[0]
        assert source[1].suffix == ""


class TestCaptions:
    def test_each_caption_is_an_example(self, folder: Path) -> None:
        texts = [(1, 9, "a cow"), (2, 7, "a cat"), (3, 7, "two dogs")]
        notes = [{"id": number, "image_id": image, "caption": text} for number, image, text in texts]
        content = {"images": coco()["images"], "annotations": notes}
        source = open_source(f"{write_json(folder / 'captions.json', content)}?prompt=caption+en")
        found = [source[number] for number in range(len(source))]
        assert [(each.id, each.prefix, each.suffix) for each in found] == [
            ("captions.json:annotation 2", "caption en", "a cat"),
            ("captions.json:annotation 3", "caption en", "two dogs"),
            ("captions.json:annotation 1", "caption en", "a cow"),
        ]


class TestSegment:
    def source(self, folder: Path, codec: Codec, segmentation: Any, box: list[float]) -> Coco:
        content = coco(
            annotations=[{"id": 1, "image_id": 7, "category_id": 2, "bbox": box, "segmentation": segmentation}]
        )
        settings = CocoSettings(tasks=("segment",), codec=codec)
        return Coco(folder / "c.json", content, PictureFolder(folder), settings)

    def test_one_example_per_picture_and_category(self, folder: Path) -> None:
        write_json(folder / "instances.json", coco())
        source = open_source(folder / "instances.json", tasks=("segment", "detect"), codec=Codec())
        found = [source[number] for number in range(len(source))]
        assert [each.prefix for each in found] == [
            "segment cat", "segment dog", "detect cat ; dog ; emu", "detect cat ; dog ; emu",
        ]  # fmt: skip
        assert [each.codes for each in findings.parse(found[1].suffix, SIZE)] == [(5,) * 16] * 2
        assert found[0].id == "instances.json:image 7 segment cat"

    def test_what_is_encoded_is_the_mask_in_its_box(self, folder: Path) -> None:
        codec = Codec()
        self.source(folder, codec, [square(16, 12, 16, 24)], [16, 12, 32, 24])[0]
        (seen,) = codec.seen  # the left half of the box, shown in 64 x 64
        assert (seen[:, :30] == 1).all()
        assert (seen[:, 34:] == 0).all()

    @pytest.mark.parametrize("packed", [True, False])
    def test_run_lengths_are_those_of_the_reference(self, folder: Path, packed: bool) -> None:
        rng = np.random.default_rng(3)
        mask = rng.random((48, 64)) < 0.3
        runs: dict[str, Any] = dict(reference.encode(np.asfortranarray(mask)))  # type: ignore[arg-type]
        changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
        counts = [int(each) for each in np.diff(changes, prepend=0, append=mask.size)]
        segmentation = {"size": [48, 64], "counts": runs["counts"].decode() if packed else counts}
        codec = Codec()
        self.source(folder, codec, json.loads(json.dumps(segmentation)), [0, 0, 64, 48])[0]
        twin = Codec()
        findings.write([findings.Finding("cat", findings.Box(0, 0, 64, 48), mask)], SIZE, twin)
        assert np.array_equal(codec.seen[0], twin.seen[0])

    @pytest.mark.parametrize(
        "segmentation",
        [
            *(None, "runs", [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, "6"]], [[[1, 2], [3, 4]]]),
            {"counts": "1", "size": [1, 1]},
            *({"size": [48, 64], "counts": counts} for counts in ([5], "\u2603", None)),
        ],
    )
    def test_an_impossible_mask_is_a_sentence_that_names_the_annotation(self, folder: Path, segmentation: Any) -> None:
        with pytest.raises(InputError, match=r"c\.json:annotation 1: "):
            self.source(folder, Codec(), segmentation, [0, 0, 64, 48])[0]

    def test_it_takes_a_codec(self, folder: Path) -> None:
        write_json(folder / "instances.json", coco())
        with pytest.raises(InputError, match="takes a codec"):
            open_source(f"{folder / 'instances.json'}?tasks=segment")

    def test_a_codec_may_be_named(self, folder: Path) -> None:
        from gemlens.tasks.mask_codec import MaskCodec

        torch.manual_seed(0)
        MaskCodec().save(folder / "codec.npz")
        write_json(folder / "instances.json", coco())
        source = open_source(f"{folder / 'instances.json'}?tasks=segment&codec={folder / 'codec.npz'}")
        assert "<seg" in source[0].suffix


corner = st.floats(-20, 120, allow_nan=False, width=32)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
class TestPolygons:
    def against_reference(self, polygons: list[list[float]], size: tuple[int, int]) -> float:
        ours = fill([list(zip(each[::2], each[1::2], strict=True)) for each in polygons], size)
        merged = reference.merge(reference.frPyObjects(polygons, size[1], size[0]))
        theirs = reference.decode(merged).astype(bool)
        union = (ours | theirs).sum()
        return float((ours & theirs).sum() / union) if union else 1.0

    def test_they_are_nearly_those_of_the_reference(self) -> None:
        """The reference rounds corners to fifths of a pixel, we do not."""
        rng = np.random.default_rng(0)
        for _ in range(200):
            angles = np.sort(rng.uniform(0, 2 * np.pi, 24))
            reach = rng.uniform(60, 100, 24)
            middle = rng.uniform(100, 200, 2)
            corners = middle + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
            assert self.against_reference([corners.ravel().tolist()], (300, 280)) > 0.98

    def test_two_of_them_are_one_mask(self) -> None:
        polygons = [square(5.3, 6.1, 30, 20), square(20, 10, 40.3, 30)]
        assert self.against_reference(polygons, (64, 48)) > 0.99
        assert fill([[(0, 0), (2, 0), (2, 2), (0, 2)], [(1, 0), (3, 0), (3, 2), (1, 2)]], (4, 3)).sum() == 6

    @given(st.lists(st.tuples(corner, corner), min_size=3, max_size=12))
    def test_a_pixel_is_inside_where_a_ray_crosses_an_odd_number_of_sides(
        self, corners: list[tuple[float, float]]
    ) -> None:
        """The plain twin: every centre by itself."""
        mask = fill([corners], (20, 15))
        for row in range(15):
            for column in range(20):
                x, y, inside = column + 0.5, row + 0.5, False
                for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
                    if (ay <= y) != (by <= y) and ax + (y - ay) * ((bx - ax) / (by - ay)) <= x:
                        inside = not inside
                assert mask[row, column] == inside

    def test_whole_pixels_are_exact(self) -> None:
        mask = fill([[(2, 1), (7, 1), (7, 4), (2, 4)]], (10, 6))
        expected = np.zeros((6, 10), dtype=bool)
        expected[1:4, 2:7] = True
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"images": {}}, "'images' is an object of 0"),
        ({"images": [{"id": 1}, {"id": 1}]}, "entry 2 of 'images' has no 'id' of its own"),
        ({"annotations": [{"id": 1, "image_id": 99}]}, "annotation 1: 'image_id' is 99"),
        ({"categories": [{"id": 2}]}, "category 2: its name is None"),
        ({"categories": [{"id": 2, "name": "cat"}]}, "annotation 1: 'category_id' is 3"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 1e5, "height": 1e5}], "annotations": []}, "pixels"),
        (
            {"images": [{"id": 7, "file_name": "../a.png", "width": 9, "height": 9}], "annotations": []},
            "outside|not in",
        ),
        ({"categories": [{"id": 2, "name": "a ; b"}, {"id": 3, "name": "dog"}]}, "separates labels"),
    ],
    ids=["no-list", "twice", "image", "name", "category", "huge", "outside", "label"],
)
def test_lists_that_do_not_fit_are_a_sentence(folder: Path, fields: dict[str, Any], sentence: str) -> None:
    path = write_json(folder / "c.json", coco(**fields))
    with pytest.raises(InputError, match=rf"c\.json.*{sentence}"):
        open_source(path)[0]


@pytest.mark.parametrize(("name", "value"), [("tasks", ("count",)), ("labels", "some")])
def test_unknown_choices_are_refused(folder: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"there are|must be"):
        open_source(write_json(folder / "c.json", coco()), **{name: value})
