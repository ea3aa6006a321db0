"""What may stand in a label, and the sign between two of them.

Labels are joined by " ; ", in prompts ("detect cat ; dog") and in answers. Any other semicolon belongs to its label:
"AC; DC" is one label, and so is "&amp". What could not be read back is refused when it is written.
"""

import re

from gemlens.errors import InputError

SEPARATOR = " ; "
_BETWEEN = re.compile(r"(?:\s|\A);(?=\s|\Z)")  # one space, not many: a search stays linear in the length of the text


def join(labels: list[str]) -> str:
    """Labels as a prompt names them: "cat ; dog".

    Raises:
        InputError: a label is empty, or would not be read back as it is.
    """
    for label in labels:
        check(label)
        if not label:
            raise InputError("A label is empty; name what to look for, like 'cat'.")
    return SEPARATOR.join(labels)


def split(text: str) -> list[str]:
    """The labels of "cat ; dog", without spaces around them; empty ones are left out."""
    return [label for part in _BETWEEN.split(text) if (label := part.strip())]


def first(text: str, more_follows: bool = False) -> str:
    """The label at the beginning of a text; empty if there is none.

    Args:
        text: up to the next finding, or to the end.
        more_follows: whether a finding does: then "cat;" has lost the spaces of the sign between them.
    """
    label, *rest = (part.strip() for part in _BETWEEN.split(text, maxsplit=1))
    return label[:-1].rstrip() if more_follows and not rest and label.endswith(";") else label


def check(label: str) -> None:
    """Refuses a label that would not be read back as it is; an empty one is fine.

    Raises:
        InputError: spaces around it, or the sign that separates labels.
    """
    if label != label.strip():
        raise InputError(f"The label {label!r} has spaces around it, which are lost when it is read; strip it.")
    if split(label) != ([label] if label else []):
        raise InputError(f"The label {label!r} has ' ; ' in it, which separates labels; write it without the spaces.")
