"""Soft caps that the reference forgets: under SDPA, in PaliGemma 2's head, in Gemma 3's attention and multimodal head.

Model-facts 2.1, 2.4, 3.3 and pitfall 30. The float64 decoder of oracle.py says who is right.
"""

import pytest
import torch
import transformers
from oracle import capped, causal, exact_embeds, exact_logits
from pairs import IMAGE, WINDOW, Pair, answers, batch, build, case_named, gap

import gemlens

PALIGEMMA_2 = case_named("PaliGemmaForConditionalGeneration-Gemma2")


def masks(length: int) -> dict[str, torch.Tensor]:
    return {"full_attention": causal(length), "sliding_attention": causal(length, WINDOW)}


@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"])
@torch.no_grad()
def test_where_nothing_is_forgotten_both_are_the_float64_decoder(name: str) -> None:
    case = case_named(name)
    pair = build(case)
    rows = batch(case)
    theirs, ours = answers(pair, rows)
    for index, ids in enumerate(rows.ids):
        exact = exact_logits(pair.reference, exact_embeds(pair.reference, ids), masks(len(ids)))
        assert gap(exact, theirs.logits[index].double()) < 1e-4
        assert gap(exact, ours.logits[index].double()) < 1e-4


@torch.no_grad()
def test_sdpa_drops_gemma_2s_attention_cap_there_and_is_refused_here() -> None:
    case = case_named("Gemma2ForCausalLM")
    rows = batch(case)
    eager, sdpa = build(case), build(case, attention="sdpa")
    assert eager.reference.config.attn_logit_softcapping == 2.0
    theirs, ours = answers(eager, rows)
    fused = sdpa.reference(**rows.reference()).logits
    assert gap(theirs.logits, fused) > 0.5  # the default of the reference
    assert gap(theirs.logits, ours.logits) < 1e-4  # the default here
    uncapped = build(case, attn_logit_softcapping=None)
    assert gap(uncapped.reference(**rows.reference()).logits, fused) < 1e-4
    with pytest.raises(gemlens.InputError, match="soft cap"):
        gemlens.Gemma2ForCausalLM(sdpa.ours.config, attn_implementation="sdpa")
    with pytest.raises(gemlens.InputError, match="soft cap"):
        sdpa.ours.set_attn_implementation("sdpa")
    assert uncapped.ours.config.attn_logit_softcapping is None
    gemlens.Gemma2ForCausalLM(uncapped.ours.config, attn_implementation="sdpa")


@torch.no_grad()
def test_paligemma_2_loses_its_attention_cap_by_default_there_and_keeps_it_here() -> None:
    rows = batch(PALIGEMMA_2)
    fused = build(PALIGEMMA_2, attention="sdpa").reference(**rows.reference()).logits
    theirs, ours = answers(build(PALIGEMMA_2), rows)
    assert gap(theirs.logits, fused) > 0.5
    assert gap(theirs.logits, ours.logits) < 1e-4


@pytest.mark.parametrize("cap", [3.0, 30.0])
@torch.no_grad()
def test_paligemma_2_has_no_final_cap_there_and_has_it_here(cap: float) -> None:
    pair = build(PALIGEMMA_2, final_logit_softcapping=cap)
    rows = batch(PALIGEMMA_2, pictures=(1, 1, 1))
    theirs, ours = answers(pair, rows)
    assert gap(theirs.logits, ours.logits) > 0.01
    assert gap(capped(theirs.logits, cap), ours.logits) < 1e-4
    assert torch.equal(theirs.logits.argmax(-1), ours.logits.argmax(-1))
    assert rows.pixels is not None
    ids = rows.ids[0]
    embeds = exact_embeds(pair.reference, ids, rows.pixels[:1], IMAGE)
    exact = exact_logits(pair.reference, embeds, torch.ones(len(ids), len(ids), dtype=torch.bool))
    assert gap(exact, ours.logits[0].double()) < 1e-4
    # The text model of the same checkpoint does apply it, in the reference too.
    assert transformers.Gemma2Config().final_logit_softcapping == 30.0


@torch.no_grad()
def test_paligemma_2s_loss_is_that_of_capped_logits() -> None:
    pair = build(PALIGEMMA_2, final_logit_softcapping=3.0)
    rows = batch(PALIGEMMA_2)
    theirs, ours = answers(pair, rows, labels=rows.labels)
    logits, targets = capped(theirs.logits, 3.0)[:, :-1], rows.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert abs(theirs.loss - expected) > 1e-3
    assert abs(ours.loss - expected) < 1e-5


@torch.no_grad()
def test_gemma_3_ignores_an_attention_cap_there_and_applies_it_here() -> None:
    case = case_named("Gemma3ForCausalLM")
    pair, uncapped = build(case, attn_logit_softcapping=0.5), build(case)
    rows = batch(case)
    theirs, ours = answers(pair, rows)
    assert gap(theirs.logits, uncapped.reference(**rows.reference()).logits) == 0.0
    assert gap(theirs.logits, ours.logits) > 0.1
    for index, ids in enumerate(rows.ids):
        exact = exact_logits(pair.reference, exact_embeds(pair.reference, ids), masks(len(ids)))
        assert gap(exact, ours.logits[index].double()) < 1e-4
    with pytest.raises(gemlens.InputError, match="soft cap"):
        pair.ours.set_attn_implementation("sdpa")


@torch.no_grad()
def test_multimodal_gemma_3_ignores_a_final_cap_there_and_applies_it_here() -> None:
    case = case_named("Gemma3ForConditionalGeneration")
    pair: Pair = build(case, final_logit_softcapping=3.0)
    rows = batch(case)
    theirs, ours = answers(pair, rows)
    assert gap(theirs.logits, ours.logits) > 0.1
    assert gap(capped(theirs.logits, 3.0), ours.logits) < 1e-4
    # Gemma3ForCausalLM applies it in the reference as well, so a text prompt has two answers there and one here.
    text = transformers.Gemma3ForCausalLM(pair.reference.config.text_config).eval()
    text.model.load_state_dict(pair.reference.model.language_model.state_dict())
    plain = batch(case, pictures=(0, 0, 0))
    expected = text(plain.ids).logits
    assert gap(pair.reference(plain.ids).logits, expected) > 0.1
    assert gap(pair.ours(plain.ids).logits, expected) < 1e-4
