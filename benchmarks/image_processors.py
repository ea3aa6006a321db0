"""Pictures to pixels, beside the reference: its slow processors, which are what runs where there is no torchvision.

    .venv/bin/python benchmarks/image_processors.py

Before anything is measured, the results are compared.
"""

import time
from collections.abc import Callable

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from report import Claim, write
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor as TheirGemma3
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor as TheirSiglip

from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor, SiglipImageProcessor
from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast, SiglipImageProcessorFast

ROUNDS, FAST, SLOW, THEIRS = 25, "gemlens fast", "gemlens slow", "transformers slow"
PAN_AND_SCAN = {
    "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 256, "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}  # fmt: skip
Action = Callable[[], torch.Tensor]


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with edges and a little noise, as a camera gives."""
    x, y = np.meshgrid(np.linspace(0, 7, width), np.linspace(0, 5, height))
    waves = np.stack([np.sin(x + y), np.cos(x * y / 3), np.sign(np.sin(3 * x)) * np.cos(y)], axis=-1)
    grain = np.random.default_rng(0).normal(0, 3, waves.shape)
    return Image.fromarray(((waves + 1) * 127.5 + grain).clip(0, 255).astype(np.uint8))


def cases() -> dict[str, dict[str, Action]]:
    """What is measured -> the same thing done by each library."""
    gemma = {FAST: Gemma3ImageProcessorFast, SLOW: Gemma3ImageProcessor, THEIRS: TheirGemma3}
    siglip = {FAST: SiglipImageProcessorFast, SLOW: SiglipImageProcessor, THEIRS: TheirSiglip}

    def action(kind: type, size: int, pictures: list[Image.Image], **settings: object) -> Action:
        processor = kind(size={"height": size, "width": size})
        return lambda: processor(pictures, return_tensors="pt", **settings)["pixel_values"]

    large, medium = photo(1920, 1080), photo(640, 480)
    plans = {
        "Gemma 3, pan and scan of 1920 x 1080, 896 px": (gemma, 896, [large], PAN_AND_SCAN),
        "Gemma 3, one of 1920 x 1080, 896 px": (gemma, 896, [large], {}),
        "Gemma 3, eight of 640 x 480, 896 px": (gemma, 896, [medium] * 8, {}),
        "PaliGemma, one of 1920 x 1080, 224 px": (siglip, 224, [large], {}),
        "PaliGemma, one of 640 x 480, 224 px": (siglip, 224, [medium], {}),
        "PaliGemma, one of 640 x 480, 448 px": (siglip, 448, [medium], {}),
    }
    return {
        what: {name: action(kind, size, pictures, **settings) for name, kind in kinds.items()}
        for what, (kinds, size, pictures, settings) in plans.items()
    }


def compare(actions: dict[str, Action]) -> None:
    """Refuses to measure what is not the same."""
    fast, slow, theirs = (actions[name]() for name in (FAST, SLOW, THEIRS))
    assert torch.equal(slow, theirs)
    assert (fast - theirs).abs().mean() <= 5e-3


def measure() -> list[Claim]:
    claims = []
    for what, actions in cases().items():
        compare(actions)
        figures: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(ROUNDS):
            for name, action in actions.items():
                started = time.perf_counter()
                action()
                figures[name].append((time.perf_counter() - started) * 1e3)
        claims.append(Claim(what, "ms", figures))
    return claims


def main() -> None:
    transformers.logging.set_verbosity_error()
    notes = f"{ROUNDS} rounds; transformers {transformers.__version__}, Pillow {PIL.__version__}"
    print(write("image_processors", "Image processors", measure(), notes))


if __name__ == "__main__":
    main()
