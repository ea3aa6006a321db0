"""A scene -> a prompt and its one right answer, in the words of PaliGemma's tasks.

Answers have one form, so that a small model can learn them: kinds in the order of the alphabet, things of a kind from
top to bottom, words as one reads them. A question is asked only where its answer is beyond doubt.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from gemlens.scenes.kinds import BY_NAME, KINDS, Kind
from gemlens.scenes.scene import Scene, Thing
from gemlens.tasks import prompts
from gemlens.tasks.findings import Finding, write
from gemlens.tasks.masks import Codec

COUNTS = ("no", "one", "two", "three", "four", "five", "six")
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_MOST_MASKS = 2  # things of a kind that is to be segmented: each takes 20 tokens
_MARGIN = 0.04  # of a side: nearer to a border between two answers, nothing is asked
_APART = 0.12  # of a side: nearer to each other, neither is left of the other


@dataclass(frozen=True)
class Question:
    """A prompt and its answer."""

    prompt: str
    answer: str


def caption(scene: Scene, chance: Random) -> Question:
    """ "a cat, two dogs and the word TREE"."""
    counts = Counter(thing.kind.name for thing in scene.things)
    parts = [
        BY_NAME[name].one if count == 1 else f"{COUNTS[count]} {BY_NAME[name].names}"
        for name, count in sorted(counts.items())
    ]
    parts += [f"the {'number' if word.text.isdigit() else 'word'} {word.text}" for word in scene.words]
    *first, last = parts or ["nothing"]
    return Question(prompts.caption(), f"{', '.join(first)} and {last}" if first else last)


def count(scene: Scene, chance: Random) -> Question:
    """ "how many dogs are there?", of what is there and now and then of what is not."""
    kind = _present(scene, chance) if chance.random() < 0.85 else _absent(scene, chance)
    return Question(prompts.answer(f"how many {kind.names} are there?"), str(len(_of(scene, kind))))


def presence(scene: Scene, chance: Random) -> Question:
    """ "is there a cat?"."""
    is_there = chance.random() < 0.5 and bool(scene.things)
    kind = _present(scene, chance) if is_there else _absent(scene, chance)
    return Question(prompts.answer(f"is there {kind.one}?"), "yes" if is_there else "no")


def place(scene: Scene, chance: Random) -> Question | None:
    """ "where is the cat?", "top left", where there is one and it is clearly in one of nine parts."""
    found = [(thing, where) for thing in single(scene) if (where := _part(scene, thing))]
    if not found:
        return None
    thing, where = chance.choice(found)
    return Question(prompts.answer(f"where is the {thing.kind.name}?"), where)


def relation(scene: Scene, chance: Random) -> Question | None:
    """ "is the cat left of the dog?", where there is one of each and they are clearly apart."""
    things = single(scene)
    if len(things) < 2:
        return None
    first, second = chance.sample(things, 2)
    axis = chance.randrange(2)
    apart = first.centre[axis] - second.centre[axis]
    if abs(apart) < _APART * scene.picture.size[axis]:
        return None
    is_before = chance.random() < 0.5
    side = (("right of", "left of"), ("below", "above"))[axis][is_before]
    question = f"is the {first.kind.name} {side} the {second.kind.name}?"
    return Question(prompts.answer(question), "yes" if (apart < 0) == is_before else "no")


def detect(scene: Scene, chance: Random) -> Question:
    """ "detect cat ; dog": of what is there, now and then with something that is not."""
    names = sorted({thing.kind.name for thing in scene.things})
    asked = chance.sample(names, chance.randint(1, len(names))) if names else []
    if not asked or chance.random() < 0.15:
        asked.append(_absent(scene, chance).name)
    found = [Finding(name, thing.box) for name in sorted(asked) for thing in _of(scene, BY_NAME[name])]
    return Question(prompts.detect(*sorted(asked)), write(found, scene.picture.size))


def segment(scene: Scene, chance: Random, codec: Codec) -> Question | None:
    """ "segment cat", where there are few."""
    counts = Counter(thing.kind.name for thing in scene.things)
    few = sorted(name for name, number in counts.items() if number <= _MOST_MASKS)
    if not few:
        return None
    name = chance.choice(few)
    found = [Finding(name, thing.box, thing.mask) for thing in _of(scene, BY_NAME[name])]
    return Question(prompts.segment(name), write(found, scene.picture.size, codec))


def read(scene: Scene, chance: Random) -> Question | None:
    """ "ocr", or the same as a question; where something is written."""
    if not scene.words:
        return None
    prompt = prompts.ocr() if chance.random() < 0.7 else prompts.answer("what is written?")
    return Question(prompt, " ".join(word.text for word in scene.words))


ASK: Mapping[str, Callable[[Scene, Random], Question | None]] = {
    "caption": caption,
    "count": count,
    "presence": presence,
    "place": place,
    "relation": relation,
    "detect": detect,
    "ocr": read,
}
TASKS = (*ASK, "segment")


def single(scene: Scene) -> list[Thing]:
    """Things whose kind is there once."""
    counts = Counter(thing.kind.name for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.kind.name] == 1]


def _of(scene: Scene, kind: Kind) -> list[Thing]:
    """Things of a kind from top to bottom."""
    return sorted((thing for thing in scene.things if thing.kind == kind), key=lambda thing: thing.centre[::-1])


def _present(scene: Scene, chance: Random) -> Kind:
    """A kind that is there, or any where nothing is."""
    return chance.choice([thing.kind for thing in scene.things] or KINDS)


def _absent(scene: Scene, chance: Random) -> Kind:
    there = {thing.kind.name for thing in scene.things}
    return chance.choice([kind for kind in KINDS if kind.name not in there])


def _part(scene: Scene, thing: Thing) -> str:
    """Which of nine parts of the picture a thing's middle is in; empty where that is not clear."""
    words = []
    for middle, side, names in zip(thing.centre[::-1], scene.picture.size[::-1], (_ROWS, _COLUMNS), strict=True):
        share = 3 * middle / side
        if min(abs(share - 1), abs(share - 2)) < 3 * _MARGIN:
            return ""
        words.append(names[int(share)])
    return " ".join(filter(None, words)) or "center"
