"""A folder of results: continued where it stopped, whatever was cut off, and never mixed with other settings."""

import json
from pathlib import Path

import pytest

from gemlens.errors import InputError
from gemlens.evals.results import ITEMS, SETTINGS, SUMMARY, Results, summary
from gemlens.evals.run import scored
from gemlens.evals.score import Item

ASKED = {"model": "tiny", "limit": None, "max_new_tokens": 8}
ROWS = [
    Item(0, "a", "detect cat", "<loc0001>", ("x", "y"), (64, 48), None, 3, -1.25, (-0.5,)),
    Item(1, "b", "answer en \u00fc?", 'say "\u4f60"\nand \ud800', ("z",), None, None, 2, -0.1),
    Item(2, "c", "", "", (), None, "The picture is gone."),
]


def filled(folder: Path) -> Results:
    results = Results(folder, ASKED)
    for item in ROWS:
        results.append(item)
    return results


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "out")
    assert Results(tmp_path / "new" / "out", ASKED).items == ROWS


def test_wherever_the_file_was_cut_off_whole_lines_are_kept_and_appended_to(tmp_path: Path) -> None:
    filled(tmp_path)
    data = (tmp_path / ITEMS).read_bytes()
    for end in range(0, len(data) + 1, 3):
        (tmp_path / ITEMS).write_bytes(data[:end])
        results = Results(tmp_path, ASKED)
        kept = data[:end].count(b"\n")
        assert results.items == ROWS[:kept]
        for item in ROWS[kept:]:
            results.append(item)
        assert (tmp_path / ITEMS).read_bytes() == data


def test_an_item_that_was_asked_twice_counts_once_as_the_last_time(tmp_path: Path) -> None:
    results = filled(tmp_path)
    results.append(Item(0, "a", answer="again"))
    assert [item.answer for item in Results(tmp_path, ASKED).items] == ["again", ROWS[1].answer, ""]


def test_other_settings_are_refused_and_the_results_stay(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(InputError, match=r"other settings \(limit None instead of 5\); name another folder"):
        Results(tmp_path, {**ASKED, "limit": 5})
    assert Results(tmp_path, ASKED).items == ROWS


def test_anew_throws_away_results_of_other_settings_only(tmp_path: Path) -> None:
    filled(tmp_path)
    assert Results(tmp_path, ASKED, anew=True).items == ROWS
    assert Results(tmp_path, {**ASKED, "limit": 5}, anew=True).items == []
    assert Results(tmp_path, {**ASKED, "limit": 5}).items == []


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    for anew in (False, True):
        with pytest.raises(InputError, match="holds files but no results"):
            Results(tmp_path, ASKED, anew=anew)
    with pytest.raises(InputError, match="is a file"):
        Results(tmp_path / "diary.txt", ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("line", ["{}", "[]", "null", "nonsense", '{"index": 0}', "\x00", "NaN"], ids=range(7))
def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    filled(tmp_path)
    rows = (tmp_path / ITEMS).read_text().splitlines()
    (tmp_path / ITEMS).write_text("\n".join([rows[0], line, rows[2], ""]))
    with pytest.raises(InputError, match=r"items.jsonl:2 is damaged"):
        Results(tmp_path, ASKED)


WRONG = [
    ("index", [-1, True, 1.5, "1", None]),
    ("answer", [None, 1, ["x"]]),
    ("references", [None, "x", [1], {}]),
    ("size", [[1], [1, 2, 3], [1, "2"], "12", 3]),
    ("locations", [None, ["x"], [None]]),
    ("likelihood", ["x", None, True]),
]


@pytest.mark.parametrize(("name", "values"), WRONG, ids=[name for name, _ in WRONG])
def test_a_value_of_another_type_is_damage(tmp_path: Path, name: str, values: list[object]) -> None:
    filled(tmp_path)
    row = json.loads((tmp_path / ITEMS).read_text().splitlines()[0])
    for value in values:
        (tmp_path / ITEMS).write_text(json.dumps({**row, name: value}) + "\n")
        with pytest.raises(InputError, match=rf"items.jsonl:1 is damaged \({name}"):
            Results(tmp_path, ASKED)


def test_damaged_settings_are_told(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(InputError, match=r"settings.json' is damaged"):
        Results(tmp_path, ASKED)


def test_in_the_end_items_have_scores_and_the_summary_says_all_but_them(tmp_path: Path) -> None:
    results = filled(tmp_path)
    report = scored(ROWS, metric="exact_match", seconds=1.5)
    results.finish(report, ASKED)
    assert Results(tmp_path, ASKED).items == list(report.items)
    assert [json.loads(line)["score"] for line in (tmp_path / ITEMS).read_text().splitlines()] == [0, 0, 0]
    assert json.loads((tmp_path / SUMMARY).read_text()) == {
        "values": {"exact_match": 0.0}, "items": 3, "errors": 1, "seconds": 1.5, "settings": ASKED,
        "kinds": {"detect": 1, "answer": 1, "other": 1},
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {SETTINGS, ITEMS, SUMMARY}


def test_infinite_values_are_null_since_json_has_none() -> None:
    report = scored([Item(0, "a", error="gone")], metric="perplexity")
    assert summary(report, {})["values"] == {"perplexity": None}
    assert report.items[0].score is None
