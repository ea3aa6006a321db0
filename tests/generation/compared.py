"""Both libraries continue the same rows: pairs of models, each built once, and what must be equal of their answers."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from pairs import HEADS, IMAGE, Batch, Case, Pair, batch, build, case_named
from torch import Tensor, nn

TEXTS = [case for case in HEADS if not case.family]
PICTURES = [case for case in HEADS if case.family]
GEMMA, GEMMA_3 = case_named("GemmaForCausalLM"), case_named("Gemma3ForCausalLM")
PALIGEMMA, PALIGEMMA_2 = (case_named(f"PaliGemmaForConditionalGeneration-{kind}") for kind in ("Gemma", "Gemma2"))
GEMMA_3_PICTURES = case_named("Gemma3ForConditionalGeneration")
# Some of these end tokens come by chance, so that rows end at different places. The filler is not 0, at which the
# reference fills beams with end tokens: test_defects_beams.py.
SETTINGS: Mapping[str, Any] = {
    "max_new_tokens": 12,
    "do_sample": False,
    "pad_token_id": 2,
    "eos_token_id": [1, 5, 7, 9, 11],
    "suppress_tokens": [IMAGE],  # a model that says it could not be continued without a cache
}
FILLERS = [0, 2]  # in all tests
LOOKUP = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3}
RECORDED = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


@lru_cache
def pair(case: Case) -> Pair:
    """Shared, so nobody may change it. Made by whichever test comes first, so it leaves torch's numbers alone."""
    with torch.random.fork_rng():
        made = build(case)
    for model in (made.reference, made.ours):
        attentive(model)
    return made


@torch.no_grad()
def attentive(model: nn.Module) -> None:
    """A random model repeats its last token, whose embedding the tied head looks for. Here the text decides."""
    model.get_input_embeddings().weight *= 0.1
    for name, weight in model.named_parameters():
        if name.endswith("model.norm.weight"):  # the logits keep their size
            weight.add_(1).mul_(10).sub_(1)


@lru_cache
def assistants(case: Case) -> Pair:
    """Smaller models of the same vocabulary: the same first layers, so their guesses are often right."""
    whole = pair(case)
    small = build(case, num_hidden_layers=2)
    for ours, model in ((False, small.reference), (True, small.ours)):
        source = (whole.ours if ours else whole.reference).state_dict()
        model.load_state_dict({name: source[name] for name in model.state_dict()})
    return small


def rows(case: Case, seed: int = 0, **more: Any) -> Batch:
    """A batch of tests/parity, the same for the same seed."""
    torch.manual_seed(seed)
    return batch(case, **more)


def theirs(case: Case, given: Batch, **settings: Any) -> Any:
    """What the reference's generate gives."""
    return pair(case).reference.generate(**given.reference(), **{**SETTINGS, **settings})


def ours(case: Case, given: Batch, **settings: Any) -> Any:
    """What ours gives."""
    return pair(case).ours.generate(**given.ours(), **{**SETTINGS, **settings})


@torch.no_grad()
def embedded(case: Case, given: Batch) -> dict[str, Any]:
    """The reference's arguments with pictures in their places, which its beams cannot scramble."""
    reference = pair(case).reference
    arguments = given.reference()
    embeds = reference.get_input_embeddings()(arguments.pop("input_ids"))
    if "pixel_values" in arguments:
        features = reference.get_image_features(arguments.pop("pixel_values"))
        embeds = embeds.masked_scatter((given.ids == IMAGE).unsqueeze(-1), features)
    return {"inputs_embeds": embeds, **arguments}


def calls(model: Any) -> list[int]:
    """How many tokens each call of the decoder reads, from now on."""
    lengths: list[int] = []
    layer = model.text_model().layers[0]
    layer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    return lengths


def new_tokens(given: Batch, ids: Tensor) -> Tensor:
    """[B, N] what came after the prompts."""
    return ids[:, given.ids.shape[1] :]


def assert_same_answers(expected: Any, given: Any, told: object = "") -> None:
    """The same ids, and the same logits and scores at every step of a row that has not ended."""
    assert torch.equal(expected.sequences, given.sequences), told
    goes_on = running(expected)
    for name in ("logits", "scores"):
        assert len(expected[name]) == len(given[name])
        for step, (right, mine) in enumerate(zip(expected[name], given[name], strict=True)):
            rows = goes_on[:, step]
            torch.testing.assert_close(
                mine[rows], right[rows], atol=1e-4, rtol=1e-4, msg=lambda m, s=step: f"{told} step {s}: {m}"
            )


def running(answer: Any) -> Tensor:
    """[B, N] bool: whether a row still goes on at a step; after it, only fillers come. Beams all go on."""
    steps = len(answer.logits)
    if getattr(answer, "beam_indices", None) is not None:
        return torch.ones(len(answer.logits[0]), steps, dtype=torch.bool)
    words = ~torch.isin(answer.sequences[:, -steps:], torch.tensor(FILLERS))
    return words.flip(1).cumsum(1).flip(1) > 0
