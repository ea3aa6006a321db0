"""Masks <-> the 16 numbers of PaliGemma's `<seg>` tokens: a VQ-VAE in the layout of the official `vae-oid.npz`.

    mask [64, 64] -> encoder -> [4, 4, 512] -> the nearest of 128 vectors each -> 16 codes
    16 codes -> [4, 4, 512] -> decoder -> [64, 64] in about [-1, 1], inside where it is above 0

Sources of the arithmetic: big_vision, `pp/proj/paligemma/segmentation.py` (encode_to_codebook_indices) and
`evaluators/proj/paligemma/transfers/segmentation.py` (get_reconstruct_masks). They take the shapes from the file; here
they are those of the network that it came from, AiT (https://arxiv.org/abs/2301.02229, github.com/SwinTransformer/AiT:
`vae/models/VQVAE.py` with `vae/configs/insseg/ait_insseg_vqvae.py`).

Not checked: the official file itself, gs://big_vision/paligemma/vae-oid.npz, which could not be reached. A Git LFS
pointer to it tells its size, 8,479,556 bytes; `save` in float32 writes exactly as many, with these 49 names and shapes.

Padding: "SAME" at stride 2 (TensorFlow), and `ConvTranspose(padding=2, transpose_kernel=True)` (flax), are `padding=1`
in torch for kernels of 4 and even sides: as many zeros on both sides.
"""

import lzma
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gemlens.errors import CheckpointError, InputError

SIDE = 64  # pixels
CODES = 128  # vectors in the codebook
LENGTH = 16  # codes per mask
_GRID, _DEPTH, _WIDTH = 4, 512, 128
_ENCODER = "encoder."
_LARGEST_FILE = 20_000_000  # bytes; the official one has 8.5 million
_LARGEST_HEADER = 1000  # bytes before the numbers of an array; numpy writes 128
# What numpy.save writes before the numbers. numpy's own reader evaluates it as Python literals, and fails in many ways.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<kind>[<>|]\w{1,4})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]{0,40})\), \} *\n",
    re.DOTALL,
)
# The kinds of numbers as files name them. numpy knows no bfloat16, so files have it as two bytes of no meaning.
_STORED = {"<f4": torch.float32, "<f2": torch.float16, "|V2": torch.bfloat16, "<V2": torch.bfloat16}
_BROKEN = "the file is damaged or incomplete; download or save it again"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)
_AVERAGES = {"_vq_vae._ema_cluster_size", "_vq_vae._ema_w"}  # what only training reads


class MaskCodec(nn.Module):
    """The encoder, the codebook and the decoder of masks; parameters have the names of the official file.

    Args:
        encoder: False for a codec that decodes only.
    """

    def __init__(self, *, encoder: bool = True) -> None:
        super().__init__()
        self._vq_vae = _Codebook()
        self.encoder = nn.Sequential(*_encoder_layers()) if encoder else None
        self.decoder = nn.Sequential(*_decoder_layers())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MaskCodec":
        """Reads an `.npz` of this layout: the official one, our own, or one without the encoder.

        Nothing in the file is executed (no pickle), and no more is unpacked than the layout has. float16 and bfloat16
        become float32.

        Raises:
            CheckpointError: the file is missing, damaged, or holds anything else than these names and shapes.
        """
        with torch.device("meta"):
            codec = cls()
        shapes = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
        tensors = _read(Path(path), shapes)
        if not any(name.startswith(_ENCODER) for name in tensors):
            codec.encoder = None
        if not tensors.keys() & _AVERAGES and "_vq_vae._embedding" in tensors:  # as if each vector was seen once
            tensors["_vq_vae._ema_cluster_size"] = torch.ones(CODES)
            tensors["_vq_vae._ema_w"] = tensors["_vq_vae._embedding"].clone()
        if missing := codec.state_dict().keys() - tensors.keys():
            raise CheckpointError(
                f"'{path}' lacks {len(missing)} of the {len(shapes)} arrays of a mask codec, such as '{min(missing)}'; "
                "download or save it again."
            )
        codec.load_state_dict(tensors, assign=True)
        return codec.eval()

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
        """Writes the official layout, whole or not at all; the same weights give the same bytes.

        Args:
            dtype: float16 (4.2 MB) or float32 (8.5 MB).

        Raises:
            InputError: another dtype, or a weight that is too large for float16 or no number.
            CheckpointError: the file cannot be written.
        """
        _write(Path(path), self.state_dict(), dtype)

    @property
    def codebook(self) -> Tensor:
        """The vectors that codes stand for, [128, 512]."""
        return self._vq_vae._embedding

    @torch.no_grad()
    def encode(self, masks: Tensor) -> Tensor:
        """Masks [N, 64, 64], 0 outside to 1 inside -> codes [N, 16], int64, row by row from the top left.

        Raises:
            InputError: masks of another shape or range, or a codec without an encoder.
        """
        if masks.ndim != 3 or masks.shape[1:] != (SIDE, SIDE) or masks.is_complex():
            raise InputError(f"masks have shape {tuple(masks.shape)}; pass [N, {SIDE}, {SIDE}], each cut to its box.")
        masks = masks.to(self.codebook)
        if not bool(((masks - 0.5).abs() < 0.501).all()):  # resizing rounds, to 1.0000001 too
            raise InputError("masks hold values outside 0 to 1; divide by the value that stands for inside.")
        return self.nearest(self.latents(masks))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [N, 16], integers from 0 to 127 -> [N, 64, 64] in about [-1, 1]; above 0 is inside.

        Raises:
            InputError: codes of another shape, kind or range.
        """
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        if codes.ndim != 2 or codes.shape[1] != LENGTH or not whole:
            raise InputError(f"codes are {codes.dtype} of shape {tuple(codes.shape)}; pass integers [N, {LENGTH}].")
        codes = codes.to(self.codebook.device, torch.int64)
        if not bool(((codes >= 0) & (codes < CODES)).all()):
            raise InputError(f"codes hold values outside 0 to {CODES - 1}; those of '<seg000>' start at 0.")
        return self.draw(self.codebook[codes])

    def latents(self, masks: Tensor) -> Tensor:
        """Masks [N, 64, 64] in [0, 1] -> what the encoder makes of them, [N, 16, 512].

        Raises:
            InputError: a codec without an encoder.
        """
        if self.encoder is None:
            raise InputError(
                "These weights hold a decoder only, so masks cannot become codes; load a file that has the arrays "
                f"'{_ENCODER}*' too, as vae-oid.npz has."
            )
        return self.encoder(2.0 * (masks[:, None] - 0.5)).flatten(2).transpose(1, 2)

    def nearest(self, latents: Tensor) -> Tensor:
        """Vectors [..., 512] -> the number of the nearest in the codebook, [...]; the first of equals."""
        flat = latents.reshape(-1, _DEPTH)
        squares = (flat**2).sum(1, keepdim=True) + (self.codebook**2).sum(1)
        return (squares - 2 * flat @ self.codebook.T).argmin(1).view(latents.shape[:-1])

    def draw(self, latents: Tensor) -> Tensor:
        """Vectors [N, 16, 512] -> [N, 64, 64] in about [-1, 1]."""
        return self.decoder(latents.transpose(1, 2).reshape(-1, _DEPTH, _GRID, _GRID)).squeeze(1)


class _Codebook(nn.Module):
    """The vectors, and the moving averages that they follow in training."""

    _embedding: Tensor
    _ema_cluster_size: Tensor
    _ema_w: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_embedding", torch.randn(CODES, _DEPTH))
        self.register_buffer("_ema_cluster_size", torch.ones(CODES))  # how often each is the nearest
        self.register_buffer("_ema_w", self._embedding.clone())  # the sum of what it is nearest to


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.net(hidden)


def _encoder_layers() -> Iterator[nn.Module]:
    """[N, 1, 64, 64] -> [N, 512, 4, 4]; a layer's place is its number in the file."""
    for width, wider in pairwise((1, 16, 32, 64, _WIDTH)):
        yield nn.Conv2d(width, wider, 4, stride=2, padding=1)
        yield nn.ReLU()
    yield from (_Residual(), _Residual(), nn.Conv2d(_WIDTH, _DEPTH, 1))


def _decoder_layers() -> Iterator[nn.Module]:
    """[N, 512, 4, 4] -> [N, 1, 64, 64]."""
    yield from (nn.Conv2d(_DEPTH, _WIDTH, 1), nn.ReLU(), _Residual(), _Residual())
    for width, narrower in pairwise((_WIDTH, _WIDTH, 64, 32, 16)):
        yield nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1)
        yield nn.ReLU()
    yield nn.Conv2d(16, 1, 1)


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The arrays of an `.npz` file as float32; some may be missing, none may be unknown or of another shape."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(f"'{path}' has more than {_LARGEST_FILE:,} bytes, so it holds no mask codec.")
        with path.open("rb") as file:
            if file.read(8) == b"version ":
                raise CheckpointError(f"'{path}' is a Git LFS pointer, not the weights; run 'git lfs pull' there.")
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]
            if len(set(names)) < len(names) or (unknown := set(names) - shapes.keys()):
                strange = min(unknown) if len(set(names)) == len(names) else "the same name twice"
                raise CheckpointError(
                    f"'{path}' holds {strange[:80]!r}, which is no array of a mask codec; pass a file like vae-oid.npz."
                )
            entries = zip(names, archive.infolist(), strict=True)
            return {name: _array(archive, entry, shapes[name], path) for name, entry in entries}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file '{path}'; pass the path of an .npz file with a mask codec.") from error
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); {_BROKEN}.") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, shape: tuple[int, ...], path: Path) -> Tensor:
    limit = prod(shape) * 4 + _LARGEST_HEADER  # whatever an entry claims, no more than this is unpacked
    with archive.open(entry) as member:
        content = member.read(limit)
    header = _HEADER.match(content)
    if header is None:
        raise ValueError(f"'{entry.filename}' is no array of numpy's first format")
    kind, sides, fortran = header["kind"].decode(), header["shape"].decode(), header["fortran"] == b"True"
    if kind not in _STORED or sides != ", ".join(map(str, shape)) + "," * (len(shape) == 1):
        raise CheckpointError(
            f"'{entry.filename}' in '{path}' holds '{kind}' of shape ({sides}); a mask codec has float32 ('<f4'), "
            f"float16 ('<f2') or bfloat16 ('|V2') of shape {shape}."
        )
    dtype, start = _STORED[kind], header.end()
    if len(content) - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"'{entry.filename}' has {len(content) - start} bytes of numbers, which is not what it says")
    flat = torch.frombuffer(bytearray(content), dtype=dtype, offset=start).float()
    # In Fortran's order the first side runs fastest, as if the array was turned over.
    tensor = flat.view(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous() if fortran else flat.view(shape)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"'{entry.filename}' holds values that are no finite numbers")
    return tensor


def _write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    if dtype not in (torch.float16, torch.float32):
        raise InputError(f"A mask codec is saved as torch.float16 or torch.float32, not {dtype}.")
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, tensor in tensors.items():
            stored = tensor.detach().cpu().to(dtype).contiguous()
            if not bool(stored.isfinite().all()):
                raise InputError(
                    f"'{name}' holds values that {dtype} cannot; save as torch.float32 if they are finite."
                )
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # not the time of writing
            with archive.open(entry, "w", force_zip64=True) as member:  # as numpy.savez does
                np.lib.format.write_array(member, stored.numpy(), allow_pickle=False)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # the renaming must not reach the disk before the content does
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be written ({error}); choose another place or make room.") from error
    finally:
        temporary.unlink(missing_ok=True)
