"""Any conversation of text and pictures, in any batch, padding and cache, gives what the reference gives for the whole.

The reference is handed masks that are written out here, so that none of its mask defects matter.
"""

import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import IMAGE, build, case_named, gap, random_ids
from torch import Tensor

import gemlens

TOKENS = 4  # of a picture
FULL, SLIDING = "full_attention", "sliding_attention"

# A turn of one row: counts of words, 0 for a picture. Every turn ends with a word, which keeps turns apart.
turns_of_a_row = st.lists(st.integers(0, 4).map(lambda words: max(0, words - 1)), max_size=4)
conversations = st.integers(1, 3).flatmap(
    lambda rows: st.lists(st.lists(turns_of_a_row, min_size=rows, max_size=rows), min_size=1, max_size=4)
)


def written(turn: list[int]) -> list[int]:
    """The ids of one row's turn."""
    return [token for words in turn for token in (random_ids(words) if words else [IMAGE] * TOKENS)] + random_ids(1)


def padded(rows: list[list[int]], left: bool) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor(
        [[0] * (longest - len(row)) + row if left else row + [0] * (longest - len(row)) for row in rows]
    )


def whole_masks(ids: Tensor, window: int) -> dict[str, Tensor]:
    """Additive masks of one row: causal, with a window or not, and every picture sees itself."""
    numbers, run, last = [], 0, 0
    for token in ids.tolist():
        run = run + 1 if token == IMAGE else 0
        last += run % TOKENS == 1
        numbers.append(last if run else 0)
    number = torch.tensor(numbers)
    same = (number[:, None] == number) & (number > 0)
    back = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
    lowest = torch.finfo(torch.float32).min
    seen = {FULL: (back >= 0) | same, SLIDING: (back >= 0) & (back < window) | same}
    return {kind: torch.where(mask, 0.0, lowest)[None, None] for kind, mask in seen.items()}


def cache_named(name: str, config: gemlens.Gemma3Config, room: int) -> gemlens.Cache:
    if name == "static":
        return gemlens.StaticCache(config, room)
    return gemlens.DynamicCache(config) if name == "dynamic" else gemlens.DynamicCache()


@given(
    conversation=conversations,
    kinds=st.lists(st.sampled_from([FULL, SLIDING]), min_size=3, max_size=3),
    window=st.sampled_from([1, 2, 5, 9]),
    cache=st.sampled_from(["dynamic", "unforgetting", "static"]),
    left=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
@torch.no_grad()
def test_any_conversation_is_the_references_whole(
    conversation: list[list[list[int]]], kinds: list[str], window: int, cache: str, left: bool
) -> None:
    case = case_named("Gemma3ForConditionalGeneration")
    pair = build(case, sliding_window=window, layer_types=kinds, num_hidden_layers=3)
    assert isinstance(pair.reference, transformers.Gemma3ForConditionalGeneration)
    calls = [padded([written(row) for row in turn], left) for turn in conversation]
    ids = torch.cat(calls, dim=1)
    mask = (ids > 0).long()
    pixels: list[list[Tensor]] = [[] for _ in ids]
    held, results, seen = cache_named(cache, pair.ours.config, ids.shape[1]), [], 0
    for call in calls:
        seen += call.shape[1]
        new = [torch.randn(int((row == IMAGE).sum()) // TOKENS, 3, 20, 20) for row in call]
        for row, pictures in enumerate(new):
            pixels[row].append(pictures)
        given_pictures = {"pixel_values": torch.cat(new)} if sum(map(len, new)) else {}
        output = pair.ours(call, attention_mask=mask[:, :seen], past_key_values=held, **given_pictures)
        results.append(output.logits)
    ours = torch.cat(results, dim=1)
    assert ours.isfinite().all()
    for row, real in enumerate(mask.bool()):
        text = ids[row, real]
        own = torch.cat(pixels[row])
        pictures = {"pixel_values": own} if len(own) else {}
        theirs = pair.reference(text.unsqueeze(0), attention_mask=whole_masks(text, window), **pictures).logits
        assert gap(theirs[0], ours[row, real]) < 1e-4
