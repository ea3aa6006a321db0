"""Puts a trained folder into the package: weights in bfloat16, config, tokenizer, processor; the mask codec is there.

python recipes/gemlens-tiny/pack.py build/gemlens-tiny/ask/last
"""

import argparse
from pathlib import Path

import torch

from gemlens import AutoProcessor, PaliGemmaForConditionalGeneration
from gemlens.assets import MODEL

MOST = 25e6  # bytes that the embedded model may have


def main() -> None:
    """Writes the files, and says how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(MODEL)
    AutoProcessor.from_pretrained(folder).save_pretrained(MODEL)
    sizes = {path.name: path.stat().st_size for path in sorted(MODEL.iterdir())}
    print("\n".join(f"{name:28}{size:12,}" for name, size in sizes.items()))
    if sum(sizes.values()) > MOST:
        raise SystemExit(f"Together {sum(sizes.values()):,} bytes, more than {MOST:,.0f}.")


if __name__ == "__main__":
    main()
