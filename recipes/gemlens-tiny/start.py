"""Makes the folder that the training of gemlens-tiny starts from: config, tokenizer, processor and first weights.

    python recipes/gemlens-tiny/start.py build/gemlens-tiny/start

Weights are random but for what is known beforehand. Places that lie near each other have similar vectors, in the
position table of the picture encoder (sines and cosines of row and column) and among the <loc> tokens. Patches become
vectors without correlation, so that the strokes of letters are as strong as large areas of colour.
"""

import argparse
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from gemlens import (
    GemmaConfig,
    GemmaTokenizerFast,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from gemlens.processing.paligemma import LOCATIONS, SEGMENTS
from gemlens.processing.text.pieces import SPACE, Kind, Pieces
from gemlens.scenes.scene import draw, page
from gemlens.scenes.source import Scenes

SIDE, PATCH = 128, 16
SEEING, WIDTH = 192, 256  # of the picture encoder and of the decoder
PICTURES = 128  # from which patches are known
CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>"]
LINES = ["\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHARACTERS = [chr(code) for code in range(33, 127)]
_LOWER = re.compile(r"[a-z]+|-")


def tokenizer() -> GemmaTokenizerFast:
    """Whole words of the drawn world's language; everything else, words in pictures too, letter by letter."""
    texts = Scenes("train", tasks=("caption", "answer", "detect")).texts(10_000)
    words = [[f"{SPACE}{word}", word] for text in texts for word in _LOWER.findall(text)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=[*CHARACTERS, SPACE], show_progress=False)
    trained.train_from_iterator((" ".join(pair) for pair in words), trainer)
    normal = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    groups = [(Kind.CONTROL, CONTROLS), (Kind.USER_DEFINED, LINES), (Kind.BYTE, BYTES), (Kind.NORMAL, normal)]
    pieces = Pieces(
        texts=[text for _, texts in groups for text in texts],
        scores=[-float(rank) for _, texts in groups for rank in range(len(texts))],
        kinds=[kind for kind, texts in groups for _ in texts],
        unknown=CONTROLS.index("<unk>"),
    )
    return GemmaTokenizerFast(tokenizer_object=pieces.tokenizer())


def processor() -> PaliGemmaProcessor:
    """Pictures squeezed to SIDE x SIDE; <image>, <loc> and <seg> tokens behind the words."""
    pictures = SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, image_seq_length=(SIDE // PATCH) ** 2)
    return PaliGemmaProcessor(pictures, tokenizer())


def config(processor: PaliGemmaProcessor) -> PaliGemmaConfig:
    """About 7 million parameters, in the layout of PaliGemma."""
    vision = SiglipVisionConfig(
        hidden_size=SEEING,
        intermediate_size=4 * SEEING,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=-(-len(processor.tokenizer) // 64) * 64,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,  # all that answers copy from a picture passes through values: one head is too narrow
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=WIDTH**-0.5,  # what keeps variances in so narrow a model; the usual 0.02 is of wide ones
    )
    return PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, projection_dim=WIDTH
    )


def waves(places: Tensor, count: int, shortest: float, longest: float) -> Tensor:
    """[N] places -> [N, count] sines and cosines whose lengths grow from shortest to longest; unit variance."""
    lengths = torch.logspace(math.log10(shortest), math.log10(longest), count // 2)
    angles = 2 * math.pi * places[:, None] / lengths
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1)


def whitening(pictures: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The patches' principal components, of nearly equal variance, turned at random: weight [D, C * p * p], bias [D].

    Args:
        pictures: [N, C, H, W].
        width: D.
    """
    patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    values, vectors = values[-width:], vectors[:, -width:]
    smooth = (values + 0.01 * values.mean() + 1e-3).rsqrt()
    weight = 0.7 * torch.nn.init.orthogonal_(torch.empty(width, width)) @ (vectors * smooth).T
    return weight, -weight @ patches.mean(0)


@torch.no_grad()
def model(config: PaliGemmaConfig, processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """The model with its first weights."""
    torch.manual_seed(0)
    made = PaliGemmaForConditionalGeneration(config)
    table = made.language_model.embed_tokens.weight
    for part, depth in (
        (made.language_model, config.text_config.num_hidden_layers),
        (made.vision_tower, config.vision_config.num_hidden_layers),
    ):
        for name, weight in part.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                weight.mul_((2 * depth) ** -0.5)  # a sum of 2 x depth of them is added to the stream
    table.normal_(std=WIDTH**-0.5)  # what the decoder reads is sqrt(WIDTH) times that
    table[processor.tokenizer.pad_token_id] = 0
    bins = torch.arange(1024.0)
    mixed = waves(bins, WIDTH, 16, 4096) @ torch.nn.init.orthogonal_(torch.empty(WIDTH, WIDTH))
    table[processor.tokenizer.convert_tokens_to_ids(list(LOCATIONS))] = 0.5 * mixed * WIDTH**-0.5
    rows = torch.arange(SIDE // PATCH, dtype=torch.float32)
    across = waves(rows, SEEING // 2, 2.5, 32)
    grid = torch.cat([across[:, None].expand(-1, len(rows), -1), across[None].expand(len(rows), -1, -1)], -1)
    embeddings = made.vision_tower.vision_model.embeddings
    embeddings.position_embedding.weight.copy_(0.5 * grid.flatten(0, 1))
    scenes = [(page if number % 2 else draw)(number).picture for number in range(PICTURES)]
    pixels = processor.image_processor(scenes, return_tensors="pt")["pixel_values"]
    weight, bias = whitening(pixels, SEEING)
    embeddings.patch_embedding.weight.copy_(weight.view_as(embeddings.patch_embedding.weight))
    embeddings.patch_embedding.bias.copy_(bias)
    return made


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    made = processor()
    started = model(config(made), made)
    started.save_pretrained(folder)
    made.save_pretrained(folder)
    print(f"{started.num_parameters():,} parameters, {len(made.tokenizer)} tokens ({len(SEGMENTS)} of them codes)")


if __name__ == "__main__":
    main()
