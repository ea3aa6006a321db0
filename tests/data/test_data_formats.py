"""Every format gives the examples that were written."""

import csv
import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_files import BOX, picture, row, write_json, write_jsonl
from PIL import Image

from gemlens.data.example import Example, Source
from gemlens.data.picture_folder import open_pictures
from gemlens.data.sources import open_source
from gemlens.errors import InputError, PictureError

CHAT = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A cow."}]
SHOWN = (
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cow."},
)


def told(source: Source) -> list[tuple[str, str, list[str]]]:
    """(prompt, answer, names of pictures) of every example."""
    return [(each.prefix, each.suffix, [Path(str(one)).name for one in each.pictures]) for each in all_of(source)]


def all_of(source: Source) -> list[Example]:
    return [source[number] for number in range(len(source))]


class TestJsonl:
    def test_rows_come_back_with_their_places(self, folder: Path) -> None:
        path = write_jsonl(folder / "train.jsonl", [row(1), row(2, id="second"), row(3, image=["cow.png", "a.png"])])
        found = all_of(open_source(path))
        assert [each.id for each in found] == ["train.jsonl:1", "train.jsonl:2 (second)", "train.jsonl:3"]
        assert told(open_source(path)) == [
            ("detect cow1", f"{BOX} cow1", ["cow.png"]),
            ("detect cow2", f"{BOX} cow2", ["cow.png"]),
            ("detect cow3", f"{BOX} cow3", ["cow.png", "a.png"]),
        ]
        assert found[0].pictures == (folder / "cow.png",)

    def test_blank_lines_are_no_rows_but_count_as_lines(self, folder: Path) -> None:
        path = folder / "train.jsonl"
        path.write_bytes(b"\r\n" + json.dumps(row(1)).encode() + b"\r\n \t\n" + json.dumps(row(2)).encode())
        assert [each.id for each in all_of(open_source(path))] == ["train.jsonl:2", "train.jsonl:4"]

    def test_a_byte_order_mark_is_no_part_of_the_first_row(self, folder: Path) -> None:
        path = folder / "train.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(1)).encode())
        assert told(open_source(path))[0][0] == "detect cow1"

    def test_pictures_are_not_opened_when_a_row_is_read(self, folder: Path) -> None:
        (folder / "broken.png").write_bytes(b"no picture")
        example = open_source(write_jsonl(folder / "train.jsonl", [row(image="broken.png")]))[0]
        with pytest.raises(PictureError, match=r"^train\.jsonl:1: The picture .*broken\.png"):
            open_pictures(example)

    def test_references_are_the_answers(self, folder: Path) -> None:
        rows = [row(references=["yes", "yeah"]), row(suffix="no")]
        first, second = all_of(open_source(write_jsonl(folder / "train.jsonl", rows)))
        assert first.answers == ("yes", "yeah")
        assert second.answers == ("no",)

    def test_a_picture_may_be_a_data_url(self, folder: Path) -> None:
        url = f"data:image/png;base64,{b64encode((folder / 'cow.png').read_bytes()).decode()}"
        (given,) = open_pictures(open_source(write_jsonl(folder / "train.jsonl", [row(image=url)]))[0])
        with Image.open(folder / "cow.png") as expected:
            assert given.tobytes() == expected.tobytes()

    def test_pictures_may_begin_in_another_folder(self, folder: Path) -> None:
        (folder / "texts").mkdir()
        path = write_jsonl(folder / "texts" / "train.jsonl", [row()])
        assert open_source(path, pictures=folder)[0].pictures == (folder / "cow.png",)
        assert open_source(f"{path}?pictures={folder}")[0].pictures == (folder / "cow.png",)

    def test_a_file_that_changed_is_refused(self, folder: Path) -> None:
        path = write_jsonl(folder / "train.jsonl", [row(1), row(2)])
        source = open_source(path)
        write_jsonl(path, [row(10), row(2)])
        with pytest.raises(InputError, match="has changed since it was opened"):
            source[1]

    def test_it_ends_for_loops(self, folder: Path) -> None:
        source: Any = open_source(write_jsonl(folder / "train.jsonl", [row(1), row(2)]))
        assert len(list(source)) == 2


class TestChats:
    @pytest.mark.parametrize(
        "fields",
        [
            {"messages": CHAT, "images": ["cow.png"]},
            {"messages": CHAT, "image": "cow.png"},
            {"messages": [{"role": "user", "content": "<image>What is this?"}, CHAT[1]], "images": ["cow.png"]},
            {"messages": [{"role": "user", "content": "<image>\nWhat is this?"}, CHAT[1]], "images": ["cow.png"]},
            {"messages": [SHOWN[0], CHAT[1]], "images": ["cow.png"]},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "path": "cow.png"}, {"type": "text", "text": "What is this?"}],
                    },
                    {"role": "model", "content": "A cow."},
                ]
            },
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "cow.png"}},
                            {"type": "text", "text": "What is this?"},
                        ],
                    },
                    {"role": "assistant", "content": "A cow."},
                ]
            },
            {
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is this?"},
                    {"from": "gpt", "value": "A cow."},
                ],
                "image": "cow.png",
            },
        ],
        ids=["trl", "one", "marked", "marked-line", "places", "paths", "openai", "sharegpt"],
    )
    def test_all_ways_to_write_a_chat_say_the_same(self, folder: Path, fields: dict[str, Any]) -> None:
        example = open_source(write_jsonl(folder / "chats.jsonl", [fields]))[0]
        assert example.messages == SHOWN
        assert example.pictures == (folder / "cow.png",)
        assert (example.prefix, example.suffix) == ("", "")

    def test_pictures_keep_the_order_of_the_text(self, folder: Path) -> None:
        own = {"type": "image", "path": "b.png"}
        messages = [
            {"role": "user", "content": "<image> and"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [own, {"type": "text", "text": "and"}, {"type": "image"}]},
            {"role": "assistant", "content": "no"},
        ]
        fields = {"messages": messages, "images": ["cow.png", "a.png"]}
        example = open_source(write_jsonl(folder / "chats.jsonl", [fields]))[0]
        assert [Path(str(each)).name for each in example.pictures] == ["cow.png", "b.png", "a.png"]
        kinds = [[part["type"] for part in message["content"]] for message in example.messages[::2]]
        assert kinds == [["image", "text"], ["image", "text", "image"]]

    def test_the_system_may_stand_beside_the_chat(self, folder: Path) -> None:
        example = open_source(write_jsonl(folder / "chats.jsonl", [{"messages": CHAT, "system": "Be brief."}]))[0]
        assert example.messages == ({"role": "system", "content": "Be brief."}, *CHAT)

    def test_a_chat_is_one_that_processors_read(self, folder: Path) -> None:
        from gemlens.processing.chat.messages import read_conversation

        example = open_source(write_jsonl(folder / "chats.jsonl", [{"messages": CHAT, "images": ["cow.png"]}]))[0]
        assert [turn.role for turn in read_conversation(list(example.messages))] == ["user", "assistant"]

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"messages": []}, "the chat is a list of 0"),
            ({"messages": CHAT[:1]}, "no message of the assistant"),
            (
                {"messages": [{"role": "user", "content": "<image><image>"}, CHAT[1]], "image": "a.png"},
                "2 places .* names 1",
            ),
            ({"messages": [{"role": "user", "content": "<image>"}, CHAT[1]]}, "1 places .* names 0"),
            ({"messages": [{"role": "bot", "content": "Hi"}]}, "message 1 has the role 'bot'"),
            ({"messages": [*CHAT, {"role": "user", "content": 5}]}, "the content of message 3 is 5"),
            ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "message 2 has 'weight', which is not read"),
            ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "message 1 has a part"),
            ({"messages": [*CHAT, {"role": "system", "content": "late"}]}, "stands first"),
        ],
        ids=["empty", "unanswered", "too-many", "too-few", "role", "number", "weight", "audio", "system"],
    )
    def test_a_damaged_chat_is_a_sentence_with_its_place(
        self, folder: Path, fields: dict[str, Any], sentence: str
    ) -> None:
        source = open_source(write_jsonl(folder / "chats.jsonl", [fields]))
        with pytest.raises(InputError, match=rf"chats\.jsonl:1: .*{sentence}"):
            source[0]


class TestTables:
    def test_a_json_list_is_read_like_lines(self, folder: Path) -> None:
        rows = [row(1), row(2)]
        listed = open_source(write_json(folder / "train.json", rows))
        assert told(listed) == told(open_source(write_jsonl(folder / "train.jsonl", rows)))
        assert listed[1].id == "train.json:row 2"

    def test_a_list_on_one_long_line_is_recognised(self, folder: Path) -> None:
        (folder / "train.json").write_text(json.dumps([row(1, note="x" * 2_000_000), row(2)]))
        assert len(open_source(folder / "train.json")) == 2

    def test_lines_in_a_json_file_are_recognised(self, folder: Path) -> None:
        assert len(open_source(write_jsonl(folder / "train.json", [row(1), row(2)]))) == 2

    def test_csv_with_quotes_and_line_breaks(self, folder: Path) -> None:
        rows = [["cow.png", 'a "brown" cow,\nlying'], ["a.png", "\u00fcber"]]
        with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *rows])
        for place in (folder, folder / "captions.csv"):
            source = open_source(place)
            assert told(source) == [("caption en", text, [name]) for name, text in rows]
        assert source[1].id == "captions.csv:4"
        assert told(open_source(f"{folder}?prompt=caption+de"))[0][0] == "caption de"

    def test_csv_may_have_prompts(self, folder: Path) -> None:
        (folder / "rows.csv").write_text("file_name,prefix,suffix,id\ncow.png,ocr,MOO,7\na.png,ocr,,\n")
        source = open_source(folder / "rows.csv")
        assert told(source) == [("ocr", "MOO", ["cow.png"]), ("ocr", "", ["a.png"])]
        assert [each.id for each in all_of(source)] == ["rows.csv:2 (7)", "rows.csv:3"]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("\n\n", r"rows\.csv: the file is empty; its first row names the columns"),
            ("image,caption\ncow.png\n", r"rows\.csv:2: the row has 1 values, but 2 columns"),
            ('image,caption\ncow.png,"a\n', r"rows\.csv:\d: this is no CSV"),
            ("image,caption\ncow.png,\udcff\n", r"rows\.csv: this is no UTF-8"),
        ],
        ids=["empty", "short", "quote", "bytes"],
    )
    def test_damaged_csv_is_a_sentence(self, folder: Path, text: str, sentence: str) -> None:
        (folder / "rows.csv").write_text(text, "utf-8", "surrogateescape")
        with pytest.raises(InputError, match=sentence):
            open_source(folder / "rows.csv")

    def test_a_folder_with_metadata_as_datasets_writes_it(self, folder: Path) -> None:
        picture(folder / "more" / "cow.png")
        rows = [{"file_name": "cow.png", "text": "a cow"}, {"file_name": "more/cow.png", "text": "two"}]
        write_jsonl(folder / "metadata.jsonl", rows)
        assert told(open_source(folder)) == [("caption en", "a cow", ["cow.png"]), ("caption en", "two", ["cow.png"])]

    def test_texts_beside_pictures(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.png", "c.jpg"):
            picture(tmp_path / name)
            (tmp_path / name).with_suffix(".txt").write_text(f" {name} says hi\n")
        source = open_source(tmp_path)
        assert told(source) == [("caption en", f"{name} says hi", [name]) for name in ("a.png", "b.PNG", "c.jpg")]
        assert source[0].id == "a.txt"
        (tmp_path / "c.txt").unlink()
        with pytest.raises(InputError, match=r"c\.jpg' has no text beside it; write 'c\.txt'"):
            open_source(tmp_path)


class TestParquet:
    def written(self, path: Path, rows: list[dict[str, Any]], group: int = 2, schema: Any = None) -> Path:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, row_group_size=group)
        return path

    def test_pictures_as_bytes_names_and_structs(self, folder: Path) -> None:
        data = (folder / "cow.png").read_bytes()
        texts = {"prefix": "ocr", "suffix": "MOO"}
        for name, value in {
            "bytes": data,
            "name": "cow.png",
            "struct": {"bytes": data, "path": "elsewhere.png"},
            "path": {"bytes": None, "path": "cow.png"},
            "list": [{"bytes": data, "path": None}],
        }.items():
            source = open_source(self.written(folder / f"{name}.parquet", [{"image": value, **texts}]))
            (given,) = open_pictures(source[0])
            assert told(source)[0][:2] == ("ocr", "MOO")
            with Image.open(io.BytesIO(data)) as expected:
                assert given.tobytes() == expected.tobytes(), name

    def test_any_order_over_groups_and_files_gives_the_rows(self, folder: Path) -> None:
        rows = [{"image": "cow.png", "prefix": f"p{number}", "suffix": f"s{number}"} for number in range(47)]
        (folder / "rows").mkdir()
        for number, part in enumerate((rows[:21], rows[21:22], rows[22:])):
            self.written(folder / "rows" / f"train-{number:05}-of-00003.parquet", part)
        source = open_source(folder / "rows", pictures=folder)
        assert len(source) == 47
        for place in [46, 0, 21, 22, 20, *range(47)]:
            assert (source[place].prefix, source[place].suffix) == (f"p{place}", f"s{place}")
        assert source[22].id == "train-00002-of-00003.parquet:row 1"
        assert source[24].id == "train-00002-of-00003.parquet:row 3"
        with pytest.raises(IndexError):
            source[47]

    def test_chats_with_columns_that_some_rows_lack(self, folder: Path) -> None:
        parts = [[{"type": "image"}, {"type": "text", "text": "What is this?"}], [{"type": "text", "text": "A cow."}]]
        messages = [{"role": role, "content": each} for role, each in zip(("user", "assistant"), parts, strict=True)]
        rows = [
            {"messages": messages, "prefix": None, "suffix": None, "images": ["cow.png"]},
            {"messages": None, "prefix": "ocr", "suffix": "MOO", "images": ["a.png"]},
        ]
        first, second = all_of(open_source(self.written(folder / "chats.parquet", rows)))
        assert first.messages == SHOWN
        assert (second.prefix, second.suffix) == ("ocr", "MOO")

    def test_it_goes_to_another_process(self, folder: Path) -> None:
        import pickle

        source = open_source(self.written(folder / "rows.parquet", [row(1), row(2)]))
        source[0]
        assert told(pickle.loads(pickle.dumps(source))) == told(source)

    def test_damage_is_a_sentence(self, folder: Path) -> None:
        path = self.written(folder / "rows.parquet", [row(number) for number in range(50)])
        whole = path.read_bytes()
        for data in (b"", b"PAR1", whole[:-9], b"x" * 100, whole[:4] + b"\xff" * 200 + whole[204:]):
            path.write_bytes(data)
            with pytest.raises(InputError, match=r"rows\.parquet' is no Parquet file, or damaged"):
                all_of(open_source(path))

    def test_a_text_that_is_none_is_a_sentence_with_its_row(self, folder: Path) -> None:
        texts = pyarrow.array([b"ocr", b"\xff\xfe"]).view(pyarrow.string())
        table = pyarrow.table({"prefix": texts, "suffix": pyarrow.array(["A", "B"])})
        pyarrow.parquet.write_table(table, folder / "rows.parquet")
        source = open_source(folder / "rows.parquet")
        assert source[0].suffix == "A"
        with pytest.raises(InputError, match=r"rows\.parquet:row 2: the row cannot be read"):
            source[1]

    def test_without_pyarrow_it_says_what_to_install(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        path = self.written(folder / "rows.parquet", [row()])
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(InputError, match=r"pip install 'gemlens\[parquet\]'"):
            open_source(path)
