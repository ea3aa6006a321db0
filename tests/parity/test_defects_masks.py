"""Masks that the reference gets wrong unless it is helped: answers seen, prefixes lost, pictures causal or merged.

Model-facts 3.3, 3.4, 4.3 and pitfalls 3 to 9, 24, 25. What is right is said by the float64 decoder of oracle.py with
the mask written out, or by the reference itself when it is given what it needs.
"""

import pytest
import torch
from oracle import causal, exact_embeds, exact_logits
from pairs import IMAGE, PALIGEMMA_CASES, WINDOW, Batch, Case, Pair, answers, batch, build, case_named, gap
from torch import Tensor

import gemlens

PALIGEMMAS = [case for case in PALIGEMMA_CASES if case.has_head]
GEMMA_3 = case_named("Gemma3ForConditionalGeneration")


def prefix_mask(answer: Tensor) -> Tensor:
    """[S, S] bool of PaliGemma: everybody sees the prompt, the answer is causal."""
    return causal(len(answer)) | ~answer


def exact_row(pair: Pair, rows: Batch, index: int, visible: Tensor | dict[str, Tensor]) -> Tensor:
    row = rows.row(index)
    return exact_logits(pair.reference, exact_embeds(pair.reference, row.ids[0], row.pixels, IMAGE), visible)


@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
@torch.no_grad()
def test_labels_alone_show_the_answer_there_and_not_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case, pictures=(1, 1, 1))
    changed = rows.ids.clone()
    changed[:, -1] = (rows.ids[:, -1] + 7) % 80 + 3
    labels = {"labels": rows.labels}
    before = torch.arange(rows.ids.shape[1] - 1)
    moved = []
    for model in (pair.reference, pair.ours):
        one, other = (
            model(**{**rows.ours(**labels), "input_ids": ids}).logits[:, before] for ids in (rows.ids, changed)
        )
        moved.append(gap(one, other))
    assert moved[0] > 0.1
    assert moved[1] == 0.0
    told, ours = answers(pair, rows, **labels)  # the reference with token types
    assert gap(told.logits, ours.logits) < 1e-4
    for index in range(3):
        exact = exact_row(pair, rows, index, prefix_mask(rows.answer[index]))
        assert gap(exact, ours.logits[index].double()) < 1e-4


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
@torch.no_grad()
def test_an_answer_begins_at_its_first_label_though_later_ones_are_not_scored(case: Case, padding: str) -> None:
    pair = build(case)
    rows = batch(case, padding)
    labels = rows.labels
    for row in labels:
        row[(row != -100).nonzero().flatten()[1:3]] = -100
    theirs, ours = pair.reference(**rows.reference(labels=labels)), pair.ours(**rows.ours(labels=labels))
    assert gap(theirs.logits, ours.logits, rows.real) < 1e-4
    assert gap(theirs.loss, ours.loss) < 1e-5


@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
@torch.no_grad()
def test_no_attention_mask_loses_the_prefix_in_training_there_and_not_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case, pictures=(1, 1, 1))
    theirs, ours = rows.reference(labels=rows.labels), rows.ours(labels=rows.labels)
    whole = pair.reference(**theirs).logits
    for arguments in (theirs, ours):
        arguments.pop("attention_mask")
    lost = pair.reference(**theirs).logits
    assert gap(whole, lost) > 0.1
    assert gap(whole, pair.ours(**ours).logits) < 1e-4
    exact = exact_row(pair, rows, 0, causal(rows.ids.shape[1]))
    assert gap(exact, lost[0].double()) < 1e-4  # what the reference did: the prompt was causal


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("case", PALIGEMMAS, ids=str)
@torch.no_grad()
def test_token_types_without_labels_are_ignored_there_and_obeyed_here(case: Case, padding: str) -> None:
    pair = build(case)
    rows = batch(case, padding)
    types = {"token_type_ids": rows.answer.long()}
    ignored = pair.reference(**rows.ours(**types)).logits
    assert gap(ignored, pair.reference(**rows.ours()).logits) == 0.0
    scoring, _ = answers(pair, rows, labels=rows.labels)
    ours = pair.ours(**rows.ours(**types)).logits
    assert gap(scoring.logits, ignored, rows.real) > 0.1
    assert gap(scoring.logits, ours, rows.real) < 1e-4


def test_types_by_which_the_answer_is_seen_are_refused_here() -> None:
    case = PALIGEMMAS[0]
    pair = build(case)
    rows = batch(case, pictures=(1, 1, 1))
    zeros, ones = torch.zeros_like(rows.ids), torch.ones_like(rows.ids)
    for types in (zeros, ones):
        assert pair.reference(**rows.ours(labels=rows.labels, token_type_ids=types)).loss > 0
    with pytest.raises(gemlens.InputError, match="answer would be visible"):
        pair.ours(**rows.ours(labels=rows.labels, token_type_ids=zeros))
    with pytest.raises(gemlens.InputError, match="picture tokens"):
        pair.ours(**rows.ours(labels=rows.labels, token_type_ids=ones))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_gemma_3_without_token_types_is_causal_over_pictures_there_and_not_here(padding: str) -> None:
    pair = build(GEMMA_3)
    rows = batch(GEMMA_3, padding)
    untold = pair.reference(**rows.ours()).logits
    told, ours = answers(pair, rows)
    assert gap(told.logits, untold, rows.real) > 0.1
    assert gap(told.logits, ours.logits, rows.real) < 1e-4
    for index in range(3):
        ids = rows.row(index).ids[0]
        picture = ids == IMAGE
        number = (picture & ~torch.nn.functional.pad(picture, (1, 0))[:-1]).cumsum(0)
        same = picture & picture[:, None] & (number == number[:, None])
        masks = {"full_attention": causal(len(ids)) | same, "sliding_attention": causal(len(ids), WINDOW) | same}
        exact = exact_row(pair, rows, index, masks)
        assert gap(exact, ours.logits[index, rows.real[index]].double()) < 1e-4


@torch.no_grad()
def test_adjacent_pictures_merge_there_and_stay_apart_here() -> None:
    pair = build(GEMMA_3)
    ids = torch.tensor([[5, 6, *[IMAGE] * 8, 7, 8, 9]])
    rows = Batch(ids, torch.ones_like(ids).bool(), torch.randn(2, 3, 20, 20), ids > 0, "gemma3")
    theirs, ours = answers(pair, rows, output_attentions=True)
    typed = pair.ours(**rows.reference(output_attentions=True))
    first_sees_second = [
        torch.stack([weights[..., 2:6, 6:10].sum() for weights in output.attentions])
        for output in (theirs, ours, typed)
    ]
    assert first_sees_second[0].min() > 0.1
    assert not first_sees_second[1].any()
    assert not first_sees_second[2].any()
    first, second = torch.zeros(13, dtype=torch.bool), torch.zeros(13, dtype=torch.bool)
    first[2:6], second[6:10] = True, True
    same = first & first[:, None] | second & second[:, None]
    exact = exact_row(
        pair, rows, 0, {"full_attention": causal(13) | same, "sliding_attention": causal(13, WINDOW) | same}
    )
    assert gap(exact, ours.logits[0].double()) < 1e-4
    assert gap(exact, theirs.logits[0].double()) > 0.1


@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"])
@torch.no_grad()
def test_padded_rows_depend_on_the_implementation_there_and_not_here(name: str) -> None:
    case = case_named(name)
    rows = batch(case, "left", text=20)
    theirs, ours = [], []
    for implementation in ("eager", "sdpa"):
        pair = build(case, attention=implementation, implementation=implementation)
        for results, output in zip((theirs, ours), answers(pair, rows), strict=True):
            results.append(output.logits)
    assert gap(*theirs, rows.real) < 1e-4
    assert gap(*theirs, ~rows.real) > 0.5  # a query that may see nothing gets what the kernel happens to do
    assert gap(*ours) < 1e-4
    assert torch.stack(ours).isfinite().all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("pads", [1, 2, WINDOW, 31, 64])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
@torch.no_grad()
def test_any_amount_of_padding_changes_no_real_token(name: str, pads: int, dtype: torch.dtype, rounding: float) -> None:
    model = build(case_named(name)).to(dtype).ours
    ids = torch.randint(3, 80, (1, 12))
    alone = model(input_ids=ids).logits
    for left, right in ((pads, 0), (0, pads)):
        padded = torch.nn.functional.pad(ids, (left, right))
        logits = model(input_ids=padded, attention_mask=(padded > 0).long()).logits
        assert logits.isfinite().all()
        assert gap(alone, logits[:, left : left + 12]) < rounding


@pytest.mark.parametrize("case", [*PALIGEMMAS, GEMMA_3], ids=str)
@torch.no_grad()
def test_picture_tokens_without_pictures_are_read_as_words_there_and_refused_here(case: Case) -> None:
    pair = build(case)
    rows = batch(case)
    theirs, ours = rows.reference(), rows.ours()
    assert pair.reference(**{**theirs, "pixel_values": None}).logits.isfinite().all()
    with pytest.raises(gemlens.InputError, match="no pixel_values"):
        pair.ours(**{**ours, "pixel_values": None})


@pytest.mark.parametrize("case", [*PALIGEMMAS, GEMMA_3], ids=str)
def test_a_wrong_number_of_pictures_is_an_error_in_both(case: Case) -> None:
    pair = build(case)
    rows = batch(case)
    assert rows.pixels is not None
    for wrong in (rows.pixels[1:], rows.pixels.repeat(2, 1, 1, 1)):
        for model, given in ((pair.reference, rows.reference()), (pair.ours, rows.ours())):
            with pytest.raises(ValueError, match="Image features and image tokens do not match"):
                model(**{**given, "pixel_values": wrong})
