"""Captions -> words, nearly as the Penn Treebank tokeniser of coco-caption does, which CIDEr is published with.

The rule, for text in lower case, from left to right:

1. A word is letters and digits, which may be held together by single marks inside: hyphens ("black-and-white"),
   apostrophes ("o'clock"), periods and commas between digits ("1,000.5"), slashes ("and/or"), ampersands ("at&t"),
   at signs and underscores. Periods after single letters belong to them ("u.s.").
2. An ending 's 'm 'd 'll 're 've n't is a word of its own: "dog's" -> "dog 's", "don't" -> "do n't".
3. "cannot", "gonna", "gotta", "wanna", "gimme", "lemme" are two words: "can not", "gon na".
4. . ? ! , : ; - -- ... quotes and brackets are dropped; any other mark is a word of its own ("$", "%", "&").

The original (Java) also knows abbreviations ("mr." keeps its period), dates and addresses; captions have few.
"""

import re

_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\d+(?:[.,:/]\d+)+"  # 1,000.5
    r"|\w+(?:[-'&/@_.]\w+)*"
    r"|'(?:s|m|d|ll|re|ve)\b"
    r"|[^\w\s]"
)
_ENDING = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))$")
_TWO_WORDS = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"),
}  # fmt: skip
_DROPPED = frozenset(".?!,:;-'\"`()[]{}\u2026\u2013\u2014\u2018\u2019\u201c\u201d")


def words(text: str) -> list[str]:
    """The words of a text, by the rule above."""
    found: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        if token in _DROPPED:
            continue
        stem, *endings = _ENDING.split(token)  # the ending and what follows it, which is nothing
        found += [*_TWO_WORDS.get(stem, (stem,)), *filter(None, endings)]
    return found
