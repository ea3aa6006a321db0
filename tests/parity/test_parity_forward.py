"""Logits, hidden states, attention weights and losses of every class with a decoder equal the reference's."""

import pytest
import torch
from pairs import CASES, HEADS, IMAGE, PALIGEMMA_CASES, Case, answers, batch, build, case_named, gap

import gemlens

PADDINGS = ["none", "left", "right"]
PICTURES = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (1, 2, 0)]
EXACT = 1e-4


def pictures_of(case: Case) -> list[tuple[int, ...]]:
    return PICTURES if case.family else PICTURES[:1]


FORWARD = [
    pytest.param(case, padding, pictures, id=f"{case}-{padding}-{''.join(map(str, pictures))}")
    for case in CASES
    for padding in PADDINGS
    for pictures in pictures_of(case)
]


@pytest.mark.parametrize(("case", "padding", "pictures"), FORWARD)
def test_result_hidden_states_and_attentions_are_the_references(
    case: Case, padding: str, pictures: tuple[int, ...]
) -> None:
    rows = batch(case, padding, pictures)
    pair = build(case)
    theirs, ours = answers(pair, rows, output_hidden_states=True, output_attentions=True)
    pooled = theirs[case.result].dim() == 2
    assert theirs[case.result].std() > 0.1
    assert gap(theirs[case.result], ours[case.result], None if pooled else rows.real) < EXACT
    assert len(theirs.hidden_states) == len(ours.hidden_states) == pair.ours.text_model().config.num_hidden_layers + 1
    for their_state, our_state in zip(theirs.hidden_states, ours.hidden_states, strict=True):
        assert gap(their_state, our_state, rows.real) < EXACT
    for their_weights, our_weights in zip(theirs.attentions, ours.attentions, strict=True):
        assert gap(their_weights.transpose(1, 2), our_weights.transpose(1, 2), rows.real) < EXACT
    if case.family and sum(pictures) and not pooled:
        assert gap(theirs.image_hidden_states, ours.image_hidden_states) < EXACT


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # torch's, on a CPU
@pytest.mark.parametrize("implementation", [None, "eager", "flex_attention"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_attention_implementation_gives_the_references_result(case: Case, implementation: str | None) -> None:
    rows = batch(case, "left")
    theirs, ours = answers(build(case, implementation=implementation), rows)
    where = None if theirs[case.result].dim() == 2 else rows.real
    assert gap(theirs[case.result], ours[case.result], where) < EXACT
    assert ours.hidden_states is None
    assert ours.attentions is None


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_loss_and_logits_with_labels_are_the_references(case: Case, padding: str) -> None:
    rows = batch(case, padding)
    theirs, ours = answers(build(case), rows, labels=rows.labels)
    assert gap(theirs.loss, ours.loss) < 1e-5
    assert gap(theirs.logits, ours.logits, rows.real) < EXACT


def test_labels_of_padding_are_not_scored_by_multimodal_gemma_3_as_in_the_reference() -> None:
    case = case_named("Gemma3ForConditionalGeneration")
    rows = batch(case, "right")
    theirs, ours = answers(build(case), rows, labels=rows.ids)
    assert gap(theirs.loss, ours.loss) < 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if case.family], ids=str)
def test_given_token_types_change_nothing_that_ids_and_labels_say(case: Case) -> None:
    rows = batch(case, "left")
    pair = build(case)
    labels = {"labels": rows.labels} if case.has_head or case.family == "paligemma" else {}
    with torch.no_grad():
        derived = pair.ours(**rows.ours(**labels))
        given = pair.ours(**rows.reference(**labels))
    assert torch.equal(derived[case.result], given[case.result])


@pytest.mark.parametrize("case", PALIGEMMA_CASES, ids=str)
def test_picture_token_beyond_the_vocabulary_has_no_row(case: Case) -> None:
    pair = build(case, vocab_size=IMAGE)
    rows = batch(case, pictures=(1, 2, 0))
    theirs, ours = answers(pair, rows)
    assert gap(theirs[case.result], ours[case.result]) < EXACT


def test_a_text_model_in_a_multimodal_one_reads_text_as_the_reference_does() -> None:
    case = case_named("Gemma3ForConditionalGeneration")
    pair = build(case)
    rows = batch(case, "left", (0, 0, 0))
    with torch.no_grad():
        theirs = pair.reference.language_model(input_ids=rows.ids, attention_mask=rows.real.long())
        ours = pair.ours.language_model(input_ids=rows.ids, attention_mask=rows.real.long())
    assert isinstance(pair.ours.language_model, gemlens.Gemma3TextModel)
    assert gap(theirs.last_hidden_state, ours.last_hidden_state, rows.real) < EXACT


@pytest.mark.parametrize("labels", ["classes", "one-hot"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_classification_loss_is_the_references(padding: str, labels: str) -> None:
    case = case_named("Gemma3ForSequenceClassification")
    rows = batch(case, padding)
    wanted = torch.tensor([2, 0, 1]) if labels == "classes" else torch.eye(3)
    theirs, ours = answers(build(case), rows, labels=wanted)
    assert theirs.logits.shape == ours.logits.shape == (3, 3)
    assert gap(theirs.logits, ours.logits) < EXACT
    assert gap(theirs.loss, ours.loss) < 1e-5
