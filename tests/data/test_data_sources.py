"""A path or a name leads to the right format, or to a sentence; pictures stay in their folder; sources mix."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from data_files import coco, picture, row, write_json, write_jsonl

from gemlens.data.example import Example, Examples, Source
from gemlens.data.mixture import Mixture
from gemlens.data.sources import open_source
from gemlens.errors import InputError, PictureError


class TestNames:
    def test_every_source_is_one(self, folder: Path) -> None:
        for source in (
            open_source(write_jsonl(folder / "a.jsonl", [row()])),
            open_source(write_json(folder / "a.json", [row()])),
            open_source(write_json(folder / "b.json", coco())),
            open_source(folder / "a.jsonl", folder / "a.json"),
        ):
            assert isinstance(source, Source)

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("nothing.jsonl", "nothing.jsonl' does not exist"),
            ("x" * 5000, "does not exist"),
            ("a\0b", "does not exist"),
            ("cow.png", "has the ending '.png', which is no data that is known; expected JSONL"),
            ("object.json", "is an object of 1, but JSON data is a list of rows, or COCO"),
            ("broken.json", r"broken.json: this is no JSON \(.* at line 2, column 1\)"),
            (".", "holds 3 .png, 2 .json, 2 .jsonl|holds one.jsonl and two.jsonl; pass the path of one"),
            ("one.jsonl?colour=red", "'colour' in .* is unknown; there are format, pictures"),
            ("one.jsonl?prompt", "does not read as NAME\\?choice=value"),
            ("one.jsonl?prompt=a&prompt=b", "'prompt' in .* is said twice"),
            ("one.jsonl?allow_outside=yes", "'allow_outside' in .* is 'yes', which it cannot be"),
            ("one.jsonl?labels=all", "'labels' means nothing for rows; there are pictures, allow_outside, prompt"),
            ("one.jsonl?format=yolo", "There is no format 'yolo'; there are jsonl"),
            ("object.json?format=coco", "JSON data is a list of rows, or COCO"),
            ("one.jsonl?format=parquet", "is no Parquet file"),
            ("scenes:train?labels=all", "'labels' means nothing for scenes"),
        ],
    )
    def test_what_is_not_recognised_is_a_sentence(self, folder: Path, name: str, sentence: str) -> None:
        write_jsonl(folder / "one.jsonl", [row()])
        write_jsonl(folder / "two.jsonl", [row()])
        write_json(folder / "object.json", {"rows": []})
        (folder / "broken.json").write_text("[\n")
        place = name if name.startswith("scenes:") else f"{folder}/{name}"
        with pytest.raises(InputError, match=sentence):
            open_source(place)

    def test_nothing_named_is_a_sentence(self) -> None:
        with pytest.raises(InputError, match="No data was named"):
            open_source()

    def test_a_folder_says_what_it_holds(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"holds 3 \.png, which is no data that is known"):
            open_source(folder)

    def test_a_question_mark_may_be_part_of_a_name(self, folder: Path) -> None:
        assert len(open_source(write_jsonl(folder / "what?.jsonl", [row()]))) == 1

    def test_a_pipe_is_not_waited_for(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe.jsonl")
        with pytest.raises(InputError, match="is no file but a folder, a pipe or a device"):
            open_source(folder / "pipe.jsonl")

    def test_scenes_get_what_the_name_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Scenes:
            def __init__(self, *arguments: Any, **named: Any) -> None:
                self.asked = arguments, named

        module = ModuleType("gemlens.scenes.source")
        module.__dict__["Scenes"] = Scenes
        monkeypatch.setitem(sys.modules, "gemlens.scenes.source", module)
        source: Any = open_source("scenes:train?seed=7&tasks=caption,detect&count=20")
        assert source.asked == (("train",), {"seed": 7, "tasks": ("caption", "detect"), "count": 20})
        coded: Any = open_source("scenes:train?tasks=segment", codec="codec.npz")
        assert coded.asked == (("train",), {"tasks": ("segment",), "codec": "codec.npz"})
        plain: Any = open_source("scenes:test")
        assert plain.asked == (("test",), {})

    def test_scenes_are_drawn(self) -> None:
        source = open_source("scenes:test?seed=5&count=3&tasks=detect")
        assert len(source) == 3
        assert source[1].prefix.startswith("detect ")
        assert source[1] == source[1]


class TestOutside:
    """A data file must not name pictures of the rest of the machine."""

    def names(self, tmp_path: Path) -> tuple[Path, list[str]]:
        inside = tmp_path / "data"
        picture(tmp_path / "secret.png")
        picture(tmp_path / "data-2" / "secret.png")
        picture(inside / "cow.png")
        (inside / "link.png").symlink_to(tmp_path / "secret.png")
        (inside / "linked").symlink_to(tmp_path)
        absolute = str(tmp_path / "secret.png")
        return inside, ["../secret.png", "../data-2/secret.png", absolute, "link.png", "linked/secret.png"]

    def test_it_takes_a_flag(self, tmp_path: Path) -> None:
        inside, names = self.names(tmp_path)
        path = write_jsonl(inside / "train.jsonl", [row(image=name) for name in names])
        source, trusting = open_source(path), open_source(f"{path}?allow_outside=true")
        for number, name in enumerate(names):
            with pytest.raises(
                PictureError, match=rf"train\.jsonl:{number + 1}: the picture .* is outside .*allow-outside"
            ):
                source[number]
            assert trusting[number].pictures == (inside / name,)

    def test_names_that_stay_inside_are_fine(self, tmp_path: Path) -> None:
        inside, _ = self.names(tmp_path)
        (inside / "more").mkdir()
        (inside / "alias.png").symlink_to("cow.png")
        names = ["cow.png", "./cow.png", "more/../cow.png", str(inside / "cow.png"), "alias.png"]
        source = open_source(write_jsonl(inside / "train.jsonl", [row(image=name) for name in names]))
        assert all(len(source[number].pictures) == 1 for number in range(len(names)))

    @pytest.mark.parametrize("name", ["gone.png", "", ".", "cow.png/x", "a\0b", "x" * 5000, "loop.png", "pipe.png"])
    def test_a_missing_picture_is_a_sentence_with_its_place(self, folder: Path, name: str) -> None:
        (folder / "loop.png").symlink_to("loop.png")
        os.mkfifo(folder / "pipe.png")
        source = open_source(write_jsonl(folder / "train.jsonl", [row(image=name)]))
        with pytest.raises(
            PictureError, match=r"train\.jsonl:1: the picture .{1,90} (is not in|is no file|cannot be read)"
        ):
            source[0]

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9/cow.png", "HTTPS://example.org/cow.png", "file:///etc/passwd"])
    def test_urls_are_not_fetched(self, folder: Path, url: str) -> None:
        source = open_source(write_jsonl(folder / "train.jsonl", [row(image=url)]))
        with pytest.raises(InputError, match=r"train\.jsonl:1: .*(is a URL|is not in)"):
            source[0]


class TestMixture:
    def sources(self, *lengths: int) -> list[Examples]:
        return [
            Examples([Example(f"{number}:{place}") for place in range(length)]) for number, length in enumerate(lengths)
        ]

    def test_without_weights_everything_comes_once(self) -> None:
        mixture = Mixture(self.sources(3, 10, 1))
        assert len(mixture) == 14
        assert len({mixture[number].id for number in range(14)}) == 14

    def test_weights_are_shares_and_every_source_is_seen_whole(self) -> None:
        mixture = Mixture(self.sources(10, 30), [3, 1])
        places = [mixture.place(number) for number in range(len(mixture))]
        assert len(mixture) == 120
        assert Counter(source for source, _ in places) == {0: 90, 1: 30}
        assert {place for source, place in places if source == 1} == set(range(30))
        assert set(Counter(place for source, place in places if source == 0).values()) == {9}

    def test_it_is_evenly_spread(self) -> None:
        mixture = Mixture(self.sources(7, 50, 13), [1, 5, 2], count=160)
        for start in range(0, 160, 8):
            found = Counter(mixture.place(number)[0] for number in range(start, start + 8))
            assert found == {0: 1, 1: 5, 2: 2}

    def test_what_comes_at_a_number_depends_on_nothing_else(self) -> None:
        first, second = Mixture(self.sources(5, 9), [1, 2]), Mixture(self.sources(5, 9), [1, 2])
        assert [first[number].id for number in (7, 3, 11)] == [second[number].id for number in (7, 3, 11)]

    def test_less_than_all_is_spread_over_all(self) -> None:
        mixture = Mixture(self.sources(1000), count=10)
        assert [mixture[number].id for number in range(10)] == [f"0:{place}" for place in range(0, 1000, 100)]

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1001])
    def test_any_count_is_kept(self, count: int) -> None:
        assert len(Mixture(self.sources(4, 5, 6), [0.1, 0.2, 0.7], count)) == count

    def test_names_have_weights(self, folder: Path) -> None:
        first = write_jsonl(folder / "first.jsonl", [row(number) for number in range(4)])
        second = write_jsonl(folder / "second.jsonl", [row(number) for number in range(8)])
        mixture: Any = open_source(f"{first}?weight=3", second)
        assert Counter(mixture[number].id.split(":")[0] for number in range(len(mixture))) == {
            "first.jsonl": 24,
            "second.jsonl": 8,
        }

    @pytest.mark.parametrize(
        ("lengths", "weights", "count"),
        [((), None, None), ((3, 0), None, None), ((3,), [0], None), ((3,), [1, 2], None), ((3,), [float("nan")], None),
         ((3,), [-1], None), ((3,), None, 0)],
    )  # fmt: skip
    def test_what_cannot_be_mixed_is_refused(self, lengths: tuple[int, ...], weights: Any, count: Any) -> None:
        with pytest.raises(InputError, match="mixture"):
            Mixture(self.sources(*lengths), weights, count)


MEASURE = """
import resource, sys
from pathlib import Path
from gemlens.data.sources import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_source(sys.argv[1])
source[len(source) // 2], source[len(source) - 1]
print(len(source), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_takes_twelve_bytes_of_memory_per_line(tmp_path: Path) -> None:
    """100 MB in 50,000 lines: held as objects it would take more than the file."""
    line = '{"prefix": "ocr", "suffix": "' + "x" * 2000 + '"}\n'
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for _ in range(50):
            file.write(line * 1000)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], check=True, capture_output=True, text=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 50_000
    assert kilobytes < 6_000
