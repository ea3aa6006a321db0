"""What is wanted -> the prompt that PaliGemma was trained with, and back.

    caption()            "caption en"                     detect("cat", "dog")   "detect cat ; dog"
    answer("how many?")  "answer en how many?"            segment("cat")         "segment cat"
    ocr()                "ocr"

The processor adds picture tokens, <bos> and the line feed at the end. Source: big_vision, configs/proj/paligemma, and
the model cards of the mix checkpoints.
"""

import re
from typing import Literal, TypeAlias

from gemlens.errors import InputError
from gemlens.tasks import labels

Kind: TypeAlias = Literal["caption", "answer", "detect", "segment", "ocr", "other"]

_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*")  # "en", "zh-hans", "pt-BR"
_KINDS: dict[str, Kind] = {
    "cap": "caption",  # mix checkpoints: short and raw
    "caption": "caption",
    "describe": "caption",  # mix checkpoints: longer
    "answer": "answer",
    "detect": "detect",
    "segment": "segment",
    "ocr": "ocr",
}


def caption(language: str = "en") -> str:
    """Asks for a caption in a language, given by its code.

    Raises:
        InputError: `language` is no such code.
    """
    return f"caption {_checked(language)}"


def answer(question: str, language: str = "en") -> str:
    """Asks a question; the answer is wanted in a language, given by its code.

    Raises:
        InputError: the question is empty, or `language` is no such code.
    """
    if not question.strip():
        raise InputError("The question is empty; ask something, like 'how many cats are there?'.")
    return f"answer {_checked(language)} {question.strip()}"


def detect(*names: str) -> str:
    """Asks for the boxes of all that one of the labels fits.

    Raises:
        InputError: no label, an empty one, or one with ' ; ' in it.
    """
    return f"detect {_joined(names)}"


def segment(*names: str) -> str:
    """Asks for boxes and masks.

    Raises:
        InputError: no label, an empty one, or one with ' ; ' in it.
    """
    return f"segment {_joined(names)}"


def ocr() -> str:
    """Asks for the words in the picture."""
    return "ocr"


def kind_of(prompt: str) -> Kind:
    """Which of the tasks a prompt asks for, by its first word; "other" if it is none of them."""
    word, rest = _first_word(prompt)
    kind = _KINDS.get(word, "other")
    return "other" if kind == "answer" and not rest else kind


def labels_of(prompt: str) -> list[str]:
    """The labels that a prompt to detect or segment names, in its order; none for other prompts."""
    return labels.split(_first_word(prompt)[1]) if kind_of(prompt) in ("detect", "segment") else []


def _first_word(prompt: str) -> tuple[str, str]:
    """The first word and the rest; picture tokens before it do not count."""
    word, _, rest = prompt.replace("<image>", "").strip().partition(" ")
    return word, rest.strip()


def _joined(names: tuple[str, ...]) -> str:
    if not names:
        raise InputError("No label was passed; name at least one thing to look for, like 'cat'.")
    return labels.join(list(names))


def _checked(language: str) -> str:
    if not _LANGUAGE.fullmatch(language):
        raise InputError(f"{language!r} is no code of a language; pass one like 'en', 'de' or 'zh-hans'.")
    return language
