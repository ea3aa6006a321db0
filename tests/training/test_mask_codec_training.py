"""How the mask codec learns: what its masks are, how its codebook moves, that it learns and that a seed says how."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gemlens.errors import InputError
from gemlens.tasks.boxes import Box
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.tasks.masks import encode_mask
from gemlens.training.mask_codec import CodecSettings, MaskMaker, MovingCodebook, cut_to_box, train


def silhouettes() -> Tensor:
    """A disc and a cross."""
    made = []
    for corners in ([(8, 8, 56, 56)], [(26, 4, 38, 60), (4, 26, 60, 38)]):
        picture = Image.new("L", (64, 64))
        pen = ImageDraw.Draw(picture)
        for box in corners:
            (pen.ellipse if len(corners) == 1 else pen.rectangle)(box, fill=255)
        made.append(np.asarray(picture, np.float32) / 255)
    return torch.from_numpy(np.stack(made))


def spread_latents() -> Tensor:
    """[40, 16, 512]: five near to each of 128 places that are far from each other."""
    random = torch.Generator().manual_seed(0)
    places = torch.randn(128, 512, generator=random)
    near = places.repeat(5, 1) + 0.05 * torch.randn(640, 512, generator=random)
    return near.view(40, 16, 512)


def iou(before: Tensor, after: Tensor) -> float:
    return float(((before & after).sum((1, 2)) / (before | after).sum((1, 2))).mean())


class Listener:
    """A codec that keeps what it shall encode."""

    def encode(self, masks: Tensor) -> Tensor:
        self.heard = masks
        return torch.zeros(len(masks), 16, dtype=torch.int64)

    def decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError


class TestMasks:
    def test_a_seed_gives_the_same_masks_and_another_seed_others(self) -> None:
        first, again, other = (MaskMaker(silhouettes(), seed)(6) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_masks_differ_and_each_is_cut_to_its_box(self) -> None:
        masks = MaskMaker(silhouettes(), 0)(64)
        assert masks.shape == (64, 64, 64)
        assert 0 <= masks.min() < masks.max() < 1.001
        inside = masks > 0.5
        for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
            assert (edge.amax(1) > 0).all()
        assert len({tuple(mask.flatten().tolist()) for mask in inside}) > 60
        covered = inside.float().mean((1, 2))
        assert 0.25 < covered.median() < 0.9
        assert covered.std() > 0.1

    def test_the_global_random_numbers_are_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        MaskMaker(silhouettes(), 0)(4)
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize("shape", [(0, 64, 64), (64, 64), (3, 32, 64)])
    def test_silhouettes_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"pass at least one, \[K, 64, 64\]"):
            MaskMaker(torch.zeros(shape), 0)


class TestCutting:
    @pytest.mark.parametrize("box", [(0, 0, 64, 64), (10, 20, 30, 25), (63, 5, 64, 90), (0, 0, 64, 100)])
    def test_it_is_what_encode_mask_gives_to_the_codec(self, box: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = box
        random = torch.Generator().manual_seed(0)
        mask = torch.zeros(100, 64, dtype=torch.bool)
        mask[top:bottom, left:right] = torch.rand(bottom - top, right - left, generator=random) < 0.7
        mask[top, left] = mask[bottom - 1, right - 1] = True
        listener = Listener()
        encode_mask(mask.numpy(), Box(*map(float, box)), listener)
        torch.testing.assert_close(cut_to_box(mask[None]), listener.heard, rtol=0, atol=1e-5)

    def test_an_empty_mask_becomes_a_full_one(self) -> None:
        masks = torch.zeros(2, 40, 40, dtype=torch.bool)
        masks[1, 5, 6] = True
        assert torch.equal(cut_to_box(masks), torch.ones(2, 64, 64))


class TestCodebook:
    def test_it_follows_the_averages_of_what_it_is_nearest_to(self) -> None:
        codec, latents = MaskCodec(), spread_latents()
        codebook = MovingCodebook(codec, decay=0.9)
        codebook.lay(latents)
        before = {name: tensor.clone() for name, tensor in codec.named_buffers()}
        vectors = codebook(latents + 0.01)
        counts, sums = 0.9 * before["_vq_vae._ema_cluster_size"], 0.9 * before["_vq_vae._ema_w"]
        for latent, vector in zip((latents + 0.01).flatten(0, 1), vectors.flatten(0, 1), strict=True):
            code = int((before["_vq_vae._embedding"] - latent).square().sum(1).argmin())
            assert torch.equal(vector, before["_vq_vae._embedding"][code])
            counts[code] += 0.1
            sums[code] += 0.1 * latent
        after = dict(codec.named_buffers())
        stayed = counts > 0.05 * counts.mean()
        assert stayed.sum() > 100
        torch.testing.assert_close(after["_vq_vae._ema_cluster_size"][stayed], counts[stayed])
        torch.testing.assert_close(codec.codebook[stayed], (sums / counts[:, None])[stayed], rtol=1e-4, atol=1e-4)

    def test_laid_it_is_near_to_everything(self) -> None:
        """The latents are 128 tight groups, so a vector in most groups leaves little distance."""
        codec, latents = MaskCodec(), spread_latents()
        MovingCodebook(codec, decay=0.9).lay(latents)
        flat = latents.flatten(0, 1)
        assert (flat - codec.codebook[codec.nearest(flat)]).square().mean() < 0.3 * flat.var()

    def test_a_vector_that_nothing_is_near_to_moves_to_where_latents_are(self) -> None:
        codec, latents = MaskCodec(), spread_latents()
        codec.codebook[5] = 1000.0
        codebook = MovingCodebook(codec, decay=0.5)
        for _ in range(10):
            codebook(latents)
        assert codec.codebook[5].abs().max() < 10
        assert codec.nearest(latents).unique().numel() > 64


class TestTraining:
    def test_a_seed_gives_the_same_codec_and_another_seed_another(self, tmp_path: Path) -> None:
        files = []
        for number, seed in enumerate((1, 1, 2)):
            settings = CodecSettings(steps=4, batch=3, plain=2, seed=seed)
            train(silhouettes(), settings).save(tmp_path / f"{number}.npz", torch.float32)
            files.append((tmp_path / f"{number}.npz").read_bytes())
        assert files[0] == files[1]
        assert files[0] != files[2]

    def test_it_learns_through_the_codebook(self) -> None:
        """Masks of a disc and a cross come back better than the best answer that looks at nothing."""
        errors: list[float] = []
        before = torch.random.get_rng_state()
        settings = CodecSettings(steps=200, batch=12, plain=60, learning_rate=3e-4)
        codec = train(silhouettes(), settings, lambda step, error: errors.append(error))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert len(errors) == 200
        assert not codec.training
        assert np.mean(errors[-10:]) < 0.45 < 0.55 < np.mean(errors[50:60])
        masks = MaskMaker(silhouettes(), seed=7)(64)
        inside, drawn = masks > 0.5, codec.decode(codec.encode(masks)) > 0
        constant = (inside.float().mean(0) > 0.5).expand_as(inside)
        assert iou(inside, drawn) > iou(inside, constant) + 0.1

    def test_bfloat16_changes_little(self) -> None:
        errors: dict[bool, list[float]] = {True: [], False: []}
        for bfloat16, kept in errors.items():
            settings = CodecSettings(steps=3, batch=4, plain=2, learning_rate=1e-4, bfloat16=bfloat16)
            train(silhouettes(), settings, lambda step, error, kept=kept: kept.append(error))  # type: ignore[misc]
        assert errors[True] != errors[False]
        np.testing.assert_allclose(errors[True], errors[False], rtol=0.01)
