"""What can be wrong with the texts of an example, found without its pictures.

Each thing that is found has a name, which check.py lists with what it means.
"""

import re
from collections.abc import Iterator

from gemlens.data.example import Example
from gemlens.tasks import labels, prompts

_CONTROLS = re.compile(
    r"<(?:eos|bos|pad|unk|mask|image|image_soft_token|start_of_turn|end_of_turn|start_of_image|end_of_image)>"
)
_MARK = "<image>"
_RUN = re.compile(r"<(?:loc|seg)\d+>(?:\s*<(?:loc|seg)\d+>)*")
_TOKEN = re.compile(r"<(loc|seg)(\d+)>")
_SHORT = 3  # words; an answer of so few may well stand in its question: "is it red or blue?"


def texts_of(example: Example) -> tuple[str, str]:
    """(what is asked, what is answered): of a chat, all that others and all that the assistant says, line by line."""
    if not example.messages:
        return example.prefix, example.suffix
    said: tuple[list[str], list[str]] = ([], [])
    for message in example.messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        said[message["role"] == "assistant"].extend(parts)
    return "\n".join(said[0]), "\n".join(said[1])


def text_problems(example: Example) -> Iterator[tuple[str, str]]:
    """(name of the problem, sentence) of everything that is found."""
    asked, answered = texts_of(example)
    kind = "other" if example.messages else prompts.kind_of(asked)
    yield from _controls(example, asked, answered)
    if not answered.strip():
        finds = kind in ("detect", "segment")
        yield ("nothing found", "the picture has nothing of it.") if finds else ("empty answer", "the answer is empty.")
    elif _is_in(answered, asked):
        name = "answer in prompt" if len(answered.split()) > _SHORT else "short answer in prompt"
        yield name, f"the prompt holds the answer {answered[:60]!r}."
    if kind in ("detect", "segment"):
        yield from _findings(asked, answered)


def _controls(example: Example, asked: str, answered: str) -> Iterator[tuple[str, str]]:
    """Control tokens that are written out. In a prompt, `<image>` says where the pictures stand."""
    marks_fit = not example.messages and asked.count(_MARK) == len(example.pictures)
    for name, text in (("prompt", asked.replace(_MARK, "") if marks_fit else asked), ("answer", answered)):
        for token in dict.fromkeys(_CONTROLS.findall(text)):
            yield (
                "control token",
                f"the {name} spells out {token}, which would be learned letter by letter; leave it out.",
            )


def _is_in(answered: str, asked: str) -> bool:
    """Whether the prompt says the answer, in whole words."""
    answer, prompt = (" ".join(text.casefold().split()) for text in (answered, asked))
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt) is not None


def _findings(asked: str, answered: str) -> Iterator[tuple[str, str]]:
    """Boxes and masks that could not be read back, and labels that nobody asked for."""
    runs = list(_RUN.finditer(answered))
    if answered.strip() and not runs:
        yield "broken box", "the answer to detect or segment has no <loc> tokens."
    wanted = prompts.labels_of(asked)
    for number, run in enumerate(runs, 1):
        yield from (("broken box", f"finding {number} {problem}") for problem in _box_problems(run[0]))
        end = runs[number].start() if number < len(runs) else None
        label = labels.first(answered[run.end() : end], end is not None)
        if label and label not in wanted:
            yield "unasked label", f"finding {number} is called {label[:60]!r}, but the prompt does not name that."


def _box_problems(run: str) -> Iterator[str]:
    """Of the tokens of one finding: four <loc>, and then none or sixteen <seg>."""
    tokens = _TOKEN.findall(run)
    kinds = [kind for kind, _ in tokens]
    places = [int(number) for _, number in tokens[:4]]
    if kinds[:4] != ["loc"] * 4 or kinds[4:] not in ([], ["seg"] * 16):
        counts = f"{kinds.count('loc')} <loc> and {kinds.count('seg')} <seg>"
        yield f"has {counts} tokens; it takes four <loc>, and for a mask sixteen <seg> behind them."
    elif wrong := next((token for token in tokens if not _is_token(*token)), None):
        yield f"has <{wrong[0]}{wrong[1]}>; there are <loc0000> to <loc1023> and <seg000> to <seg127>."
    elif places[2] <= places[0] or places[3] <= places[1]:
        yield f"has the box {''.join(f'<loc{each:04}>' for each in places)} of no area; the order is y1 x1 y2 x2."


def _is_token(kind: str, number: str) -> bool:
    digits, last = (4, 1023) if kind == "loc" else (3, 127)
    return len(number) == digits and int(number) <= last
