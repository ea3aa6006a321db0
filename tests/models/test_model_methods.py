"""What people call on any model besides running it: checkpointing, counting, formats, modes, copies."""

import copy
import pickle
from operator import attrgetter
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

from gemlens import (
    DynamicCache,
    InputError,
)

each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def labelled(family: str) -> dict[str, Tensor]:
    """Arguments of a training step: the last four tokens are scored."""
    arguments = tiny.prompt(family)
    labels = arguments["input_ids"].clone()
    labels[:, :5] = -100
    return {**arguments, "labels": labels}


def gradients(model: nn.Module, arguments: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step."""
    model.zero_grad()
    loss = model(**arguments).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


class TestCheckpointing:
    """Gradient checkpointing: the same numbers for less memory."""

    @each_family
    def test_loss_and_gradients_are_those_without(self, family: str) -> None:
        arguments = labelled(family)
        model = tiny.fresh(family).train()
        loss, expected = gradients(model, arguments)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.is_gradient_checkpointing
        again, found = gradients(model, arguments)
        assert again == loss
        assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)

    @pytest.mark.parametrize("part", ["language_model.layers", "vision_tower.vision_model.encoder.layers"])
    def test_layers_are_computed_again_in_training_only(self, part: str) -> None:
        model = tiny.fresh("gemma3-pictures")
        layer = attrgetter(part)(model)[0]
        calls: list[int] = []
        layer.register_forward_pre_hook(lambda *_: calls.append(1))

        def count() -> int:
            calls.clear()
            model(**labelled("gemma3-pictures")).loss.backward()
            return len(calls)

        model.gradient_checkpointing_enable()
        assert model.eval() is model
        assert count() == 1
        model.train()
        assert count() == 2
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
        assert count() == 1

    @pytest.mark.parametrize("unknown", [{"use_reentrant": True}, {"preserve_rng_state": True}])
    def test_other_ways_of_checkpointing_are_refused(self, unknown: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=f"{next(iter(unknown))}.*only use_reentrant=False"):
            tiny.fresh("gemma").gradient_checkpointing_enable(unknown)

    def test_a_cache_that_is_asked_for_is_not_kept_and_a_warning_says_so(self) -> None:
        model = tiny.fresh("gemma").train()
        model.gradient_checkpointing_enable()
        with pytest.warns(UserWarning, match="No cache is kept in training with gradient checkpointing"):
            output = model(tiny.words(1, 3), use_cache=True)
        assert output.past_key_values is None

    @pytest.mark.parametrize("family", ["gemma", "gemma3-pictures", "paligemma"])
    def test_what_is_cached_is_not_forgotten_silently(self, family: str) -> None:
        """Read without its beginning, the text would get other numbers."""
        model = tiny.fresh(family)
        cache = model(**tiny.prompt(family)).past_key_values
        model.train()
        model.gradient_checkpointing_enable()
        with pytest.raises(InputError, match=r"past_key_values.*gradient checkpointing"):
            model(tiny.words(2, 1), past_key_values=cache)

    def test_a_tuple_instead_of_a_cache_is_refused_as_always(self) -> None:
        model = tiny.fresh("gemma").train()
        model.gradient_checkpointing_enable()
        with pytest.raises(InputError, match="past_key_values is a tuple"):
            model(tiny.words(1, 3), past_key_values=())


class TestCacheInTraining:
    """A cache is made in training only if asked for."""

    def test_none_is_made_in_training(self) -> None:
        assert tiny.fresh("gemma").train()(tiny.words(1, 3)).past_key_values is None

    def test_one_is_made_if_asked_for(self) -> None:
        output = tiny.fresh("gemma").train()(tiny.words(1, 3), use_cache=True)
        assert isinstance(output.past_key_values, DynamicCache)

    def test_the_config_may_say_no(self) -> None:
        model = tiny.fresh("gemma", use_cache=False)
        assert model(tiny.words(1, 3)).past_key_values is None
        assert model(tiny.words(1, 3), use_cache=True).past_key_values is not None


REFERENCES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM",
              "paligemma": "PaliGemmaForConditionalGeneration", "paligemma2": "PaliGemmaForConditionalGeneration",
              "gemma3-pictures": "Gemma3ForConditionalGeneration"}  # fmt: skip


def reference(family: str, **changes: Any) -> Any:
    """The reference's model of the same numbers."""
    kind = getattr(transformers, REFERENCES[family])
    return kind(kind.config_class.from_dict(tiny.config(family, **changes).to_dict()))


class TestParameters:
    """How many there are, how they are called, which format they have."""

    @each_family
    @pytest.mark.parametrize("tied", [True, False])
    def test_they_are_counted_as_in_the_reference(self, family: str, tied: bool) -> None:
        ours, theirs = tiny.fresh(family, tie_word_embeddings=tied), reference(family, tie_word_embeddings=tied)
        for model in (ours, theirs):
            first = next(iter(model.parameters()))
            first.requires_grad_(False)
        for arguments in ({}, {"only_trainable": True}, {"exclude_embeddings": True},
                          {"only_trainable": True, "exclude_embeddings": True}):  # fmt: skip
            if ours.config.model_type in ("paligemma", "gemma3") and arguments.get("only_trainable"):
                continue  # the first parameter is of another part there
            assert ours.num_parameters(**arguments) == theirs.num_parameters(**arguments), arguments

    @each_family
    def test_frozen_ones_are_left_out_if_asked(self, family: str) -> None:
        model = tiny.fresh(family)
        everything = model.num_parameters()
        frozen = model.text_model().layers[0]
        frozen.requires_grad_(False)
        assert everything - model.num_parameters(only_trainable=True) == sum(
            each.numel() for each in frozen.parameters()
        )

    def test_a_tied_head_counts_once(self) -> None:
        tied, untied = tiny.fresh("gemma"), tiny.fresh("gemma", tie_word_embeddings=False)
        assert untied.num_parameters() - tied.num_parameters() == tiny.VOCABULARY * 16
        assert tied.num_parameters(exclude_embeddings=True) == tied.num_parameters() - tiny.VOCABULARY * 16

    @each_family
    @pytest.mark.parametrize("tied", [True, False])
    def test_their_names_and_shapes_are_the_references(self, family: str, tied: bool) -> None:
        theirs = reference(family, tie_word_embeddings=tied).state_dict()
        ours = tiny.fresh(family, tie_word_embeddings=tied).state_dict()
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            name: tensor.shape for name, tensor in theirs.items()
        }

    @each_family
    def test_there_are_no_buffers(self, family: str) -> None:
        assert not dict(tiny.model(family).named_buffers())

    @each_family
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_another_format_is_kept_to_the_logits(self, family: str, dtype: torch.dtype) -> None:
        model, arguments = tiny.fresh(family), tiny.prompt(family)
        assert model.dtype is torch.float32
        expected = model(**arguments).logits
        assert model.to(dtype) is model
        assert model.dtype is dtype
        logits = model(**arguments).logits
        assert logits.dtype is dtype
        assert (logits.float() - expected).abs().mean() < 0.1

    def test_the_device_is_that_of_the_weights(self) -> None:
        assert tiny.model("gemma").device == torch.device("cpu")
        assert tiny.fresh("gemma").to("meta").device == torch.device("meta")

    def test_on_the_meta_device_no_weight_is_drawn(self) -> None:
        with torch.device("meta"):
            model = tiny.MODELS["gemma3-pictures"](tiny.config("gemma3-pictures"))
        assert all(weight.is_meta for weight in model.parameters())
        assert model.lm_head.weight is model.get_input_embeddings().weight

    def test_modes_reach_all_parts(self) -> None:
        model = tiny.fresh("gemma3-pictures")
        assert not any(module.training for module in model.modules())
        assert all(module.training for module in model.train().modules())

    def test_dropout_acts_in_training_only(self) -> None:
        model, ids = tiny.fresh("gemma", attention_dropout=0.5), tiny.words(1, 9)
        torch.manual_seed(0)
        assert model(ids).logits.equal(model(ids).logits)
        model.train()
        assert not model(ids).logits.equal(model(ids).logits)


@each_family
class TestCopies:
    """Models are ordinary modules."""

    def test_a_deep_copy_is_equal_and_independent(self, family: str) -> None:
        model, arguments = tiny.fresh(family), tiny.prompt(family)
        other = copy.deepcopy(model)
        assert other(**arguments).logits.equal(model(**arguments).logits)
        assert other.lm_head.weight is other.get_input_embeddings().weight
        assert other.config == model.config
        assert other.config is not model.config
        tiny.spread_weights(other, seed=1)
        assert not other(**arguments).logits.equal(model(**arguments).logits)

    def test_a_pickle_comes_back_equal(self, family: str) -> None:
        model, arguments = tiny.model(family), tiny.prompt(family)
        back = pickle.loads(pickle.dumps(model))
        assert back(**arguments).logits.equal(model(**arguments).logits)
        assert back.lm_head.weight is back.get_input_embeddings().weight

    def test_a_state_dict_goes_into_another_model(self, family: str) -> None:
        model, arguments = tiny.model(family), tiny.prompt(family)
        other = tiny.MODELS[family](model.config).eval()
        assert not other(**arguments).logits.equal(model(**arguments).logits)
        other.load_state_dict(model.state_dict())
        assert other(**arguments).logits.equal(model(**arguments).logits)

    def test_a_call_changes_neither_weights_nor_config_nor_arguments(self, family: str) -> None:
        model, arguments = tiny.fresh(family), labelled(family)
        kept = copy.deepcopy((model.state_dict(), model.config.to_dict(), arguments))
        model(**arguments)
        state, config, given = kept
        assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
        assert model.config.to_dict() == config
        assert all(value.equal(given[name]) for name, value in arguments.items())
