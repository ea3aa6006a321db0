"""The documented arguments of forward do what they do in the reference."""

import pytest
import torch
import transformers
from pairs import CASES, HEADS, IMAGE, TEXT_CASES, Case, Pair, answers, batch, build, case_named, gap
from torch import Tensor

import gemlens

EXACT = 1e-4
POOLED = case_named("Gemma3ForSequenceClassification")
PER_TOKEN = [case for case in CASES if case is not POOLED]


def table(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_input_embeddings()


@pytest.mark.parametrize("pictures", [(0, 0, 0), (1, 2, 0)])
@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
@torch.no_grad()
def test_inputs_embeds_are_the_references(case: Case, pictures: tuple[int, ...]) -> None:
    pair = build(case)
    rows = batch(case, "left", pictures if case.family else (0, 0, 0))
    theirs, ours = rows.reference(), rows.ours()
    for model, given in ((pair.reference, theirs), (pair.ours, ours)):
        given["inputs_embeds"] = table(model)(given.pop("input_ids"))
    assert gap(theirs["inputs_embeds"], ours["inputs_embeds"]) < EXACT
    expected, result = pair.reference(**theirs)[case.result], pair.ours(**ours)[case.result]
    assert gap(expected, result, rows.real) < EXACT
    assert gap(expected, pair.ours(**rows.ours())[case.result], rows.real) < EXACT


@pytest.mark.parametrize("case", [case for case in PER_TOKEN if case.family], ids=str)
@torch.no_grad()
def test_image_features_put_into_inputs_embeds_by_hand_are_the_references(case: Case) -> None:
    pair = build(case)
    rows = batch(case, "left")
    assert rows.pixels is not None
    results, features = [], []
    for model, given in ((pair.reference, rows.reference()), (pair.ours, rows.ours())):
        ids = given.pop("input_ids")
        features.append(model.get_image_features(given.pop("pixel_values")))
        given["inputs_embeds"] = table(model)(ids).masked_scatter((ids == IMAGE).unsqueeze(-1), features[-1])
        if case.family == "gemma3":  # rows of numbers do not say where the pictures are
            given["token_type_ids"] = (ids == IMAGE).long()
        results.append(model(**given)[case.result])
    assert gap(*features) < EXACT
    assert gap(*results, rows.real) < EXACT


@pytest.mark.parametrize("keep", [0, 1, 4, torch.tensor([0]), torch.tensor([3, 1, 7]), torch.tensor([-1, 2])], ids=str)
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_logits_to_keep_is_the_references(case: Case, keep: int | Tensor) -> None:
    theirs, ours = answers(build(case), batch(case), logits_to_keep=keep)
    assert gap(theirs.logits, ours.logits) < EXACT


@pytest.mark.parametrize("kind", ["shifted", "random", "per row", "reversed"])
@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_position_ids_turn_as_in_the_reference(case: Case, kind: str) -> None:
    pair = build(case)
    rows = batch(case, "left")
    length = rows.ids.shape[1]
    forward = torch.arange(length)
    positions = {
        "shifted": forward.unsqueeze(0) + 9,
        "random": torch.randint(0, 60, (3, length)),
        "per row": forward + torch.tensor([[0], [4], [30]]),
        "reversed": forward.flip(0).unsqueeze(0),
    }[kind]
    theirs, ours = answers(pair, rows, position_ids=positions)
    assert gap(theirs[case.result], ours[case.result], rows.real) < EXACT
    usual = pair.ours(**rows.ours())[case.result]
    assert (gap(usual, ours[case.result], rows.real) > 0.01) == (kind in ("random", "reversed"))


@pytest.mark.parametrize("case", TEXT_CASES, ids=str)
def test_restarting_positions_pack_several_texts_as_in_the_reference(case: Case) -> None:
    pair = build(case)
    lengths = [5, 9, 1, 12]
    texts = [torch.randint(3, 80, (1, length)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    arguments = {"input_ids": torch.cat(texts, dim=1), "position_ids": positions, "use_cache": False}
    with torch.no_grad():
        theirs, ours = pair.reference(**arguments)[case.result], pair.ours(**arguments)[case.result]
        alone = torch.cat([pair.ours(input_ids=text)[case.result] for text in texts], dim=1)
    assert gap(theirs, ours) < EXACT
    assert gap(alone, ours) < EXACT


@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_cache_position_of_the_next_slots_changes_nothing(case: Case) -> None:
    pair = build(case)
    rows = batch(case, "left")
    length = rows.ids.shape[1]
    held = [transformers.DynamicCache(config=pair.reference.config.get_text_config()), None]
    results = []
    for model, given, cache in zip((pair.reference, pair.ours), (rows.reference(), rows.ours()), held, strict=True):
        cache = cache or gemlens.StaticCache(pair.ours.config, length + 2)
        mask = torch.nn.functional.pad(rows.real.long(), (0, 2), value=1)
        places = torch.arange(length + 2)
        with torch.no_grad():
            model(**given, past_key_values=cache, use_cache=True, cache_position=places[:length])
            step = {"input_ids": torch.full((3, 2), 7), "attention_mask": mask, "cache_position": places[length:]}
            results.append(model(**step, past_key_values=cache, use_cache=True)[case.result])
    assert gap(*results) < EXACT


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tuples_hold_what_the_references_hold_in_its_order(case: Case, has_labels: bool) -> None:
    rows = batch(case)
    more: dict[str, object] = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    if has_labels and not case.model.endswith("Model"):
        more["labels"] = torch.tensor([0, 1, 2]) if case is POOLED else rows.labels
    pair = build(case)
    theirs = pair.reference(**rows.reference(**more)).to_tuple()
    ours = pair.ours(**rows.ours(**more, return_dict=False))
    assert type(ours) is tuple
    assert len(theirs) == len(ours)
    for their_part, our_part in zip(theirs, ours, strict=True):
        if isinstance(their_part, tuple):
            assert max(map(gap, their_part, our_part)) < EXACT
        else:
            assert gap(their_part, our_part) < EXACT


@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_a_cache_stands_in_the_tuple_where_the_references_stands(case: Case) -> None:
    theirs, ours = answers(build(case), batch(case), use_cache=True, return_dict=False)
    kinds = [type(part).__name__.replace("DynamicCache", "cache") for part in theirs]
    assert kinds == [type(part).__name__.replace("DynamicCache", "cache") for part in ours]


@pytest.mark.parametrize("items", [1, 7, 40])
@pytest.mark.parametrize("case", [case for case in HEADS if case.family != "gemma3"], ids=str)
def test_num_items_in_batch_divides_the_loss_as_in_the_reference(case: Case, items: int) -> None:
    rows = batch(case, "right")
    pair = build(case)
    theirs, ours = answers(pair, rows, labels=rows.labels, num_items_in_batch=items)
    assert abs(theirs.loss - ours.loss) < 1e-5 * max(1.0, float(theirs.loss))
    _, tensor = answers(pair, rows, labels=rows.labels, num_items_in_batch=torch.tensor(items))
    assert torch.equal(tensor.loss, ours.loss)


def test_output_attentions_of_the_config_is_the_references_default() -> None:
    pair: Pair = build(case_named("Gemma3ForCausalLM"), output_attentions=True, output_hidden_states=True)
    theirs, ours = answers(pair, batch(case_named("Gemma3ForCausalLM")))
    assert len(theirs.attentions) == len(ours.attentions)
    assert len(theirs.hidden_states) == len(ours.hidden_states)
