"""Arguments of other types, and calls that are refused before anything is cached."""

from typing import Any

import pytest
import tiny
import torch

from gemlens import Gemma3ForSequenceClassification, InputError, SiglipVisionModel, StaticCache

IDS = tiny.words(1, 4)
WHOLE = tiny.prompt("gemma3-pictures", rows=1, length=8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_ids": IDS.tolist()}, "input_ids are a list"),
        ({"input_ids": IDS.to(torch.int16)}, "whole numbers"),
        ({"input_ids": IDS, "position_ids": [[0, 1, 2, 3]]}, "position_ids are a list"),
        ({"input_ids": IDS, "labels": IDS.tolist()}, "labels are a list"),
        ({"input_ids": IDS, "logits_to_keep": 1.5}, r"logits_to_keep is 1\.5"),
        ({"input_ids": IDS, "logits_to_keep": torch.tensor([4])}, "indices beyond the 4 tokens"),
        ({"input_ids": IDS, "logits_to_keep": torch.tensor([-5])}, "indices beyond the 4 tokens"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "leave logits_to_keep at 0"),
    ],
)
def test_other_types_are_sentences(arguments: dict[str, Any], says: str) -> None:
    for family in ("gemma", "gemma3-pictures"):
        with pytest.raises(InputError, match=says):
            tiny.model(family)(**arguments)


def test_pictures_and_types_of_other_types_are_sentences() -> None:
    with pytest.raises(InputError, match="pixel_values are a NoneType"):
        tiny.build(SiglipVisionModel, tiny.vision_config())(None)
    with pytest.raises(InputError, match="token_type_ids are a list"):
        tiny.model("gemma3-pictures")(**WHOLE, token_type_ids=[[0] * 8])


@pytest.mark.parametrize("labels", [IDS[:, :2], IDS + tiny.VOCABULARY])
@pytest.mark.parametrize("family", ["gemma", "gemma3-pictures", "paligemma"])
def test_refused_labels_leave_the_cache_as_it_was(family: str, labels: torch.Tensor) -> None:
    model = tiny.model(family)
    cache = model(tiny.words(1, 3, seed=1)).past_key_values
    with pytest.raises(InputError, match="labels"):
        model(IDS, past_key_values=cache, labels=labels)
    assert cache.get_seq_length() == 3


def test_labels_for_other_rows_are_a_sentence() -> None:
    model = tiny.build(Gemma3ForSequenceClassification, tiny.config("gemma3-pictures"))
    with pytest.raises(InputError, match="labels are for 2 rows, but 1 came"):
        model(IDS, labels=torch.tensor([0, 1]))


def test_a_negative_padding_id_is_no_row() -> None:
    model = tiny.fresh("gemma", pad_token_id=-1)
    assert model.get_input_embeddings().padding_idx is None
    last = torch.full((1, 3), tiny.VOCABULARY - 1)
    model(last, labels=last).loss.backward()
    assert model.get_input_embeddings().weight.grad[-1].any()


def test_placeholders_may_be_scored_beside_token_types_as_in_the_reference() -> None:
    model, ids = tiny.model("gemma3-pictures"), WHOLE["input_ids"]
    types = (ids == tiny.PICTURE).long()
    given = model(**WHOLE, token_type_ids=types, labels=ids).loss
    torch.testing.assert_close(given, model(**WHOLE, labels=ids).loss)
    with pytest.raises(InputError, match="labels score"):
        model(**WHOLE, token_type_ids=torch.ones_like(ids), labels=ids)


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_a_static_cache_of_inference_mode_goes_on_outside(family: str) -> None:
    model, ids = tiny.model(family), tiny.words(1, 8)
    cache = StaticCache(model.config, 8)
    with torch.inference_mode():
        model(ids[:, :5], past_key_values=cache)
    parts = [model(ids[:, start:end], past_key_values=cache).logits for start, end in ((5, 6), (6, 8))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits[:, 5:], atol=1e-5, rtol=1e-4)
