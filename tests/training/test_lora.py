"""LoRA against the peft library over the reference's models: logits, gradients, merged weights; and what is refused."""

import copy
import re
from types import ModuleType
from typing import Any

import lora_pairs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemlens.errors import CheckpointError, InputError
from gemlens.training.lora import (
    LoraLinear,
    LoraSettings,
    add_lora,
    chosen,
    lora_layers,
    merge_lora,
    merge_verified,
)
from gemlens.training.low_rank import low_rank

cases = pytest.mark.parametrize("case", lora_pairs.CASES)
SETTINGS = LoraSettings(rank=4, dropout=0.0)


def spread(model: Any, seed: int = 3) -> Any:
    """Gives B numbers, so that the adapter does something."""
    lora_pairs.stir(model, seed)
    return model


def gap(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs.detach() - ours.detach()).abs().max())


class TestAgainstPeft:
    @cases
    def test_logits_are_equal(self, case: str) -> None:
        both = lora_pairs.adapted(case)
        theirs, ours = both.logits()
        real = both.rows.real
        assert gap(theirs[real], ours[real]) < 2e-5
        merge_free = lora_pairs.plain(case)[0].ours(**both.rows.ours()).logits
        assert gap(merge_free[real], ours[real]) > 0.01, "the adapter does something"

    @cases
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_of_a_and_b_are_equal(self, case: str, checkpointing: bool) -> None:
        both = lora_pairs.adapted(case)
        labels = both.rows.labels
        both.theirs.train()(**both.rows.reference(labels=labels)).loss.backward()
        if checkpointing:
            both.ours.gradient_checkpointing_enable()
        both.ours.train()(**both.rows.ours(labels=labels)).loss.backward()
        for name, layer in lora_layers(both.ours).items():
            theirs = both.theirs.get_submodule(f"base_model.model.{name}")
            for ours, expected in (
                (layer.lora_A, theirs.lora_A["default"].weight),
                (layer.lora_B, theirs.lora_B["default"].weight),
            ):
                assert expected.grad.abs().max() > 0
                torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-5)

    def test_rslora_is_scaled_alike(self) -> None:
        both = lora_pairs.adapted("Gemma3ForCausalLM", rslora=True)
        theirs, ours = both.logits()
        assert gap(theirs[both.rows.real], ours[both.rows.real]) < 2e-5

    @cases
    def test_merging_gives_the_weights_that_peft_gives(self, case: str) -> None:
        both = lora_pairs.adapted(case)
        merge_lora(both.ours)
        theirs = both.theirs.merge_and_unload().state_dict()
        ours = both.ours.state_dict()
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-6)
