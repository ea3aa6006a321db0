"""VQA accuracy: an answer is right as far as people gave it. Used for VQAv2, TextVQA, OKVQA, VizWiz.

Antol et al., VQA (arXiv 1505.00468), section 5, with the normalisation of the official evaluation code: its steps
and its oddities, as scores are only comparable with these.
"""

import re
from collections.abc import Sequence

from gemlens.evals.score import Score, check_pairs

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # sic: meant to look behind, it only spares periods before a digit
_MOST_PERIODS = 32  # sic: the official code passes re.UNICODE where the count of replacements stands
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
# What is restored where one apostrophe is missing. Those that would need a capital letter never match and are left out.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a literal for each would fill a page
_RESTORED = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTIONS for place in range(len(word)) if word[place] == "'"
} | {"somebody'd": "somebodyd"}  # sic


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The mean over the questions, and over all ways to leave out one person, of min(people who said so / 3, 1).

    Args:
        answers: of the model.
        references: of people, ten for each question; where there is one only, the answer is right or wrong.
    """
    check_pairs(answers, references)
    return Score.mean("vqa_accuracy", [_agreement(*pair) for pair in zip(answers, references, strict=True)])


def _agreement(answer: str, people: Sequence[str]) -> float:
    answer, *people = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *people))
    if len(set(people)) > 1:  # where all agree, the official code compares the texts as they are
        answer, *people = map(normalise, (answer, *people))
    if len(people) == 1:
        return float(normalise(answer) == normalise(people[0]))
    agreeing = [person == answer for person in people]
    return sum(min((sum(agreeing) - left_out) / 3, 1) for left_out in agreeing) / len(people) if people else 0.0


def normalise(text: str) -> str:
    """Lower case, without articles and punctuation, numbers up to ten as digits, apostrophes of contractions back."""
    cleaned = text
    for mark in _PUNCTUATION:
        drops = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text) is not None
        cleaned = cleaned.replace(mark, "" if drops else " ")
    cleaned = _PERIOD.sub("", cleaned, count=_MOST_PERIODS)
    words = [_DIGITS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)
