"""Brings what the CPU engine is measured beside: an environment with its peers, and the same weights for each of them.

    python benchmarks/peers.py        some 15 minutes, most of them llama.cpp's compiler; then nothing is left to do

build/peers/                                an environment with benchmarks/peers.txt
build/peers/weights/bfloat16                the real Gemma 3 270M of real/, its blocks as numbers, for transformers
build/peers/weights/openvino-int8           the same in OpenVINO's representation
build/peers/weights/{1b,4b}-q4_0.gguf       numbers by chance in Gemma 3's shapes, with the real vocabulary
build/peers/weights/paligemma-3b            the same of PaliGemma's at 224 pixels, in bfloat16
build/peers/weights/siglip-896              the same of Gemma 3's picture encoder, So400m at 896 pixels
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gemlens import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from gemlens.checkpoints.gguf_export import export_gguf
from gemlens.processing.text.gguf_vocabulary import gguf_vocabulary

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
PEERS = ROOT / "build" / "peers"
WEIGHTS = PEERS / "weights"
PYTHON = PEERS / "bin" / "python"
BFLOAT16, OPENVINO = WEIGHTS / "bfloat16", WEIGHTS / "openvino-int8"
PALIGEMMA_3B, SIGLIP_896 = WEIGHTS / "paligemma-3b", WEIGHTS / "siglip-896"
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
           "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512},
    "4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
           "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024},
}  # fmt: skip
PALIGEMMA: dict[str, Any] = {
    "text_config": {"model_type": "gemma", "vocab_size": 257216, "hidden_size": 2048, "intermediate_size": 16384,
                    "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256},
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                      "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False},
    "image_token_index": 257152, "projection_dim": 2048,
}  # fmt: skip


def environment() -> None:
    """Installs the peers, unless they are those of peers.txt already."""
    wanted = Path(__file__).with_name("peers.txt").read_text()
    done = PEERS / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "-r", Path(__file__).with_name("peers.txt")], check=True)
    done.write_text(wanted)


def once(place: Path, make: Callable[[Path], object]) -> None:
    """Makes what is not there; what was begun and not finished is never taken for it."""
    if place.exists():
        return
    began = place.with_name(f"unfinished-{place.name}")
    shutil.rmtree(began, ignore_errors=True)
    began.parent.mkdir(parents=True, exist_ok=True)
    print(f"{place.relative_to(ROOT)} ...", flush=True)
    make(began)
    began.rename(place)


def as_numbers(place: Path) -> None:
    """The blocks of the real file as bfloat16, with its tokenizer."""
    AutoModelForCausalLM.from_pretrained(REAL.parent, gguf_file=REAL.name, dtype=torch.bfloat16).save_pretrained(place)
    AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name).save_pretrained(place)


def as_openvino(place: Path) -> None:
    """The same in eight bits, as OpenVINO's own tools write it."""
    task = ["--task", "text-generation-with-past", "--weight-format", "int8"]
    subprocess.run(
        [PYTHON.with_name("optimum-cli"), "export", "openvino", "--model", BFLOAT16, *task, place], check=True
    )


def by_chance(shape: str, place: Path) -> None:
    """A file whose layers are in Q4_0 and whose head is in Q8_0."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=262144, **SHAPES[shape]))
    torch.set_default_dtype(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    export_gguf(model, gguf_vocabulary(tokenizer, 262144), place, "q4")


def paligemma_by_chance(place: Path) -> None:
    """A folder that gemlens and transformers open."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    PaliGemmaForConditionalGeneration(PaliGemmaConfig(**PALIGEMMA)).save_pretrained(place)
    torch.set_default_dtype(torch.float32)


def siglip_by_chance(place: Path) -> None:
    """The same of the picture encoder alone."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    SiglipVisionModel(SiglipVisionConfig(**{**PALIGEMMA["vision_config"], "image_size": 896})).save_pretrained(place)
    torch.set_default_dtype(torch.float32)


def main() -> None:
    """Brings all."""
    environment()
    once(BFLOAT16, as_numbers)
    once(OPENVINO, as_openvino)
    for shape in SHAPES:
        once(WEIGHTS / f"{shape}-q4_0.gguf", lambda place, shape=shape: by_chance(shape, place))
    once(PALIGEMMA_3B, paligemma_by_chance)
    once(SIGLIP_896, siglip_by_chance)


if __name__ == "__main__":
    main()
