"""Teaches the picture encoder of gemlens-tiny to see, before it meets a decoder, as SigLIP learns before PaliGemma.

    python recipes/gemlens-tiny/start.py build/gemlens-tiny/start
    python recipes/gemlens-tiny/see.py recipes/gemlens-tiny/see.toml

Every patch of a picture says what it shows, by linear heads that are thrown away afterwards: which kind of thing, the
edges of the whole thing, the codes of its mask, whether the thing's middle lies here, and which letters. So one picture
gives hundreds of answers, where a caption gives a few. All heads choose between words, as the decoder will: what is
linear here is linear there (edges as numbers made good boxes here and none there). The loop, its settings and its
checkpoints are those of `gemlens train`. P patches, G = sqrt(P) to a side, D width.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens import AutoProcessor, PaliGemmaForConditionalGeneration
from gemlens.data.example import Example
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.scene import Scene, draw, page
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.tasks.masks import CODES, LAST_CODE, mask_in_box
from gemlens.training.loading import Batch
from gemlens.training.loop import Run
from gemlens.training.settings import Settings, read_recipe, settings_of

MASK_CODEC = Path(__file__).resolve().parents[2] / "src" / "gemlens" / "assets" / "gemlens-tiny" / "mask_codec.npz"
PAGES = 0.4  # of the pictures show words only
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SLOTS = 3  # letters whose middles lie in one patch, at most
NOTHING = len(KINDS)  # what a patch without a thing shows
LEAST = 0.3  # of a patch belongs to a thing, or nothing does
EDGES = 4  # top, left, bottom, right, as parts of the picture's side
STEPS = 64  # of a picture's side, between which an edge lies
SIZES = {"kind": len(KINDS) + 1, "edges": EDGES * (STEPS + 1), "middle": 1, "letters": SLOTS * (len(LETTERS) + 1)}
WEIGHTS = {"kind": 1.0, "edges": 1.0, "middle": 3.0, "letters": 3.0, "codes": 0.4}


@dataclass(frozen=True)
class Seen(Example):
    """An example that brings its whole truth along."""

    scene: Scene | None = None


@dataclass(frozen=True)
class Sights:
    """Scenes and pages of words, by number."""

    count: int = 2**24
    split: str = "train"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Seen:
        made = page if Random(f"sights:{index}").random() < PAGES else draw
        return Seen(f"sight:{index}", scene=made(2**52 + index, self.split))  # far from the seeds of other sources


@dataclass(frozen=True)
class Labels:
    """Scenes -> pixels [B, 3, H, W] and what each of P patches should say.

    Args:
        processor: prepares pictures.
        side: G.
        codec: writes masks.
    """

    processor: Any
    side: int
    codec: MaskCodec

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`labels` are the kinds [B, P]; `owner` [B, P] is the number of a thing in `codes` [T, 16], or -1."""
        scenes = [cast(Scene, cast(Seen, example).scene) for example in examples]
        pictures = self.processor.image_processor([scene.picture for scene in scenes], return_tensors="pt")
        rows, masks, before = [], [], 0
        for scene in scenes:
            row = self._patches(scene)
            row["owner"] = np.where(row["owner"] >= 0, row["owner"] + before, -1)
            rows.append(row)
            masks += [mask_in_box(thing.mask, thing.box) for thing in scene.things]
            before += len(scene.things)
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        with torch.no_grad():
            codes = self.codec.encode(torch.stack(masks)) if masks else torch.zeros(0, CODES).long()
        return {"pixel_values": pictures["pixel_values"], "codes": codes, **batch}

    def _patches(self, scene: Scene) -> dict[str, np.ndarray]:
        count, (width, height) = self.side**2, scene.picture.size
        labels, owner = np.full(count, NOTHING), np.full(count, -1)
        edges, middle = np.zeros((count, EDGES), np.float32), np.zeros(count, np.float32)
        letters, most = np.zeros((count, SLOTS), np.int64), np.full(count, LEAST)
        rows, columns = (np.arange(size) * self.side // size for size in (height, width))
        patch = (rows[:, None] * self.side + columns).ravel()  # of each pixel
        for number, thing in enumerate(scene.things):
            share = np.bincount(patch, thing.mask.ravel(), count) / np.bincount(patch, minlength=count)
            mine, box = share > most, thing.box
            most = np.maximum(most, share)
            labels[mine], owner[mine] = KINDS.index(thing.kind), number
            edges[mine] = box.top / height, box.left / width, box.bottom / height, box.right / width
            middle[self._patch_at(thing.centre, scene)] = 1
        for word in scene.words:
            for letter, centre in zip(word.text, word.centres, strict=True):
                slots = letters[self._patch_at(centre, scene)]
                slots[np.flatnonzero(slots == 0)[:1]] = 1 + LETTERS.index(letter)
        return {"labels": labels, "owner": owner, "edges": edges, "middle": middle, "letters": letters}

    def _patch_at(self, place: tuple[float, float], scene: Scene) -> int:
        column, row = (
            min(int(at * self.side / size), self.side - 1) for at, size in zip(place, scene.picture.size, strict=True)
        )
        return row * self.side + column


class Pupil(nn.Module):
    """The encoder, and heads on each of its patches.

    Args:
        tower: the picture encoder of a PaliGemma.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        width = cast(Any, tower).config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in SIZES.items()})
        self.codes = nn.Linear(width, CODES * (LAST_CODE + 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, P, D]."""
        return cast(Tensor, self.tower(pixel_values).last_hidden_state)


@dataclass(frozen=True)
class Sight:
    """What is minimised: the sum of the heads' losses, of each picture alike."""

    def weight(self, labels: Tensor, *rest: object) -> float:
        """How many pictures a batch has."""
        return float(len(labels))

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum over the pictures of a batch."""
        pupil = cast(Pupil, model)
        return len(batch["labels"]) * loss_of(pupil, pupil(batch["pixel_values"]), batch)


def loss_of(pupil: Pupil, seen: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of the heads' mean losses on what was seen [B, P, D]; edges and codes where there is a thing."""
    said = {name: head(seen).float() for name, head in pupil.heads.items()}
    owned = batch["owner"] >= 0
    codes = pupil.codes(seen[owned]).float().unflatten(-1, (CODES, -1))  # [N, 16, 128]
    wanted = batch["codes"][batch["owner"][owned]]
    letters = said["letters"].unflatten(-1, (SLOTS, -1))
    losses = {
        "kind": F.cross_entropy(said["kind"].flatten(0, 1), batch["labels"].flatten()),
        "edges": edges_loss(said["edges"][owned], batch["edges"][owned]) if owned.any() else seen.sum() * 0,
        "middle": F.binary_cross_entropy_with_logits(said["middle"].squeeze(-1), batch["middle"]),
        "letters": F.cross_entropy(letters.flatten(0, 2), batch["letters"].flatten()),
        "codes": F.cross_entropy(codes.flatten(0, 1), wanted.flatten()) if owned.any() else seen.sum() * 0,
    }
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def edges_loss(said: Tensor, edges: Tensor) -> Tensor:
    """Mean cross-entropy of what the head says [N, 4 * 65] with the two steps next to each edge [N, 4], by nearness."""
    chances = said.unflatten(-1, (EDGES, -1)).log_softmax(-1)
    below = (edges * STEPS).floor().clamp(max=STEPS - 1)
    share = edges * STEPS - below  # of the step above
    low, high = (chances.gather(-1, (below + up).long().unsqueeze(-1)).squeeze(-1) for up in (0, 1))
    return -((1 - share) * low + share * high).mean()


def boxes(said: Tensor) -> Tensor:
    """What the head says of edges [N, 4 * 65] -> the mean of each [N, 4], as parts of the picture's side."""
    steps = torch.arange(STEPS + 1, device=said.device) / STEPS
    return said.unflatten(-1, (EDGES, -1)).softmax(-1) @ steps


@torch.no_grad()
def marks(pupil: Pupil, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """How much is right: kinds, mean IoU of boxes and codes where there are things, letters where there are letters."""
    seen = pupil(batch["pixel_values"])
    owned, written = batch["owner"] >= 0, batch["letters"][..., 0] > 0
    kinds = pupil.heads["kind"](seen).argmax(-1)
    letters = pupil.heads["letters"](seen).unflatten(-1, (SLOTS, -1)).argmax(-1)
    codes = pupil.codes(seen[owned]).unflatten(-1, (CODES, -1)).argmax(-1)
    said, true = boxes(pupil.heads["edges"](seen[owned])), batch["edges"][owned]
    shared = (torch.minimum(said, true)[:, 2:] - torch.maximum(said, true)[:, :2]).clamp(min=0).prod(1)
    areas = [(edges[:, 2:] - edges[:, :2]).clamp(min=0).prod(1) for edges in (said, true)]
    return {
        "kinds": float((kinds == batch["labels"])[owned].float().mean()),
        "boxes": float((shared / (areas[0] + areas[1] - shared)).mean()),
        "codes": float((codes == batch["codes"][batch["owner"][owned]]).float().mean()),
        "letters": float((letters == batch["letters"]).all(-1)[written].float().mean()),
    }


@dataclass
class Look:
    """Marks and loss on pictures that are not learned from, though of the same photographs."""

    pupil: Pupil
    labels: Labels
    count: int = 256
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        source = Sights()
        self.batch = self.labels([source[len(source) + number] for number in range(self.count)])

    def __call__(self) -> dict[str, float]:
        """Values by name."""
        self.pupil.eval()
        found = marks(self.pupil, self.batch)
        with torch.no_grad():
            loss = float(Sight()(self.pupil, self.batch)) / self.count
        print(" ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
        return {"validation_loss": loss, **found}


def main() -> None:
    """Trains, and writes OUTPUT/last: the start with the encoder that has learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    settings: Settings = settings_of(read_recipe(parser.parse_args().recipe))
    torch.manual_seed(settings.seed)
    model = PaliGemmaForConditionalGeneration.from_pretrained(settings.model, attn_implementation=settings.attention)
    processor = AutoProcessor.from_pretrained(settings.model)
    pupil = Pupil(model.vision_tower)
    vision = model.config.vision_config
    labels = Labels(processor, vision.image_size // vision.patch_size, MaskCodec.load(MASK_CODEC))
    look = Look(pupil, labels)
    Run(settings, pupil, Sights(), labels, objective=Sight(), evaluate=look, say=print).train()
    model.eval().save_pretrained(Path(settings.output) / "last")
    processor.save_pretrained(Path(settings.output) / "last")


if __name__ == "__main__":
    main()
