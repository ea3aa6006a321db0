"""Answers from the real Gemma 3 270M and pictures through SigLIP So400m, beside transformers with the same weights.

    make real && .venv/bin/python benchmarks/generation.py

Both generate with all that `generate` does; a streamer notes when each token comes. Weights are in bfloat16 and, in
gemlens, packed for the processor (gemlens.pack), with attn_implementation="blocked", as its pipelines and its command
line have them.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from report import ROOT, Claim, write
from torch import Tensor, nn
from workers.torch_library import Moments

import gemlens

FILE = ROOT / "real" / "gemma-3-270m-q4_k_m.gguf"
ROUNDS, ROUNDS_OF_LARGE_PICTURES = 7, 5
CONTEXTS, NEW_TOKENS, PREFILL = (32, 512, 1024, 2048), 48, 1024
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip


def token_times(model: Any, ids: Tensor, count: int) -> list[float]:
    """When the prompt was taken and when each of `count` tokens came."""
    moments = Moments()
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, streamer=moments,
                           **GREEDY)  # fmt: skip
    assert found.shape[1] == ids.shape[1] + count
    return moments.found


def text_models() -> dict[str, Any]:
    """Library -> the real model."""
    load = gemlens.AutoModelForCausalLM.from_pretrained
    plain = load(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)
    config = transformers.Gemma3TextConfig(**plain.config.to_dict())
    theirs = transformers.Gemma3ForCausalLM(config).to(torch.bfloat16).eval()
    theirs.load_state_dict(plain.state_dict())
    packed = load(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)
    gemlens.pack(packed)
    packed.set_attn_implementation("blocked")
    plain.set_attn_implementation("blocked")
    return {"gemlens": packed, "gemlens, not packed": plain, "transformers": theirs}


def answers() -> list[Claim]:
    models = text_models()
    numbers = torch.Generator().manual_seed(0)
    prompts = {length: torch.randint(3, 200_000, (1, length), generator=numbers) for length in CONTEXTS}
    decode: dict[int, dict[str, list[float]]] = {length: {name: [] for name in models} for length in CONTEXTS}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for length, ids in prompts.items():
            for name, model in models.items():
                asked, first, *_, last = token_times(model, ids, NEW_TOKENS)
                decode[length][name].append((NEW_TOKENS - 1) / (last - first))
                if length == PREFILL:
                    prefill[name].append(length / (first - asked))
    claims = [
        Claim(f"decode {NEW_TOKENS} tokens after {length}", "tokens/s", figures, True)
        for length, figures in decode.items()
    ]
    return [*claims, Claim(f"prefill of {PREFILL} tokens", "tokens/s", prefill, True)]


def pictures(size: int, rounds: int) -> Claim:
    """One picture through the encoder."""
    ours = gemlens.SiglipVisionModel(gemlens.SiglipVisionConfig(image_size=size, **SO400M)).to(torch.bfloat16).eval()
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(image_size=size, **SO400M))
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(torch.bfloat16).eval()
    gemlens.pack(ours)
    ours.set_attn_implementation("blocked")
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    figures: dict[str, list[float]] = {"gemlens": [], "transformers": []}
    models: dict[str, nn.Module] = {"gemlens": ours, "transformers": theirs}
    with torch.inference_mode():
        features = [model(pixel_values=pixels).last_hidden_state.float() for model in models.values()]
        likeness = nn.functional.cosine_similarity(*features, dim=-1).min()
        assert likeness > 0.995, f"the features differ: cosine {likeness}"
        for _ in range(rounds):
            for name, model in models.items():
                figures[name].append(seconds(lambda: model(pixel_values=pixels)))  # noqa: B023
    return Claim(f"SigLIP So400m, one picture of {size} px", "s", figures)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def memory() -> Claim:
    """What 1,000 more tokens of context add to the cache of a model with five local layers to a global one."""
    model = gemlens.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16)
    caches = {"gemlens": gemlens.DynamicCache(model.config), "every layer keeps all": gemlens.DynamicCache()}
    figures = {}
    for name, cache in caches.items():
        sizes = []
        for _ in range(3):
            with torch.inference_mode():
                model(input_ids=torch.full((1, 1000), 5), past_key_values=cache, logits_to_keep=1)
            sizes.append(sum(states.untyped_storage().nbytes() for layer in cache for states in layer))
        figures[name] = [(sizes[2] - sizes[1]) / 1e6]
    return Claim("cache per 1,000 tokens of context", "MB", figures)


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    claims = [*answers(), pictures(224, ROUNDS), pictures(896, ROUNDS_OF_LARGE_PICTURES), memory()]
    notes = (
        f"{ROUNDS} rounds, {ROUNDS_OF_LARGE_PICTURES} of pictures of 896 px; bfloat16; transformers "
        f"{transformers.__version__}"
    )
    print(write("generation", "Answers and pictures (Gemma 3 270M, SigLIP So400m)", claims, notes))


if __name__ == "__main__":
    main()
