"""The mask codec against a second implementation in numpy, written as TensorFlow and JAX read the file's layout."""

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemlens.assets import MODEL
from gemlens.errors import CheckpointError, InputError
from gemlens.scenes.kinds import KINDS
from gemlens.scenes.scene import draw
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.tasks.masks import decode_mask, encode_mask

Arrays = dict[str, np.ndarray]


# -- the second implementation: float64, [N, H, W, C], kernels [height, width, in, out] --------------------------------


def correlate(x: np.ndarray, kernel: np.ndarray, stride: int, pads: list[tuple[int, int]]) -> np.ndarray:
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    height, width = ((x.shape[1 + axis] - kernel.shape[axis]) // stride + 1 for axis in (0, 1))
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for dy, dx in product(range(kernel.shape[0]), range(kernel.shape[1])):
        seen = x[:, dy : dy + stride * height : stride, dx : dx + stride * width : stride]
        out += np.einsum("nhwi,io->nhwo", seen[:, :height, :width], kernel[dy, dx])
    return out


def same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """tf.nn.conv2d(padding="SAME"): the smaller half before."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def conv_same(arrays: Arrays, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
    kernel = arrays[f"{name}.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    pads = [same(x.shape[1 + axis], kernel.shape[axis], stride) for axis in (0, 1)]
    return correlate(x, kernel, stride, pads) + arrays[f"{name}.bias"]


def conv_transpose(arrays: Arrays, name: str, x: np.ndarray, padding: int = 2) -> np.ndarray:
    """jax.lax.conv_transpose(strides=2, transpose_kernel=True) of a kernel [height, width, out, in]."""
    kernel = arrays[f"{name}.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    spread = np.zeros((len(x), 2 * x.shape[1] - 1, 2 * x.shape[2] - 1, x.shape[3]))
    spread[:, ::2, ::2] = x
    return correlate(spread, kernel, 1, [(padding, padding)] * 2) + arrays[f"{name}.bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def residual(arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    hidden = relu(conv_same(arrays, f"{name}.net.0", x))
    hidden = relu(conv_same(arrays, f"{name}.net.2", hidden))
    return x + conv_same(arrays, f"{name}.net.4", hidden)


def numpy_encode(arrays: Arrays, masks: np.ndarray) -> np.ndarray:
    x = 2.0 * (masks[..., None].astype(np.float64) - 0.5)
    for layer in (0, 2, 4, 6):
        x = relu(conv_same(arrays, f"encoder.{layer}", x, stride=2))
    for layer in (8, 9):
        x = residual(arrays, f"encoder.{layer}", x)
    x = conv_same(arrays, "encoder.10", x)
    differences = x.reshape(-1, 16, 1, 512) - arrays["_vq_vae._embedding"].astype(np.float64)
    return (differences**2).sum(-1).argmin(-1)


def numpy_decode(arrays: Arrays, codes: np.ndarray) -> np.ndarray:
    x = arrays["_vq_vae._embedding"].astype(np.float64)[codes].reshape(-1, 4, 4, 512)
    x = relu(conv_same(arrays, "decoder.0", x))
    for layer in (2, 3):
        x = residual(arrays, f"decoder.{layer}", x)
    for layer in (4, 6, 8, 10):
        x = relu(conv_transpose(arrays, f"decoder.{layer}", x))
    return conv_same(arrays, "decoder.12", x)[..., 0]


# -- what is tested ----------------------------------------------------------------------------------------------------


def blobs(count: int, seed: int) -> Tensor:
    """Masks [count, 64, 64] in [0, 1] with soft edges."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 6, 6, generator=random)
    fine = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[:, 0]
    return (8 * (fine - 0.5) + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    """Random weights, and a codebook that lies among the latents, so that many different codes are chosen."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        codec = MaskCodec().eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(2.0)  # torch's first weights make every layer's values smaller than the last one's
        latents = codec.latents(blobs(40, seed=2)).flatten(0, 1)
        codec.codebook.copy_(latents[::5])
    return codec


@pytest.fixture(scope="module")
def file(codec: MaskCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "full.npz"
    codec.save(path, torch.float32)
    return path


@pytest.fixture(scope="module")
def arrays(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as opened:
        return dict(opened)


def same_weights(one: MaskCodec, other: MaskCodec) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestArithmetic:
    def test_masks_get_the_codes_of_the_numpy_implementation(self, codec: MaskCodec, arrays: Arrays) -> None:
        masks = blobs(12, seed=3)
        codes = codec.encode(masks)
        assert codes.shape == (12, 16)
        assert codes.dtype == torch.int64
        assert codes.unique().numel() > 30, "codes are too alike to prove anything"
        np.testing.assert_array_equal(codes.numpy(), numpy_encode(arrays, masks.numpy()))

    def test_codes_get_the_values_of_the_numpy_implementation(self, codec: MaskCodec, arrays: Arrays) -> None:
        codes = torch.from_numpy(np.random.default_rng(0).integers(0, 128, (6, 16)))
        drawn = codec.decode(codes)
        expected = numpy_decode(arrays, codes.numpy())
        assert drawn.shape == (6, 64, 64)
        assert expected.std() > 0.01, "values are too alike to prove anything"
        np.testing.assert_allclose(drawn.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    def test_a_batch_gives_what_its_rows_give(self, codec: MaskCodec) -> None:
        masks = blobs(5, seed=4)
        codes = codec.encode(masks)
        rows = torch.cat([codec.encode(mask[None]) for mask in masks])
        assert torch.equal(codes, rows)
        drawn = torch.cat([codec.decode(row[None]) for row in codes])
        torch.testing.assert_close(codec.decode(codes), drawn, rtol=1e-4, atol=1e-4)

    def test_the_first_of_equally_near_vectors_is_chosen(self, codec: MaskCodec) -> None:
        twins = MaskCodec()
        twins.codebook.copy_(codec.codebook[torch.arange(128) // 2])
        chosen = twins.nearest(codec.codebook[:64])
        assert torch.equal(chosen, 2 * torch.arange(64))

    def test_nothing_to_encode_or_decode_gives_nothing(self, codec: MaskCodec) -> None:
        codes = codec.encode(torch.zeros(0, 64, 64))
        assert codes.shape == (0, 16)
        assert codec.decode(codes).shape == (0, 64, 64)

    def test_gradients_pass_through_latents_and_draw_only(self, codec: MaskCodec) -> None:
        masks = blobs(1, seed=5)
        assert codec.draw(codec.latents(masks)).requires_grad
        assert not codec.decode(codec.encode(masks)).requires_grad


class TestArguments:
    @pytest.mark.parametrize("shape", [(64, 64), (1, 1, 64, 64), (2, 64, 63)])
    def test_masks_of_another_shape_are_refused(self, codec: MaskCodec, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"pass \[N, 64, 64\]"):
            codec.encode(torch.zeros(shape))

    @pytest.mark.parametrize("value", [255.0, -0.1, float("nan"), float("inf")])
    def test_masks_outside_0_to_1_are_refused(self, codec: MaskCodec, value: float) -> None:
        with pytest.raises(InputError, match="outside 0 to 1"):
            codec.encode(torch.full((1, 64, 64), value))

    def test_masks_that_resizing_rounded_past_1_pass(self, codec: MaskCodec) -> None:
        masks = blobs(2, seed=6)
        assert torch.equal(codec.encode(masks * (1 + 2e-7)), codec.encode(masks))

    def test_masks_of_truth_values_pass(self, codec: MaskCodec) -> None:
        masks = blobs(2, seed=7) > 0.5
        assert torch.equal(codec.encode(masks), codec.encode(masks.float()))

    @pytest.mark.parametrize(
        "codes",
        [torch.zeros(16), torch.zeros(1, 15, dtype=torch.int64), torch.zeros(1, 16), torch.zeros(1, 16) > 0],
        ids=["one dimension", "15 codes", "floats", "truth values"],
    )
    def test_codes_of_another_kind_are_refused(self, codec: MaskCodec, codes: Tensor) -> None:
        with pytest.raises(InputError, match=r"pass integers \[N, 16\]"):
            codec.decode(codes)

    @pytest.mark.parametrize("value", [-1, 128])
    def test_codes_outside_the_codebook_are_refused(self, codec: MaskCodec, value: int) -> None:
        with pytest.raises(InputError, match="outside 0 to 127"):
            codec.decode(torch.full((1, 16), value))


class TestFile:
    def test_a_round_trip_in_float32_changes_nothing(self, codec: MaskCodec, file: Path) -> None:
        loaded = MaskCodec.load(file)
        assert same_weights(loaded, codec)
        assert not loaded.training

    def test_a_round_trip_in_float16_rounds_once(self, codec: MaskCodec, tmp_path: Path) -> None:
        codec.save(tmp_path / "a.npz")
        loaded = MaskCodec.load(tmp_path / "a.npz")
        for name, tensor in codec.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
        loaded.save(tmp_path / "b.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        assert (tmp_path / "a.npz").stat().st_size < 4_300_000

    def test_it_has_the_size_and_the_writing_of_the_official_file(self, file: Path, arrays: Arrays) -> None:
        """8,479,556 bytes is what a Git LFS pointer to vae-oid.npz says; numpy.savez would write the same."""
        again = io.BytesIO()
        np.savez(again, **arrays)  # type: ignore[arg-type]
        assert file.stat().st_size == len(again.getvalue()) == 8_479_556
        assert len(arrays) == 49
        assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}

    def test_what_numpy_saves_is_read(self, codec: MaskCodec, arrays: Arrays, tmp_path: Path) -> None:
        shuffled = sorted(arrays.items(), reverse=True)
        np.savez_compressed(tmp_path / "a.npz", **{name: np.asfortranarray(array) for name, array in shuffled})  # type: ignore[arg-type]
        assert same_weights(MaskCodec.load(tmp_path / "a.npz"), codec)

    def test_bfloat16_is_read(self, codec: MaskCodec, arrays: Arrays, tmp_path: Path) -> None:
        """ml_dtypes, whose bfloat16 JAX uses, has it saved as two bytes without a meaning."""
        rounded = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
        stored = {name: tensor.view(torch.int16).numpy().view("V2") for name, tensor in rounded.items()}
        np.savez(tmp_path / "a.npz", **stored)  # type: ignore[arg-type]
        loaded = MaskCodec.load(tmp_path / "a.npz")
        assert all(torch.equal(tensor, rounded[name].float()) for name, tensor in loaded.state_dict().items())

    def test_without_the_averages_of_training_it_does_the_same(
        self, codec: MaskCodec, arrays: Arrays, tmp_path: Path
    ) -> None:
        kept = {name: array for name, array in arrays.items() if "_ema_" not in name}
        np.savez(tmp_path / "a.npz", **kept)  # type: ignore[arg-type]
        masks = blobs(2, seed=8)
        assert torch.equal(MaskCodec.load(tmp_path / "a.npz").encode(masks), codec.encode(masks))

    def test_without_an_encoder_it_decodes_and_says_what_is_missing(
        self, codec: MaskCodec, arrays: Arrays, tmp_path: Path
    ) -> None:
        kept = {name: array for name, array in arrays.items() if name.startswith(("decoder.", "_vq_vae._embedding"))}
        np.savez(tmp_path / "a.npz", **kept)  # type: ignore[arg-type]
        loaded = MaskCodec.load(tmp_path / "a.npz")
        codes = torch.arange(32).view(2, 16)
        assert torch.equal(loaded.decode(codes), codec.decode(codes))
        with pytest.raises(InputError, match=r"hold a decoder only.*'encoder\.\*'"):
            loaded.encode(blobs(1, seed=9))
        loaded.save(tmp_path / "b.npz", torch.float32)
        assert same_weights(MaskCodec.load(tmp_path / "b.npz"), loaded)

    def test_reading_leaves_the_random_numbers_alone(self, file: Path) -> None:
        before = torch.random.get_rng_state()
        MaskCodec.load(file)
        assert torch.equal(torch.random.get_rng_state(), before)


class TestSaving:
    def test_another_number_format_is_refused(self, codec: MaskCodec, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"float16 or torch\.float32, not torch\.bfloat16"):
            codec.save(tmp_path / "a.npz", torch.bfloat16)

    def test_what_float16_cannot_hold_is_refused_and_the_old_file_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(b"old")
        codec = MaskCodec()
        codec.codebook[3, 4] = 1e6
        with pytest.raises(InputError, match=r"'_vq_vae\._embedding' holds values"):
            codec.save(path)
        assert path.read_bytes() == b"old"
        codec.save(path, torch.float32)
        assert MaskCodec.load(path).codebook[3, 4] == 1e6
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]

    def test_a_folder_that_is_not_there_is_refused(self, codec: MaskCodec, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be written"):
            codec.save(tmp_path / "nowhere" / "a.npz")


class TestOwnWeights:
    """Those of the package, which recipes/gemlens-tiny/train_mask_codec.py made."""

    def test_masks_of_kinds_that_were_held_out_come_back(self) -> None:
        codec, ious, codes_seen = MaskCodec.load(MODEL / "mask_codec.npz"), [], set()
        for seed in range(40):
            for found in draw(seed, "test").things:
                if found.kind in KINDS[::6]:
                    codes = encode_mask(found.mask, found.box, codec)
                    after = decode_mask(codes, found.box, found.mask.shape[::-1], codec)
                    ious.append((found.mask & after).sum() / (found.mask | after).sum())
                    codes_seen.update(codes)
        assert len(ious) > 10
        assert np.mean(ious) > 0.92
        assert len(codes_seen) > 60

    def test_ellipses_and_rectangles_come_back(self) -> None:
        codec = MaskCodec.load(MODEL / "mask_codec.npz")
        line = torch.linspace(-1, 1, 64)
        disc = line**2 + line[:, None] ** 2 < 1
        masks = torch.stack([disc, torch.ones(64, 64, dtype=torch.bool), disc & (line > 0)])
        after = codec.decode(codec.encode(masks)) > 0
        assert ((masks & after).sum((1, 2)) / (masks | after).sum((1, 2))).min() > 0.95


# -- files that are no mask codec --------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("a pickle was executed",)


def renamed(arrays: Arrays) -> Arrays:
    return {name.replace("decoder.12", "decoder.13"): array for name, array in arrays.items()}


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {other: array for other, array in arrays.items() if other != name}


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: change(arrays[name])}


def of_objects(array: np.ndarray) -> np.ndarray:
    changed = array.astype(object)
    changed.flat[0] = Bomb()
    return changed


WRONG: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "no codebook": (without("_vq_vae._embedding"), "lacks"),
    "half an encoder": (without("encoder.9.net.4.bias"), r"lacks 1 of the 49 .*'encoder\.9\.net\.4\.bias'"),
    "half the averages": (without("_vq_vae._ema_w"), r"lacks 1 of the 49 .*'_vq_vae\._ema_w'"),
    "a stranger": (lambda arrays: arrays | {"extra": np.zeros(3, np.float32)}, "holds 'extra'"),
    "another name": (renamed, r"holds 'decoder\.13"),
    "another shape": (
        replaced("decoder.4.weight", lambda a: a[:, :64]),
        r"decoder\.4\.weight.* shape \(128, 64, 4, 4\).*of shape \(128, 128, 4, 4\)",
    ),
    "one more dimension": (replaced("decoder.12.bias", lambda a: a[None]), r"decoder\.12\.bias"),
    "integers": (replaced("decoder.12.bias", lambda a: a.astype(np.int32)), "<i4"),
    "float64": (replaced("decoder.12.bias", lambda a: a.astype(np.float64)), "<f8"),
    "the other byte order": (replaced("decoder.12.bias", lambda a: a.astype(">f4")), ">f4"),
    "objects": (replaced("decoder.12.bias", of_objects), r"\|O"),
    "no number": (replaced("encoder.0.bias", lambda a: a * np.nan), "no finite numbers"),
    "nothing": (lambda arrays: {}, "lacks"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_arrays_are_refused(wrong: str, arrays: Arrays, tmp_path: Path) -> None:
    change, message = WRONG[wrong]
    np.savez(tmp_path / "a.npz", **change(arrays))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        MaskCodec.load(tmp_path / "a.npz")


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(CheckpointError, match="There is no file"):
        MaskCodec.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        MaskCodec.load(tmp_path)
    for content, message in (
        (b"", "cannot be read"),
        (b"no zip at all" * 100, "cannot be read"),
        (pickle.dumps(Bomb()), "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:55\nsize 8479556\n", "git lfs pull"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            MaskCodec.load(path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("decoder.12.bias.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("decoder.12.bias.npy", b"2")
    with pytest.raises(CheckpointError, match="same name twice"):
        MaskCodec.load(tmp_path / "a.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """100 MB of zeros in 100 kB, behind a header that fits, and behind one that claims them all."""
    for shape in ((1,), (25_000_000,)):
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("decoder.12.bias.npy", start.getvalue() + bytes(100_000_000))
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            MaskCodec.load(tmp_path / "a.npz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000, "bytes"


@pytest.mark.parametrize(
    "said",
    [
        b"(#" + b"(" * 900,
        b"-" * 900,
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), )",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        b"\xff" * 100,
    ],
    ids=["unclosed", "deep", "closed wrongly", "of Python 2", "structured", "no text"],
)
def test_a_header_that_means_nothing_is_refused(said: bytes, tmp_path: Path) -> None:
    """Some of these make numpy's reader raise a MemoryError or a TokenError, or warn."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        header = b"\x93NUMPY\x01\x00" + (len(said) + 1).to_bytes(2, "little") + said
        archive.writestr("decoder.12.bias.npy", header + b"\n" + bytes(4))
    with pytest.raises(CheckpointError, match="no array of numpy's first format"):
        MaskCodec.load(tmp_path / "a.npz")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(CheckpointError, match="holds no mask codec"):
        MaskCodec.load(tmp_path / "a.npz")


def test_a_damaged_file_is_refused_with_a_sentence(codec: MaskCodec, tmp_path: Path) -> None:
    """Bytes are changed where something is said about the numbers: the ends of the file, headers, names."""
    path = tmp_path / "a.npz"
    codec.save(path)
    sound = path.read_bytes()
    random = Random(0)
    places = [i for i in range(len(sound)) if i < 400 or i > len(sound) - 4000]
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(random.choice((1, 1, 4))):
            damaged[random.choice(places)] = random.randrange(256)
        if random.random() < 0.2:
            damaged = damaged[: random.randrange(len(damaged))]
        path.write_bytes(damaged)
        try:
            MaskCodec.load(path)
        except CheckpointError:
            refused += 1
    assert refused > 30
