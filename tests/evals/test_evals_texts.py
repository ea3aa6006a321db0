"""Metrics of texts, each against its definition written down once more."""

import math
import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemlens.errors import InputError
from gemlens.evals.anls import anls, edit_distance
from gemlens.evals.counting import counting_accuracy, object_f1
from gemlens.evals.exact_match import exact_match
from gemlens.evals.perplexity import perplexity
from gemlens.evals.relaxed import relaxed_accuracy
from gemlens.evals.score import Item, Score, of_texts
from gemlens.evals.vqa import normalise, vqa_accuracy

TEXT_METRICS = [exact_match, vqa_accuracy, anls, relaxed_accuracy, counting_accuracy]
short = st.text(alphabet="ab c", max_size=7)


@pytest.mark.parametrize("metric", TEXT_METRICS, ids=lambda metric: metric.__name__)
class TestAll:
    def test_the_value_is_the_mean_of_the_items(self, metric) -> None:
        score = metric(["1 cat", "2", "none"], [["1 cat"], ["3", "5"], ["x"]])
        assert list(score.values.values()) == [sum(score.items) / 3]
        assert score.items[0] == 1
        assert score.items[1] == 0

    def test_an_answer_without_references_is_wrong(self, metric) -> None:
        assert metric(["1"], [[]]).items == (0,)

    def test_answers_and_references_of_different_numbers_are_refused(self, metric) -> None:
        with pytest.raises(InputError, match="1 answers came with references for 2"):
            metric(["a"], [["a"], ["b"]])

    def test_no_answers_are_refused(self, metric) -> None:
        with pytest.raises(InputError, match="There are no answers"):
            metric([], [])

    def test_an_item_with_an_error_is_wrong_whatever_its_answer(self, metric) -> None:
        items = [Item(0, "a", answer="1", references=("1",)), Item(1, "b", answer="1", references=("1",), error="bad")]
        assert of_texts(metric)(items).items == (1, 0)
        assert list(of_texts(metric)(items).values.values()) == [0.5]


def test_exact_match_forgives_white_space_and_nothing_else() -> None:
    answers = ["a  cat\n", "A cat", "a cat.", ""]
    assert exact_match(answers, [["dog", "a cat"]] * 4).items == (1, 0, 0, 0)
    assert exact_match([""], [[" "]]).items == (1,)


# -- ANLS --------------------------------------------------------------------------------------------------------------


def slow_distance(first: str, second: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replaced)

    return distance(len(first), len(second))


@given(short, short)
def test_the_edit_distance_is_that_of_the_recursion(first: str, second: str) -> None:
    assert edit_distance(first, second) == slow_distance(first, second)


@given(short, st.lists(short, min_size=1, max_size=3))
def test_anls_is_one_minus_the_least_distance_by_length_from_a_half_on(answer: str, accepted: list[str]) -> None:
    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", text).strip()

    lengths = [max(len(plain(answer)), len(plain(each)), 1) for each in accepted]
    distances = [slow_distance(plain(answer), plain(each)) for each in accepted]
    best = max(1 - distance / length for distance, length in zip(distances, lengths, strict=True))
    assert anls([answer], [accepted]).items == (best if best >= 0.5 else 0,)


def test_anls_at_the_threshold_counts_and_below_it_does_not() -> None:
    assert anls(["abXX", "aXXX", "ABCD"], [["abcd"]] * 3).items == (0.5, 0, 1)


# -- relaxed accuracy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", True), ("95", "100", True), ("105.01", "100", False), ("94.9", "100", False),
        ("-104", "-100", True), ("100", "-100", False), ("25%", "0.25", True), ("26%", "25%", True),
        ("0.25", "25", False), ("0", "0", True), ("0.001", "0", False), ("Blue", "blue", True), ("blue ", "red", False),
        ("2019", "2019", True), ("nan", "nan", True), ("inf", "100", False), ("12 apples", "12", False),
        ("", "0", False),
    ],
)  # fmt: skip
def test_relaxed_accuracy_lets_numbers_be_off_by_a_twentieth(answer: str, reference: str, right: bool) -> None:
    assert relaxed_accuracy([answer], [[reference]]).items == (float(right),)


# -- VQA ---------------------------------------------------------------------------------------------------------------


def leave_one_out(answer: str, people: list[str]) -> float:
    subsets = [people[:left] + people[left + 1 :] for left in range(len(people))]
    return sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)


@given(st.lists(st.sampled_from(["cat", "dog", "cow"]), min_size=10, max_size=10), st.sampled_from(["cat", "dog", "x"]))
def test_vqa_accuracy_is_the_mean_over_the_ten_subsets_of_nine(people: list[str], answer: str) -> None:
    assert vqa_accuracy([answer], [people]).items[0] == pytest.approx(leave_one_out(answer, people))


def test_vqa_accuracy_by_how_many_agree() -> None:
    """The well-known steps: 0, 0.3, 0.6, 0.9, 1."""
    crowds = [["yes"] * agreeing + ["no"] * (10 - agreeing) for agreeing in range(6)]
    scores = vqa_accuracy(["yes"] * 6, crowds).items
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two Dogs", "2 dogs"), ("a an the", ""), ("None", "0"), ("ten", "10"), ("eleven", "eleven"),
        ("dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"), ("wed", "wed"), ("shell", "shell"), ("yall'd've", "y'all'd've"),
        ("1,000", "1000"), ("left, right", "left right"), ("left,right", "left right"), ("a-b", "b"),
        ("red/blue", "red blue"),
        ("St. Louis", "st louis"), ("3.5", "3.5"), ("U.S.", "us"), (".5", ".5"), ("what?!", "what"),
        ("tea; milk", "tea milk"),
    ],
)  # fmt: skip
def test_normalisation_of_answers(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_where_all_people_agree_texts_are_compared_as_they_are() -> None:
    """So does the official code."""
    assert vqa_accuracy(["Yes"], [["yes"] * 10]).items == (0,)
    assert vqa_accuracy(["Yes"], [["yes"] * 9 + ["no"]]).items == (1,)


def test_one_reference_makes_an_answer_right_or_wrong() -> None:
    assert vqa_accuracy(["The cat.", "dog"], [["cat"], ["cat"]]).items == (1, 0)


# -- counting and captions ---------------------------------------------------------------------------------------------


def test_numbers_are_read_from_digits_and_words() -> None:
    answers = ["three", "3 cats", "there are 3.", "a cat", "none", "many", "13", "one or two"]
    right = ["3", "three", "3", "1", "0", "3", "3", "2"]
    assert counting_accuracy(answers, [[each] for each in right]).items == (1, 1, 1, 1, 1, 0, 0, 0)


def test_object_f1_counts_every_thing_once() -> None:
    """Said: 2 cats, 1 dog, 1 cow. There: 3 cats, 1 dog. Two cats and the dog are found; one is made up, one missed."""
    said, true = Counter(cat=2, dog=1, cow=1), Counter(cat=3, dog=1)
    score = object_f1([said], [true])
    precision, recall = 3 / 4, 3 / 4
    assert score.values == {
        "object_f1": pytest.approx(2 * precision * recall / (precision + recall)),
        "object_precision": precision,
        "object_recall": recall,
    }


def test_object_f1_of_many_sums_things_and_not_captions() -> None:
    said, true = [Counter(cat=10), Counter(dog=1)], [Counter(cat=10), Counter(cow=1)]
    score = object_f1(said, true)
    assert score.values["object_f1"] == 10 / 11
    assert score.items == (1, 0)
    assert object_f1([Counter()], [Counter()]).items == (1,)


# -- perplexity --------------------------------------------------------------------------------------------------------


def test_perplexity_of_equal_chances_is_their_number() -> None:
    score = perplexity([5 * math.log(1 / 8), 2 * math.log(1 / 8)], [5, 2])
    assert score.values["perplexity"] == pytest.approx(8)
    assert score.items == pytest.approx([math.log(1 / 8)] * 2)


def test_perplexity_weighs_tokens_and_not_answers() -> None:
    assert perplexity([-9.0, 0.0], [1, 8]).values["perplexity"] == pytest.approx(math.e)


def test_an_impossible_answer_has_infinite_perplexity() -> None:
    assert perplexity([-math.inf], [3]).values["perplexity"] == math.inf
    with pytest.raises(InputError, match="no answers with tokens"):
        perplexity([0.0], [0])


def test_a_score_keeps_what_counts_first() -> None:
    assert Score.mean("x", [0.0, 1.0]) == Score({"x": 0.5}, (0.0, 1.0))
