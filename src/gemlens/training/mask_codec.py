"""How the mask codec learns: a VQ-VAE (https://arxiv.org/abs/1711.00937) on masks that are made as they are needed.

    silhouettes [K, 64, 64] -> MaskMaker -> masks [N, 64, 64], each cut to its box -> train -> MaskCodec

Made are silhouettes and random shapes: turned, squeezed, mirrored, covered by each other and joined, as masks of things
in pictures are. The codebook follows what it is nearest to by moving averages (appendix A.1 there), and a vector that
nothing is near to moves to where masks are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from gemlens.errors import InputError
from gemlens.quantization.packed import multiplies_bfloat16
from gemlens.tasks.mask_codec import CODES, SIDE, MaskCodec

_CANVAS = 96  # pixels of the square that shapes are made in
_CORNERS = 12  # at most, of a random polygon
_ROUNDS = 10  # of k-means
_UNUSED = 0.05  # a vector that is chosen less often than this part of the mean moves


@dataclass(frozen=True)
class CodecSettings:
    """What a training of the mask codec depends on.

    Args:
        steps: of the optimizer.
        batch: masks per step.
        plain: steps at the start in which vectors pass as they are; then the codebook is laid among them.
        learning_rate: of Adam, at its highest; it falls to 0 along a cosine.
        commitment: weight of the encoder's distance to the codebook.
        decay: of the codebook's moving averages.
        seed: of weights, masks and codebook.
        bfloat16: convolutions in bfloat16, twice as fast on a CPU that multiplies it; only there unless told.
    """

    steps: int = 2500
    batch: int = 64
    plain: int = 200
    learning_rate: float = 1e-3
    commitment: float = 0.25
    decay: float = 0.99
    seed: int = 0
    bfloat16: bool = field(default_factory=multiplies_bfloat16)


def train(
    silhouettes: Tensor, settings: CodecSettings, report: Callable[[int, float], None] | None = None
) -> MaskCodec:
    """A codec that has learned masks of these silhouettes and of random shapes. The same seed gives the same codec.

    Args:
        silhouettes: [K, 64, 64] in [0, 1].
        report: called after each step with its number, from 1, and the mean squared error of the values in [-1, 1].

    Raises:
        InputError: silhouettes of another shape, or none.
    """
    make = MaskMaker(silhouettes, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        codec = MaskCodec().train()
        codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster; absent from torch's stubs
        codebook = MovingCodebook(codec, settings.decay)
        optimizer = torch.optim.Adam(codec.parameters(), settings.learning_rate)
        for step in range(1, settings.steps + 1):
            masks = make(settings.batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                latents = codec.latents(masks).float()
            if step == settings.plain + 1:
                codebook.lay(latents.detach())
            vectors = codebook(latents.detach()) if step > settings.plain else latents.detach()
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                # The decoder's gradient goes to the encoder as if there was no codebook between them.
                drawn = codec.draw(latents + (vectors - latents).detach()).float()
            error = F.mse_loss(drawn, 2 * masks - 1)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _part_of_rate(step, settings.steps)
            optimizer.zero_grad()
            torch.autograd.backward(error + settings.commitment * F.mse_loss(latents, vectors))
            optimizer.step()
            if report is not None:
                report(step, error.item())
    return codec.eval()


def _part_of_rate(step: int, steps: int) -> float:
    """Up to 1 within the first fiftieth, then down to 0 along a cosine."""
    return min(1.0, 50 * step / steps) * (1 + cos(pi * step / steps)) / 2


class MovingCodebook:
    """Moves the vectors of a codec.

    Args:
        codec: its codebook and moving averages are written to.
        decay: of the moving averages.
    """

    def __init__(self, codec: MaskCodec, decay: float) -> None:
        self._codec = codec
        self._decay = decay
        tensors = dict(codec.named_buffers())
        self._counts = tensors["_vq_vae._ema_cluster_size"]
        self._sums = tensors["_vq_vae._ema_w"]

    def lay(self, latents: Tensor) -> None:
        """Puts the vectors where latents [N, 16, 512] are, by k-means from random ones of them."""
        flat = latents.flatten(0, 1)
        self._place(torch.ones(CODES, dtype=torch.bool), flat)  # all of them
        for _ in range(_ROUNDS):
            self._follow(flat, self._codec.nearest(flat), 0.0)

    def __call__(self, latents: Tensor) -> Tensor:
        """The vectors [N, 16, 512] nearest to the latents; then all vectors move."""
        codes = self._codec.nearest(latents)
        vectors = self._codec.codebook[codes]
        self._follow(latents.flatten(0, 1), codes.flatten(), self._decay)
        return vectors

    def _follow(self, flat: Tensor, codes: Tensor, decay: float) -> None:
        chosen = F.one_hot(codes, CODES).to(flat)  # [n, 128]
        self._counts.lerp_(chosen.sum(0), 1 - decay)
        self._sums.lerp_(chosen.T @ flat, 1 - decay)
        self._place(self._counts < _UNUSED * self._counts.mean(), flat)

    def _place(self, which: Tensor, flat: Tensor) -> None:
        """Sets some averages [128] to random ones of [n, 512], as if chosen as often as the mean; then all vectors."""
        mean = len(flat) / CODES
        self._counts[which] = mean
        self._sums[which] = flat[torch.randint(len(flat), (int(which.sum()),))] * mean
        self._codec.codebook.copy_(self._sums / self._counts[:, None])


class MaskMaker:
    """Masks to learn from.

    Args:
        silhouettes: [K, 64, 64] in [0, 1], such as the alpha of sprites.
        seed: the same seed gives the same masks.

    Raises:
        InputError: silhouettes of another shape, or none.
    """

    def __init__(self, silhouettes: Tensor, seed: int) -> None:
        if silhouettes.ndim != 3 or silhouettes.shape[1:] != (SIDE, SIDE) or not len(silhouettes):
            raise InputError(
                f"silhouettes have shape {tuple(silhouettes.shape)}; pass at least one, [K, {SIDE}, {SIDE}]."
            )
        self._silhouettes = silhouettes.float()
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> Tensor:
        """`count` masks [count, 64, 64] in [0, 1], each cut to its box."""
        things = self._things(count)
        others = self._moved(things.roll(1, 0))
        lot = self._uniform(count, 1, 1)
        things = torch.where(lot < 0.25, things * (1 - others), things)  # covered
        things = torch.where(lot > 0.85, torch.maximum(things, others), things)  # joined
        return cut_to_box(things > 0.5)

    def _moved(self, things: Tensor) -> Tensor:
        """Shifted by up to half the canvas both ways."""
        shift = self._uniform(len(things), 2, 1, low=-1.0, high=1.0)
        return _sampled(things, torch.cat([torch.eye(2).expand(len(things), 2, 2), shift], 2))

    def _things(self, count: int) -> Tensor:
        """[count, 96, 96]: silhouettes, and as many random shapes."""
        chosen = torch.randint(len(self._silhouettes), (count,), generator=self._random)
        silhouettes = self._turned(self._silhouettes[chosen])
        return torch.where(self._chance(0.5, count, 1, 1), silhouettes, self._shapes(count).float())

    def _turned(self, silhouettes: Tensor) -> Tensor:
        """Mirrored, squeezed and, half of them, turned by up to half a circle."""
        count = len(silhouettes)
        angle = self._uniform(count, low=-pi, high=pi) * self._chance(0.5, count)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        squeeze = self._uniform(count, 1, 1, low=1.4, high=3.0) * self._uniform(count, 2, 1, low=1.0, high=1.4)
        mirror = torch.where(self._chance(0.5, count, 1, 1), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
        return _sampled(silhouettes, torch.cat([turn * squeeze * mirror, torch.zeros(count, 2, 1)], 2))

    def _shapes(self, count: int) -> Tensor:
        """bool [count, 96, 96]: polygons, and what lies between a rhombus, an ellipse and a rectangle."""
        line = (torch.arange(_CANVAS) + 0.5) / _CANVAS * 2 - 1
        turn = self._uniform(count, 1, 1, low=-pi, high=pi) * self._chance(0.5, count, 1, 1)
        x = line * turn.cos() + line[:, None] * turn.sin()
        y = line[:, None] * turn.cos() - line * turn.sin()
        width, height = self._uniform(2, count, 1, 1, low=0.25, high=0.8)
        power = self._uniform(count, 1, 1, low=0.0, high=3.0).exp()
        rounded = (x / width).abs() ** power + (y / height).abs() ** power < 1
        return torch.where(self._chance(0.5, count, 1, 1), rounded, self._polygons(x, y))

    def _polygons(self, x: Tensor, y: Tensor) -> Tensor:
        """Corners at equal angles around the middle and at random distances; [count, 96, 96]."""
        count = len(x)
        corners = torch.randint(3, _CORNERS + 1, (count, 1, 1), generator=self._random)
        distances = self._uniform(count, _CORNERS, low=0.1, high=0.9)
        place = (torch.atan2(y, x) / (2 * pi) + 0.5) * corners  # 0 to `corners` along the circle
        corner = place.long().clamp(max=corners - 1)
        begin = distances.gather(1, corner.flatten(1)).view_as(place)
        end = distances.gather(1, ((corner + 1) % corners).flatten(1)).view_as(place)
        angle, part = 2 * pi / corners, (place - corner) * 2 * pi / corners
        # How far away the straight line between the two corners is, seen from the middle.
        edge = begin * end * angle.sin() / (begin * part.sin() + end * (angle - part).sin())
        return x**2 + y**2 < edge**2

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self._random) * (high - low) + low

    def _chance(self, part: float, *shape: int) -> Tensor:
        return self._uniform(*shape) < part


def cut_to_box(masks: Tensor) -> Tensor:
    """bool [N, H, W] -> [N, 64, 64] in [0, 1]: the box of what is inside, resized as tasks/masks.py does it.

    An empty mask becomes a full one.
    """
    return torch.stack([_cut(mask) for mask in masks])


def _cut(mask: Tensor) -> Tensor:
    if not mask.any():
        return torch.ones(SIDE, SIDE)
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
    return F.interpolate(part[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]


def _sampled(pictures: Tensor, affine: Tensor) -> Tensor:
    """[N, H, W] seen through affine maps [N, 2, 3] of coordinates from -1 to 1; [N, 96, 96], 0 outside."""
    grid = F.affine_grid(affine, [len(pictures), 1, _CANVAS, _CANVAS], align_corners=False)
    return F.grid_sample(pictures[:, None], grid, align_corners=False)[:, 0]
