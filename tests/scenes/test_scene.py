"""Scenes: the same seed gives the same picture, and everything that is said of it is exact."""

import hashlib
import subprocess
import sys
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFilter

from gemlens.errors import InputError
from gemlens.scenes import artwork, words
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.scene import SPLITS, draw, page

SEEDS = range(150)
GROWN = ImageFilter.MaxFilter(5)


def fingerprint(seeds: range) -> str:
    found = hashlib.sha256()
    for seed in seeds:
        scene = draw(seed)
        found.update(scene.picture.tobytes())
        found.update(repr([(thing.kind.name, thing.box) for thing in scene.things] + [*scene.words]).encode())
        for thing in scene.things:
            found.update(thing.mask.tobytes())
    return found.hexdigest()


def test_a_seed_gives_the_same_scene_in_another_process() -> None:
    program = f"import sys; sys.path[:0] = {sys.path!r}\nfrom scenes.test_scene import fingerprint\n"
    other = subprocess.run(
        [sys.executable, "-c", f"{program}print(fingerprint(range(20)))"], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == fingerprint(range(20))
    assert fingerprint(range(20)) != fingerprint(range(1, 21))


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_the_edges_of_masks_and_masks_do_not_meet(split: str) -> None:
    for seed in SEEDS:
        scene = draw(seed, split)
        width, height = scene.picture.size
        seen = np.zeros((height, width), int)
        for thing in scene.things:
            rows, columns = np.nonzero(thing.mask)
            box = thing.box
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (
                box.left,
                box.top,
                box.right,
                box.bottom,
            )
            seen += thing.mask
        assert seen.max(initial=0) <= 1
        for word in scene.words:
            assert 0 <= word.box.left < word.box.right <= width
            assert 0 <= word.box.top < word.box.bottom <= height


def test_masks_are_where_things_are_drawn() -> None:
    """Before and after the things are drawn, the picture differs inside the masks and hardly anywhere else."""
    for seed in range(60):
        scene = draw(seed)
        if not scene.things or scene.words:
            continue
        chance = Random(f"train:{seed}")  # the scene's first draws: its size and what is behind it
        size = (128, 128) if chance.random() < 0.7 else (chance.randint(128, 224), chance.randint(128, 224))
        empty = artwork.background(chance, "train", size)
        changed = np.asarray(ImageChops.difference(scene.picture, empty)).max(2) > 24
        inside = np.any([thing.mask for thing in scene.things], axis=0)
        assert changed[inside].mean() > 0.6
        near = np.asarray(Image.fromarray(inside).convert("L").filter(GROWN)) > 0
        assert changed[~near].mean() < 0.005, "pixels of soft shadows"


def test_backgrounds_of_training_are_disguised_and_those_of_testing_are_not() -> None:
    for split, disguised in (("train", True), ("test", False)):
        changed = 0
        for seed in range(60):
            drawn = artwork.background(Random(seed), split, (64, 64))
            plain = artwork._ground(Random(seed), split, (64, 64))
            changed += drawn.tobytes() != plain.tobytes()
        assert (changed > 45) if disguised else (changed == 0)


def test_words_are_of_the_split_and_numbers_too() -> None:
    texts = {split: [word.text for seed in range(400) for word in draw(seed, split).words] for split in SPLITS}
    assert not any(words.is_unseen(text) for text in texts["train"])
    assert 0.03 < np.mean([words.is_unseen(text) for text in texts["test"]]) < 0.2
    listed = {}
    for split, found in texts.items():
        listed[split] = np.mean([text.isdigit() or text in words.WORDS for text in found])
        assert any(text.isdigit() for text in found)
    assert listed["test"] == 1
    assert 0.55 < listed["train"] < 0.75  # the rest are letters by chance
    assert all(text.isascii() and text.isalnum() and text.upper() == text for text in texts["train"])


def test_letters_stand_in_their_word_from_left_to_right_as_wide_as_they_are() -> None:
    for seed in range(100):
        for word in page(seed).words:
            box, font = word.box, artwork.font(100)
            assert len(word.centres) == len(word.text)
            assert all(box.left < x < box.right and box.top < y < box.bottom for x, y in word.centres)
            steps = np.diff([x for x, _ in word.centres])
            wide = [font.getlength(letter) for letter in word.text]
            expected = [(one + other) / 2 for one, other in pairwise(wide)]
            slant = [abs(later[1] - first[1]) for first, later in pairwise(word.centres)]
            assert all(steps > 0)
            if steps.size and max(slant) == 0:
                assert np.allclose(steps / steps.sum(), np.array(expected) / sum(expected), atol=0.05)


def test_pages_hold_words_and_nothing_else() -> None:
    for seed in range(50):
        scene = page(seed)
        assert not scene.things
        assert len(scene.words) > 1
        assert not any(words.is_unseen(word.text) for word in scene.words)
        assert all(a.box.common(b.box).area == 0 for a, b in combinations(scene.words, 2))


def test_splits_share_no_photograph() -> None:
    names = {split: {path.name for path in (artwork.FOLDER / "photographs").glob(f"{split}-*")} for split in SPLITS}
    assert all(names.values())
    hashes = {
        split: {hashlib.sha256((artwork.FOLDER / "photographs" / name).read_bytes()).hexdigest() for name in found}
        for split, found in names.items()
    }
    assert not hashes["train"] & hashes["test"]


def test_every_kind_has_a_picture_of_its_own_and_comes_about_equally_often() -> None:
    assert len(KINDS) == 48
    pictures = {artwork.thing(kind).tobytes() for kind in KINDS}
    assert len(pictures) == len(KINDS)
    assert all(artwork.thing(kind).getchannel("A").getextrema() == (0, 255) for kind in KINDS)
    seen = [thing.kind.name for seed in range(1500) for thing in draw(seed).things]
    counts = [seen.count(kind.name) for kind in KINDS]
    assert min(counts) > 0.5 * np.mean(counts)


def test_an_unknown_split_is_a_sentence() -> None:
    with pytest.raises(InputError, match="no split 'validation' of scenes; there are train, test"):
        draw(0, "validation")
