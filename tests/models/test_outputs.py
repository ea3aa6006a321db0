"""What models give back: dataclasses that are tuples and mappings of what they hold."""

import copy
import pickle
from dataclasses import fields
from typing import Any

import pytest
import tiny
import torch
from torch.utils import _pytree as pytree

from gemlens import Gemma3ForSequenceClassification, Gemma3Model, Gemma3TextModel, PaliGemmaModel, SiglipVisionModel
from gemlens.models import outputs
from gemlens.models.outputs import CausalLMOutputWithPast, ModelOutput

KINDS = [kind for kind in vars(outputs).values() if isinstance(kind, type) and issubclass(kind, ModelOutput)]
KINDS.remove(ModelOutput)


def output() -> CausalLMOutputWithPast:
    """Of a causal model, with loss and logits and nothing else."""
    return CausalLMOutputWithPast(loss=torch.tensor(2.0), logits=torch.zeros(1, 3, 5))


def test_fields_are_found_by_name_by_key_and_by_place() -> None:
    out = output()
    assert out.loss is out["loss"] is out[0]
    assert out.logits is out["logits"] is out[1] is out[-1]
    loss, logits = out
    assert (loss, logits) == out[:2] == out.to_tuple() == out.values()


def test_none_is_left_out() -> None:
    out = output()
    assert len(out) == 2
    assert out.keys() == list(dict(out)) == ["loss", "logits"]
    assert [name for name, _ in out.items()] == ["loss", "logits"]
    assert "past_key_values" not in out
    assert out.past_key_values is None
    assert out.get("past_key_values", 3) == 3
    assert out.get("logits") is out.logits
    for missing in ("past_key_values", "nothing", "keys"):
        with pytest.raises(KeyError):
            out[missing]
    with pytest.raises(IndexError):
        out[2]


def test_an_output_can_be_unpacked_into_keywords() -> None:
    def loss_of(**given: Any) -> Any:
        return given["loss"]

    assert loss_of(**output()) == 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_output_goes_through_pytree_copy_and_pickle(kind: type[ModelOutput]) -> None:
    """Pytree is how data-parallel and sharding wrappers find the tensors inside."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for chosen in (names, names[::2], []):
        out = kind(**{name: torch.full((2,), float(place)) for place, name in enumerate(chosen)})
        leaves, structure = pytree.tree_flatten(out)
        assert [leaf.tolist() for leaf in leaves] == [value.tolist() for value in out.values()]
        doubled = pytree.tree_unflatten([2 * leaf for leaf in leaves], structure)
        for back, factor in ((doubled, 2), (copy.deepcopy(out), 1), (pickle.loads(pickle.dumps(out)), 1)):
            assert type(back) is kind
            assert back.keys() == out.keys()
            assert [value.tolist() for value in back.values()] == [(factor * leaf).tolist() for leaf in leaves]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_whole_outputs_go_through_pytree(family: str) -> None:
    out = tiny.model(family)(**tiny.prompt(family), output_hidden_states=True, output_attentions=True)
    leaves, structure = pytree.tree_flatten(out)
    back = pytree.tree_unflatten(leaves, structure)
    assert type(back) is type(out)
    assert back.past_key_values is out.past_key_values
    assert all(one is other for one, other in zip(back.hidden_states, out.hidden_states, strict=True))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_with_a_head_gives_the_documented_fields(family: str) -> None:
    model, arguments = tiny.model(family), tiny.prompt(family)
    out = model(**arguments)
    pictures = ["image_hidden_states"] if family in tiny.PICTURE_FAMILIES else []
    assert out.keys() == ["logits", "past_key_values", *pictures]
    out = model(**arguments, use_cache=False, output_hidden_states=True, output_attentions=True)
    assert out.keys() == ["logits", "hidden_states", "attentions", *pictures]
    assert [states.shape for states in out.hidden_states] == [(2, 9, 16)] * 4
    assert [weights.shape for weights in out.attentions] == [(2, 4, 9, 9)] * 3
    if pictures:
        assert out.image_hidden_states.shape == (2, tiny.TOKENS_PER_PICTURE, 16)
        torch.testing.assert_close(out.image_hidden_states, model.get_image_features(arguments["pixel_values"]))
        assert "image_hidden_states" not in model(tiny.words(1, 3))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_plain_tuple_has_loss_and_logits_first(family: str) -> None:
    model = tiny.model(family)
    arguments = tiny.prompt(family)
    labels = tiny.words(2, 9)
    labels[:, :5] = -100
    whole = model(**arguments, labels=labels, use_cache=False)
    plain = model(**arguments, labels=labels, use_cache=False, return_dict=False)
    assert type(plain) is tuple
    assert plain[0] == whole.loss
    assert plain[1].equal(whole.logits)
    assert len(plain) == len(whole)


def models_of_every_kind() -> list[tuple[Any, dict[str, Any]]]:
    """Models without a language head, and arguments for each."""
    pictures = tiny.prompt("gemma3-pictures")
    return [
        (tiny.build(Gemma3TextModel, tiny.config("gemma3")), {"input_ids": tiny.words(2, 9)}),
        (tiny.build(Gemma3Model, tiny.config("gemma3-pictures")), pictures),
        (tiny.build(Gemma3ForSequenceClassification, tiny.config("gemma3-pictures")), pictures),
        (tiny.build(PaliGemmaModel, tiny.config("paligemma")), tiny.prompt("paligemma")),
        (tiny.build(SiglipVisionModel, tiny.vision_config(vision_use_head=True)), {"pixel_values": tiny.pixels(2)}),
    ]


@pytest.mark.parametrize(("model", "arguments"), models_of_every_kind(), ids=lambda each: type(each).__name__)
class TestConfigDefaults:
    """The config's defaults hold where the call says nothing; the call wins."""

    def test_return_dict(self, model: Any, arguments: dict[str, Any]) -> None:
        changed = copy.deepcopy(model)
        changed.config.return_dict = False
        assert type(changed(**arguments)) is tuple
        assert isinstance(changed(**arguments, return_dict=True), ModelOutput)
        assert type(model(**arguments, return_dict=False)) is tuple

    def test_output_hidden_states_and_attentions(self, model: Any, arguments: dict[str, Any]) -> None:
        changed = copy.deepcopy(model)
        changed.config.output_hidden_states = changed.config.output_attentions = True
        out = changed(**arguments)
        depth = 2 if isinstance(model, SiglipVisionModel) else 3
        assert (len(out.hidden_states), len(out.attentions)) == (depth + 1, depth)
        out = changed(**arguments, output_hidden_states=False, output_attentions=False)
        assert (out.hidden_states, out.attentions) == (None, None)
        assert model(**arguments).hidden_states is None


def test_hidden_states_begin_with_the_embeddings_and_end_with_the_result() -> None:
    model = tiny.build(Gemma3TextModel, tiny.config("gemma3"))
    ids = tiny.words(2, 5)
    out = model(ids, output_hidden_states=True)
    assert out.hidden_states[0].equal(model.embed_tokens(ids))
    assert out.hidden_states[-1] is out.last_hidden_state


def test_the_encoders_last_hidden_state_is_normed_and_its_hidden_states_are_not() -> None:
    model = tiny.build(SiglipVisionModel, tiny.vision_config(vision_use_head=True))
    out = model(tiny.pixels(2), output_hidden_states=True)
    torch.testing.assert_close(model.vision_model.post_layernorm(out.hidden_states[-1]), out.last_hidden_state)
    assert out.pooler_output.shape == (2, 12)
    assert tiny.build(SiglipVisionModel, tiny.vision_config())(tiny.pixels(2)).pooler_output is None
