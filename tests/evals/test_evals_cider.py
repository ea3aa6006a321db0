"""CIDEr-D against the equations of its paper, written down plainly; and what must hold of any such score."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlens.errors import InputError
from gemlens.evals.cider import cider_d
from gemlens.evals.ptb import words

captions = st.lists(st.sampled_from(["a", "the", "cat", "dog", "sits", "runs", "on", "red"]), max_size=9).map(" ".join)
pictures = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=5)


def by_the_paper(answers: list[str], references: list[list[str]]) -> list[float]:
    """Equations 1 to 5: a vector for each n, one number per n-gram of the whole corpus."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        cut = text.split()
        return [tuple(cut[i : i + n]) for i in range(len(cut) - n + 1)]

    def vector(text: str, n: int, vocabulary: list[tuple[str, ...]]) -> list[float]:
        found = []
        for gram in vocabulary:
            having = sum(any(gram in grams(reference, n) for reference in group) for group in references)
            found.append(grams(text, n).count(gram) * math.log(len(references) / max(1, having)))
        return found

    def norm(numbers: list[float]) -> float:
        return math.sqrt(sum(number**2 for number in numbers))

    scores = []
    for answer, group in zip(answers, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            everything = {gram for each in [*answers, *(r for g in references for r in g)] for gram in grams(each, n)}
            vocabulary = sorted(everything)
            said = vector(answer, n, vocabulary)
            for reference in group:
                true = vector(reference, n, vocabulary)
                clipped = sum(min(a, b) * b for a, b in zip(said, true, strict=True))
                length = norm(said) * norm(true)
                penalty = math.exp(-((len(answer.split()) - len(reference.split())) ** 2) / (2 * 6.0**2))
                total += penalty * (clipped / length if length else 0) / len(group)
        scores.append(10 * total / 4)
    return scores


@settings(max_examples=60, deadline=None)
@given(pictures)
def test_scores_are_those_of_the_papers_formulas(made: list[tuple[str, list[str]]]) -> None:
    answers, references = [answer for answer, _ in made], [group for _, group in made]
    score = cider_d(answers, references)
    expected = by_the_paper(answers, references)
    assert score.items == pytest.approx(expected, abs=1e-9)
    assert score.values["cider_d"] == pytest.approx(sum(expected) / len(expected), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(pictures)
def test_scores_lie_between_0_and_10_and_do_not_depend_on_order(made: list[tuple[str, list[str]]]) -> None:
    answers, references = [answer for answer, _ in made], [group for _, group in made]
    items = cider_d(answers, references).items
    assert all(0 <= value <= 10 + 1e-9 for value in items)
    turned = cider_d(answers[::-1], [group[::-1] for group in references[::-1]]).items
    assert turned[::-1] == pytest.approx(items)


def test_saying_what_people_said_scores_10_where_they_agree() -> None:
    texts = ["a red cat sits on a mat", "two dogs run over green grass", "five cups stand in a row"]
    assert cider_d(texts, [[text] * 5 for text in texts]).items == pytest.approx([10, 10, 10])


def test_what_everybody_says_of_every_picture_is_worth_nothing() -> None:
    references = [["a photo of a cat"], ["a photo of a dog"], ["a photo of a cow"]]
    common, rare = cider_d(["a photo of a", "x", "x"], references).items, cider_d(["cat", "x", "x"], references).items
    assert common[0] == 0
    assert rare[0] > 0


def test_repeating_a_word_does_not_pay() -> None:
    references = [["the red cat sleeps here"], ["a dog"], ["two cows on grass"]]
    once, often = (cider_d([text, "", ""], references).items[0] for text in ("red cat", "red cat red cat red cat"))
    assert often < once


def test_one_picture_alone_has_no_score() -> None:
    assert cider_d(["a cat"], [["a cat"]]).items == (0,)
    with pytest.raises(InputError, match="no cider_d"):
        cider_d([], [])


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("A cat, and a dog.", ["a", "cat", "and", "a", "dog"]),
        ("the dog's ball isn't red", ["the", "dog", "'s", "ball", "is", "n't", "red"]),
        ("they\u2019re here", ["they", "'re", "here"]),
        ("can't we'll I'd I've I'm", ["ca", "n't", "we", "'ll", "i", "'d", "i", "'ve", "i", "'m"]),
        ("cannot", ["can", "not"]),
        ("black-and-white photo", ["black-and-white", "photo"]),
        ("1,000.50 dollars: 5% of $3", ["1,000.50", "dollars", "5", "%", "of", "$", "3"]),
        ("the u.s. flag", ["the", "u.s.", "flag"]),
        ("6 o'clock at&t and/or", ["6", "o'clock", "at&t", "and/or"]),
        ('"quoted" (text) -- really...', ["quoted", "text", "really"]),
        ("people' s", ["people", "s"]),
        ("\u4e24\u53ea\u732b caf\u00e9", ["\u4e24\u53ea\u732b", "caf\u00e9"]),
        ("", []),
        ("?!", []),
    ],
    ids=range(14),
)
def test_words_of_a_caption(text: str, cut: list[str]) -> None:
    assert words(text) == cut


@given(st.text(max_size=40))
def test_any_text_has_words_without_spaces(text: str) -> None:
    assert all(word and not any(letter.isspace() for letter in word) for word in words(text))


def test_a_whole_test_set_takes_seconds() -> None:
    """So many captions as COCO's test split of 5,000 pictures would take a day by the formulas as they stand."""
    numbers = random.Random(0)
    vocabulary = [f"w{number}" for number in range(500)]
    sets = [[" ".join(numbers.choices(vocabulary, k=10)) for _ in range(5)] for _ in range(1000)]
    assert cider_d([group[0] for group in sets], sets).values["cider_d"] > 1
