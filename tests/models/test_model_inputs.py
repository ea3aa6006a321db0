"""Arguments that do not fit are refused with a sentence for the person who can act: what came, what was expected."""

import re
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from gemlens import (
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    InputError,
    PaliGemmaForConditionalGeneration,
    SiglipVisionModel,
)

words, pixels = tiny.words, tiny.pixels
each_family = pytest.mark.parametrize("family", tiny.FAMILIES)
with_pictures = pytest.mark.parametrize("family", tiny.PICTURE_FAMILIES)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


ONE, EMBEDS = {"input_ids": words(1, 3)}, {"inputs_embeds": torch.zeros(1, 3, 16)}

# Of any model with a head: what is wrong, and what is said.
EVERYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "both ids and embeds": ({**ONE, **EMBEDS}, "exactly one of input_ids or inputs_embeds"),
    "neither ids nor embeds": ({}, "exactly one of input_ids or inputs_embeds"),
    "an id above the vocabulary": ({"input_ids": zeros(1, 3) + 40}, "hold 40, but the vocabulary ends at 39"),
    "an id below zero": ({"input_ids": zeros(2, 3) - 1}, "hold -1, but the vocabulary ends at 39"),
    "ids without tokens": ({"input_ids": zeros(2, 0)}, r"shape \(2, 0\) .* at least one token"),
    "ids without a batch": ({"input_ids": words(3)}, r"shape \(3,\) .* \[batch, tokens\]"),
    "ids that are no whole numbers": ({"input_ids": torch.zeros(1, 3)}, r"torch\.float32, but must be whole numbers"),
    "ids that are true or false": ({"input_ids": zeros(1, 3) > 0}, r"torch\.bool, but must be whole numbers"),
    "embeds of another width": ({"inputs_embeds": torch.zeros(1, 3, 15)}, r"\(1, 3, 15\), but must be .* 16\]"),
    "embeds without a batch": ({"inputs_embeds": torch.zeros(3, 16)}, r"\(3, 16\), but must be \[batch, tokens, 16\]"),
    "embeds without tokens": ({"inputs_embeds": torch.zeros(1, 0, 16)}, r"\(1, 0, 16\), but must be"),
    "a mask of another length": (
        {**ONE, "attention_mask": zeros(1, 4)},
        "covers 4 tokens, but .* 3 came",
    ),
    "a mask of another batch": (
        {**ONE, "attention_mask": zeros(2, 3)},
        r"\(2, 3\), but it must be .* = \[1, 3\]",
    ),
    "a mask of four dimensions": ({**ONE, "attention_mask": zeros(1, 1, 3, 3)}, "which tokens see each other follows"),
    "a mask that is no tensor": ({**ONE, "attention_mask": [[1, 1, 1]]}, "attention_mask is a list"),
    "positions of another length": ({**ONE, "position_ids": zeros(1, 4)}, r"\(1, 4\), but it must be \[1, 3\]"),
    "positions of another batch": ({**ONE, "position_ids": zeros(2, 3)}, r"\(2, 3\), but it must be \[1, 3\]"),
    "labels above the vocabulary": (
        {**ONE, "labels": zeros(1, 3) + 40},
        "labels hold 40, .* 0 to 39, or -100",
    ),
    "labels below zero": ({**ONE, "labels": zeros(1, 3) - 1}, "labels hold -1, .* 0 to 39, or -100"),
    "labels of another length": ({**ONE, "labels": zeros(1, 4)}, r"labels have shape \(1, 4\)"),
    "labels for fewer logits": ({**ONE, "labels": zeros(1, 3), "logits_to_keep": 2}, "leave logits_to_keep at 0"),
    "fewer than no logits": ({**ONE, "logits_to_keep": -1}, "logits_to_keep is -1, but it must be 0 "),
    "logits of a table of places": (
        {**ONE, "logits_to_keep": zeros(1, 1)},
        r"\(1, 1\), but it must be ",
    ),
}

PICTURES = {"input_ids": torch.full((1, 4), tiny.PICTURE), "pixel_values": pixels(1)}
ANSWER = {"input_ids": torch.cat([PICTURES["input_ids"], words(1, 4)], dim=1), "pixel_values": pixels(1)}
SCORED = torch.tensor([[-100] * 6 + [5, 6]])
TYPES = torch.tensor([[0] * 6 + [1, 1]])

# Of any model with pictures.
OF_PICTURES: dict[str, tuple[dict[str, Any], str]] = {
    "pictures of another size": (
        {**PICTURES, "pixel_values": torch.zeros(1, 3, 9, 9)},
        r"\(1, 3, 9, 9\).* 3, 8, 8\]",
    ),
    "pictures of one colour": ({**PICTURES, "pixel_values": torch.zeros(1, 1, 8, 8)}, r"\(1, 1, 8, 8\), .* 3, 8, 8\]"),
    "one picture without its dimension": ({**PICTURES, "pixel_values": pixels(1)[0]}, r"\(3, 8, 8\), .* \[pictures, 3"),
    "picture tokens without pictures": ({"input_ids": PICTURES["input_ids"]}, r"\(id 36\), but no pixel_values came"),
    "pictures without picture tokens": ({**ONE, "pixel_values": pixels(1)}, "do not match: tokens: 0, features 4"),
    "more pictures than places": ({**PICTURES, "pixel_values": pixels(2)}, "tokens: 4, features 8.* 2 pictures came"),
    "more places than pictures": (
        {"input_ids": PICTURES["input_ids"].repeat(2, 1), "pixel_values": pixels(1)},
        "tokens: 8, features 4. Every picture needs 4 tokens of id 36",
    ),
    "a place that is cut off": (
        {"input_ids": PICTURES["input_ids"][:, :3], "pixel_values": pixels(1)},
        "tokens: 3, features 4",
    ),
    "token types of another length": ({**ANSWER, "token_type_ids": zeros(1, 7)}, r"\(1, 7\), but must be \[1, 8\]"),
    "token types of another batch": ({**ANSWER, "token_type_ids": zeros(2, 8)}, r"\(2, 8\), but must be \[1, 8\]"),
    "token types without a batch": ({**ANSWER, "token_type_ids": zeros(8)}, r"\(8,\), but must be \[1, 8\]"),
    "token types of other values": ({**ANSWER, "token_type_ids": zeros(1, 8) + 2}, "values other than 0 and 1"),
}


def assert_refused(model: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        model(**arguments)
    assert re.fullmatch(r"\S.*\.", str(caught.value)), "a sentence ends with a full stop"
    assert isinstance(caught.value, ValueError)


@each_family
@pytest.mark.parametrize("mistake", EVERYWHERE)
def test_mistakes_of_any_call_are_refused(family: str, mistake: str) -> None:
    assert_refused(tiny.model(family), *EVERYWHERE[mistake])


@with_pictures
@pytest.mark.parametrize("mistake", OF_PICTURES)
def test_mistakes_with_pictures_are_refused(family: str, mistake: str) -> None:
    assert_refused(tiny.model(family), *OF_PICTURES[mistake])
    assert_refused(tiny.model(family).model, *OF_PICTURES[mistake])


@each_family
def test_a_misspelt_keyword_is_refused(family: str) -> None:
    with pytest.raises(TypeError, match="atention_mask"):
        tiny.model(family)(**ONE, atention_mask=None)


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
class TestPaliGemma:
    """Type 0 is the prompt, whose tokens see each other: what is scored must not be among them."""

    def test_scored_tokens_of_type_0_are_refused(self, family: str) -> None:
        arguments = {**ANSWER, "labels": SCORED}
        for types in (zeros(1, 8), torch.tensor([[0] * 7 + [1]])):
            assert_refused(
                tiny.model(family), {**arguments, "token_type_ids": types}, r"labels score .* give the answer type 1"
            )
        assert tiny.model(family)(**arguments, token_type_ids=TYPES).loss > 0

    def test_the_answer_begins_at_the_first_scored_token_and_goes_on_to_the_end(self, family: str) -> None:
        """A token of the answer that is not scored is no part of the prompt."""
        model, labels = tiny.model(family), torch.tensor([[-100] * 5 + [5, -100, 6]])
        types = torch.tensor([[0] * 5 + [1] * 3])
        expected = model(**ANSWER, token_type_ids=types).logits
        torch.testing.assert_close(model(**ANSWER, labels=labels).logits, expected)
        assert not torch.allclose(model(**ANSWER).logits, expected)

    def test_pictures_of_type_1_are_refused(self, family: str) -> None:
        assert_refused(tiny.model(family), {**ANSWER, "token_type_ids": zeros(1, 8) + 1}, "1 for picture tokens")

    def test_types_and_labels_are_checked_in_later_calls_too(self, family: str) -> None:
        model = tiny.model(family)
        later = {"input_ids": words(1, 2), "past_key_values": model(**ANSWER).past_key_values}
        assert_refused(model, {**later, "token_type_ids": zeros(1, 3)}, r"\(1, 3\), but must be \[1, 2\]")
        assert_refused(model, {**later, "token_type_ids": zeros(1, 2) + 2}, "values other than 0 and 1")

    def test_the_types_of_all_tokens_may_be_given_in_later_calls(self, family: str) -> None:
        model = tiny.model(family)
        for types in (torch.ones(1, 2).long(), torch.cat([zeros(1, 8), torch.ones(1, 2).long()], dim=1)):
            cache = model(**ANSWER).past_key_values
            model(words(1, 2), past_key_values=cache, token_type_ids=types)


class TestGemma3:
    """Type 1 is a picture, whose tokens see each other: what is scored must not be among them either."""

    def test_scored_words_of_type_1_are_refused(self) -> None:
        """Some trainers set all types to 1; each word would see the next one, which it shall predict."""
        arguments = {**ANSWER, "labels": SCORED, "token_type_ids": zeros(1, 8) + 1}
        assert_refused(tiny.model("gemma3-pictures"), arguments, r"labels score .*token_type_ids")

    def test_more_tokens_than_patches_are_refused(self) -> None:
        config = tiny.config("gemma3-pictures")
        config.mm_tokens_per_image = 64
        model = tiny.build(Gemma3ForConditionalGeneration, config)
        arguments = {"input_ids": torch.full((1, 64), tiny.PICTURE), "pixel_values": pixels(1)}
        assert_refused(model, arguments, "mm_tokens_per_image is 64, but a picture has .*16 patches")

    def test_several_rows_cannot_be_classified_if_nothing_says_where_they_end(self) -> None:
        model = tiny.build(Gemma3ForSequenceClassification, tiny.config("gemma3-pictures", pad_token_id=None))
        assert_refused(model, {"input_ids": words(2, 3)}, "pad_token_id or attention_mask")
        assert model(words(1, 3)).logits.shape == (1, 2)
        assert model(words(2, 3), attention_mask=torch.ones(2, 3)).logits.shape == (2, 2)

    def test_classes_that_are_not_there_are_refused(self) -> None:
        model = tiny.build(Gemma3ForSequenceClassification, tiny.config("gemma3-pictures"))
        assert_refused(model, {"input_ids": words(2, 3), "labels": torch.tensor([0, 2])}, "labels hold 2")


@with_pictures
class TestPictures:
    """What is right with pictures and looks unusual."""

    def test_no_picture_at_all_is_a_number_of_pictures(self, family: str) -> None:
        """A loader of mixed batches gives it for batches of text."""
        model = tiny.model(family)
        none = model(words(2, 4), pixel_values=pixels(2)[:0])
        torch.testing.assert_close(none.logits, model(words(2, 4)).logits)
        assert none.image_hidden_states.shape == (0, 4, 16)

    def test_embeds_that_hold_picture_tokens_are_found_by_their_value(self, family: str) -> None:
        model = tiny.model(family)
        embeds = model.get_input_embeddings()(ANSWER["input_ids"])
        expected = model(**ANSWER).logits
        torch.testing.assert_close(model(inputs_embeds=embeds, pixel_values=ANSWER["pixel_values"]).logits, expected)

    def test_embeds_that_hold_the_pictures_already_need_no_pixels(self, family: str) -> None:
        model = tiny.model(family)
        features = model.get_image_features(ANSWER["pixel_values"])
        embeds = torch.cat([features, model.get_input_embeddings()(ANSWER["input_ids"][:, 4:])], dim=1)
        types = (ANSWER["input_ids"] == tiny.PICTURE).long() if family == "gemma3-pictures" else zeros(1, 8)
        logits = model(inputs_embeds=embeds, token_type_ids=types).logits
        torch.testing.assert_close(logits, model(**ANSWER).logits, atol=1e-4, rtol=1e-4)

    def test_the_places_of_pictures_are_told(self, family: str) -> None:
        model = tiny.model(family)
        features = model.get_image_features(ANSWER["pixel_values"])
        mask = model.get_placeholder_mask(ANSWER["input_ids"], None, features)
        assert mask.shape == (1, 8, 16)
        assert mask[0, :, 0].tolist() == [True] * 4 + [False] * 4
        with pytest.raises(InputError, match="input_ids or inputs_embeds"):
            model.get_placeholder_mask(None, None, features)

    def test_a_picture_token_without_a_row_in_the_vocabulary_is_never_looked_up(self, family: str) -> None:
        """As in PaliGemma's default config, where it comes right after the vocabulary."""
        config = tiny.config(family)
        config.image_token_index = tiny.VOCABULARY + 5
        model = tiny.build(tiny.MODELS[family], config)
        moved = {**ANSWER, "input_ids": ANSWER["input_ids"].masked_fill(ANSWER["input_ids"] == tiny.PICTURE, 45)}
        torch.testing.assert_close(model(**moved).logits, tiny.model(family)(**ANSWER).logits)


def test_a_projector_of_another_width_than_the_decoder_is_refused() -> None:
    config = tiny.config("paligemma")
    config.projection_dim = 8
    model = tiny.build(PaliGemmaForConditionalGeneration, config)
    assert_refused(model, PICTURES, "width 8, but the decoder's width is 16")
    assert model(**ONE).logits.shape == (1, 3, tiny.VOCABULARY)


class TestEncoder:
    """The picture encoder on its own."""

    @pytest.mark.parametrize("shape", [(1, 3, 9, 9), (1, 3, 8, 12), (1, 4, 8, 8), (3, 8, 8)])
    def test_pictures_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config())
        assert_refused(model, {"pixel_values": torch.zeros(shape)}, re.escape(str(shape)))

    def test_other_sizes_are_taken_with_interpolation(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config())
        hidden = model(torch.zeros(1, 3, 16, 12), interpolate_pos_encoding=True).last_hidden_state
        assert hidden.shape == (1, 12, 12)
        assert_refused(model, {"pixel_values": torch.zeros(1, 3, 3, 8), "interpolate_pos_encoding": True}, "one patch")


def test_logits_may_be_asked_for_some_tokens_only() -> None:
    model, ids = tiny.model("gemma2"), words(2, 6)
    whole = model(ids).logits
    for keep, expected in ((0, whole), (2, whole[:, -2:]), (9, whole), (torch.tensor([1, 4]), whole[:, [1, 4]])):
        torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, expected)


def test_a_mask_of_one_row_serves_all_rows() -> None:
    model, ids = tiny.model("gemma3"), words(2, 4)
    mask = torch.tensor([[0, 1, 1, 1]])
    expected = model(ids, attention_mask=mask.expand(2, -1)).logits
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)
