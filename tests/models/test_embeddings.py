"""The embedding of tokens and the head: found, replaced, tied, resized."""

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from gemlens import (
    Gemma3ForSequenceClassification,
    Gemma3Model,
    Gemma3TextModel,
    InputError,
    PaliGemmaModel,
    SiglipVisionModel,
)

each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


class TestEmbeddings:
    """The embedding of tokens and the head that may share its weight."""

    @each_family
    def test_embedding_and_head_are_found(self, family: str) -> None:
        model = tiny.model(family)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert embedding is model.text_model().embed_tokens
        assert embedding.weight.shape == head.weight.shape == (tiny.VOCABULARY, 16)
        assert head is model.lm_head
        assert head.weight is embedding.weight

    @pytest.mark.parametrize("kind", [Gemma3TextModel, Gemma3Model, Gemma3ForSequenceClassification, PaliGemmaModel])
    def test_models_without_a_head_have_none(self, kind: Any) -> None:
        families = {Gemma3TextModel: "gemma3", PaliGemmaModel: "paligemma"}
        model = tiny.build(kind, tiny.config(families.get(kind, "gemma3-pictures")))
        assert model.get_output_embeddings() is None
        assert isinstance(model.get_input_embeddings(), nn.Embedding)

    def test_the_embedding_of_an_encoder_is_its_convolution(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config())
        assert isinstance(model.get_input_embeddings(), nn.Conv2d)
        assert model.get_output_embeddings() is None
        with pytest.raises(InputError, match="SiglipVisionModel has no token embeddings"):
            model.resize_token_embeddings(8)

    @each_family
    def test_another_embedding_is_shared_by_a_tied_head(self, family: str) -> None:
        model = tiny.fresh(family)
        other = copy.deepcopy(model.get_input_embeddings())
        other.weight = nn.Parameter(-other.weight.detach())
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other
        assert model.get_output_embeddings().weight is other.weight

    def test_another_embedding_leaves_an_untied_head_alone(self) -> None:
        model = tiny.fresh("gemma", tie_word_embeddings=False)
        head = model.lm_head.weight
        model.set_input_embeddings(nn.Embedding(tiny.VOCABULARY, 16))
        assert model.lm_head.weight is head

    def test_another_head_is_used(self) -> None:
        model = tiny.fresh("gemma", tie_word_embeddings=False)
        other = nn.Linear(16, tiny.VOCABULARY, bias=False)
        nn.init.zeros_(other.weight)
        model.set_output_embeddings(other)
        assert model.get_output_embeddings() is other
        assert (model(tiny.words(1, 3)).logits == 0).all()

    @each_family
    def test_ties_are_made_again_after_the_head_was_replaced(self, family: str) -> None:
        model = tiny.fresh(family)
        model.lm_head.weight = nn.Parameter(torch.zeros(tiny.VOCABULARY, 16))
        model.tie_weights()
        assert model.lm_head.weight is model.get_input_embeddings().weight

    @each_family
    def test_nothing_is_tied_where_the_config_says_no(self, family: str) -> None:
        model = tiny.fresh(family, tie_word_embeddings=False)
        model.tie_weights()
        assert model.lm_head.weight is not model.get_input_embeddings().weight


class TestResize:
    """resize_token_embeddings."""

    @each_family
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("rows", [tiny.VOCABULARY + 7, tiny.PICTURE + 1])
    def test_old_tokens_keep_their_logits(self, family: str, tied: bool, rows: int) -> None:
        model = tiny.fresh(family, tie_word_embeddings=tied)
        arguments = tiny.prompt(family)
        before = model(**arguments).logits
        embedding = model.resize_token_embeddings(rows)
        kept = min(rows, tiny.VOCABULARY)
        after = model(**arguments).logits
        assert after.shape == (2, 9, rows)
        torch.testing.assert_close(after[..., :kept], before[..., :kept])
        assert embedding is model.get_input_embeddings()
        assert embedding.num_embeddings == len(embedding.weight) == rows
        assert model.lm_head.out_features == len(model.lm_head.weight) == rows
        assert (model.lm_head.weight is embedding.weight) == tied
        assert model.config.get_text_config().vocab_size == rows

    @pytest.mark.parametrize(
        ("rows", "multiple", "result"),
        [(41, 64, 64), (None, 64, 64), (64, 64, 64), (65, 64, 128), (50, None, 50), (None, None, 40), (33, 8, 40)],
    )
    def test_the_number_of_rows_is_rounded_up(self, rows: int | None, multiple: int | None, result: int) -> None:
        model = tiny.fresh("gemma")
        assert model.resize_token_embeddings(rows, pad_to_multiple_of=multiple).num_embeddings == result
        assert model(tiny.words(1, 3)).logits.shape[-1] == result

    def test_new_rows_lie_around_the_mean_of_the_old(self) -> None:
        model = tiny.fresh("gemma")
        mean = model.get_input_embeddings().weight.mean(0)
        new = model.resize_token_embeddings(60).weight[tiny.VOCABULARY :]
        torch.testing.assert_close(new, mean.expand(20, -1), atol=1e-3, rtol=0)
        assert not new[0].equal(new[1])

    def test_new_rows_may_be_drawn_like_those_of_a_new_model(self) -> None:
        model = tiny.fresh("gemma", initializer_range=0.5)
        new = model.resize_token_embeddings(1000, mean_resizing=False).weight[tiny.VOCABULARY :]
        assert 0.45 < new.std() < 0.55
        assert new.mean().abs() < 0.05

    @pytest.mark.parametrize("arguments", [{"new_num_tokens": 0}, {"new_num_tokens": -1}, {"new_num_tokens": 8.0},
                                           {"new_num_tokens": "8"}, {"new_num_tokens": True},
                                           {"pad_to_multiple_of": -64}, {"pad_to_multiple_of": 64.0}])  # fmt: skip
    def test_bad_numbers_are_refused(self, arguments: dict[str, Any]) -> None:
        model = tiny.fresh("gemma")
        name, value = next(iter(arguments.items()))
        with pytest.raises(InputError, match=f"{name} is {value!r}, but it must be a positive integer"):
            model.resize_token_embeddings(**arguments)
        assert model.get_input_embeddings().num_embeddings == tiny.VOCABULARY

    def test_the_row_of_the_padding_token_cannot_be_cut_off(self) -> None:
        """Its number stands in the config and in the embedding, which would both point behind the end."""
        model = tiny.fresh("gemma", pad_token_id=tiny.VOCABULARY - 1)
        with pytest.raises(InputError, match="pad_token_id"):
            model.resize_token_embeddings(tiny.VOCABULARY - 1)
        assert model(tiny.words(1, 3)).logits.shape[-1] == tiny.VOCABULARY

    def test_format_and_frozenness_stay(self) -> None:
        model = tiny.fresh("gemma").to(torch.bfloat16).requires_grad_(False)
        weight = model.resize_token_embeddings(50).weight
        assert weight.dtype is torch.bfloat16
        assert not weight.requires_grad

    def test_new_rows_learn(self) -> None:
        model = tiny.fresh("gemma")
        model.resize_token_embeddings(50)
        ids = torch.tensor([[45, 46, 47]])
        model(ids, labels=ids).loss.backward()
        assert (model.get_input_embeddings().weight.grad[45:48] != 0).any(1).all()
