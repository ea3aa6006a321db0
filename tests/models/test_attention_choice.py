"""Which way to attend a model takes, how it is told, and when it refuses."""

from typing import Any

import pytest
import tiny
import torch

from gemlens import Gemma2ForCausalLM, Gemma3ForCausalLM, GemmaForCausalLM, InputError, SiglipVisionModel
from gemlens.models import attention
from gemlens.models.attention import AttentionBlock, blocked, choose, eager, flex, sdpa
from gemlens.spans import PlainSpan, View


class TestChoice:
    """Which way a name means, and when it is refused."""

    def test_without_a_name_sdpa_is_taken_unless_a_cap_must_be_applied(self) -> None:
        assert choose(None) is sdpa
        assert choose(None, cap=50.0) is eager

    @pytest.mark.parametrize(
        ("name", "function"), [("eager", eager), ("sdpa", sdpa), ("flex_attention", flex), ("blocked", blocked)]
    )
    def test_a_name_means_its_function(self, name: str, function: Any) -> None:
        assert choose(name) is function

    def test_sdpa_is_refused_where_it_would_drop_a_cap(self) -> None:
        with pytest.raises(InputError, match=r"sdpa cannot apply .* soft cap of 50\.0.*'eager' or 'flex_attention'"):
            choose("sdpa", cap=50.0)
        with pytest.raises(InputError, match="soft cap of 3"):
            Gemma2ForCausalLM(tiny.config("gemma2"), attn_implementation="sdpa")

    def test_a_gemma_2_without_a_cap_may_use_sdpa(self) -> None:
        assert tiny.fresh("gemma2", attn_implementation="sdpa", attn_logit_softcapping=None) is not None

    @pytest.mark.parametrize("name", ["flash_attention_3", "SDPA", "", "paged"])
    def test_an_unknown_name_is_refused_with_the_known_ones(self, name: str) -> None:
        with pytest.raises(InputError, match=f"is '{name}'; known are eager, sdpa, flex_attention, flash_attention_2"):
            GemmaForCausalLM(tiny.config("gemma"), attn_implementation=name)

    def test_flash_is_refused_where_the_package_is_missing(self) -> None:
        with pytest.raises(InputError, match=r"needs the flash_attn package: pip install flash-attn"):
            Gemma3ForCausalLM(tiny.config("gemma3"), attn_implementation="flash_attention_2")


def ways(model: torch.nn.Module) -> dict[str, set[str]]:
    """Which functions the parts of a model attend with."""
    names = {function: name for name, function in attention.IMPLEMENTATIONS.items()}
    found: dict[str, set[str]] = {"vision": set(), "text": set()}
    for name, module in model.named_modules():
        if isinstance(module, AttentionBlock):
            found["vision" if "vision_model." in name else "text"].add(names[module.attend])
    return found


class TestModels:
    """How a model is told which way to take."""

    @pytest.mark.parametrize("family", tiny.FAMILIES)
    def test_the_default_is_sdpa_or_where_a_cap_bites_eager(self, family: str) -> None:
        text = {"eager"} if family.endswith("2") else {"sdpa"}
        expected = {"vision": {"sdpa"} if family in tiny.PICTURE_FAMILIES else set(), "text": text}
        assert ways(tiny.model(family)) == expected

    @pytest.mark.parametrize("family", ["gemma", "gemma3-pictures", "paligemma"])
    def test_one_name_is_for_all_parts(self, family: str) -> None:
        model = tiny.fresh(family, attn_implementation="eager")
        assert set().union(*ways(model).values()) == {"eager"}
        assert model.attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert set().union(*ways(model).values()) == {"sdpa"}
        model.set_attn_implementation(None)
        assert model.attn_implementation is None

    def test_a_dict_names_the_parts(self) -> None:
        parts = {"text_config": "eager", "vision_config": "sdpa"}
        model = tiny.fresh("gemma3-pictures", attn_implementation=parts)
        assert ways(model) == {"vision": {"sdpa"}, "text": {"eager"}}
        model.set_attn_implementation({"vision_config": "eager"})
        assert ways(model) == {"vision": {"eager"}, "text": {"sdpa"}}

    def test_the_picture_encoder_of_paligemma_2_may_use_sdpa_while_its_decoder_may_not(self) -> None:
        model = tiny.fresh("paligemma2", attn_implementation={"vision_config": "sdpa"})
        assert ways(model) == {"vision": {"sdpa"}, "text": {"eager"}}
        with pytest.raises(InputError, match="soft cap"):
            model.set_attn_implementation("sdpa")

    def test_a_refused_name_changes_nothing(self) -> None:
        model = tiny.fresh("paligemma2", attn_implementation="eager")
        with pytest.raises(InputError, match="soft cap"):
            model.set_attn_implementation("sdpa")
        assert ways(model) == {"vision": {"eager"}, "text": {"eager"}}

    def test_a_misspelt_part_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"'text'.*text_config"):
            tiny.fresh("gemma3-pictures", attn_implementation={"text": "eager"})

    def test_a_picture_encoder_alone_takes_a_name(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config(), attn_implementation="eager")
        assert ways(model)["vision"] == {"eager"}
        model(tiny.pixels(1))


class TestWeights:
    """output_attentions works whatever the implementation, and changes no number."""

    @pytest.mark.parametrize("family", tiny.FAMILIES)
    def test_weights_come_under_every_default(self, family: str) -> None:
        model, arguments = tiny.model(family), tiny.prompt(family)
        with_weights = model(**arguments, output_attentions=True)
        torch.testing.assert_close(with_weights.logits, model(**arguments).logits, atol=1e-5, rtol=1e-4)
        assert len(with_weights.attentions) == 3
        for weights in with_weights.attentions:
            assert weights.shape == (2, 4, 9, 9)
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))

    def test_weights_are_zero_where_nothing_is_seen(self) -> None:
        weights = tiny.model("gemma3", 4)(tiny.words(1, 9), output_attentions=True).attentions
        span = PlainSpan(0, 9, "cpu")
        for layer, window in enumerate((4, None, 4)):
            assert ((weights[layer] > 0) == View(span, span, window).mask).all()

    def test_pictures_give_weights_of_the_encoder(self) -> None:
        model = tiny.build(SiglipVisionModel, tiny.vision_config())
        output = model(tiny.pixels(2), output_attentions=True)
        assert [weights.shape for weights in output.attentions] == [(2, 2, 4, 4)] * 2
