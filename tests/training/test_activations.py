"""Norms and attention that keep less: the specification's numbers and gradients, with fewer bytes kept."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gemlens.models import blocked_attention
from gemlens.models.attention import Scores, eager, sdpa
from gemlens.models.layers import RMSNorm
from gemlens.spans import PlainSpan, View, span_of
from gemlens.training import activations
from gemlens.training.activations import LeanNorm, attend, keep_less
from gemlens.training.lora import LoraSettings, add_lora


def gradients(result: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a fixed random weighting of the result."""
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(9)).to(result.dtype)
    return torch.autograd.grad(result, inputs, direction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_norm_gives_the_numbers_and_gradients_of_the_plain_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = RMSNorm(24, 1e-6)
    torch.nn.init.normal_(plain.weight, std=0.4)
    plain = plain.to(dtype)
    lean = LeanNorm(plain)
    hidden = (3 * torch.randn(2, 5, 24)).to(dtype).requires_grad_()
    expected, found = plain(hidden), lean(hidden)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found, expected, **close)
    for ours, theirs in zip(
        gradients(found, hidden, lean.weight), gradients(expected, hidden, plain.weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **close)


def view_of(kind: str, length: int, past: int = 0) -> View | None:
    """What the last tokens of a text see; two rows."""
    slots = torch.arange(length)
    if kind == "everything":
        return None
    if kind == "padded":
        real = slots >= torch.tensor([[0], [7]])
        span = span_of(slots, real=real)
        return View(span, span)
    if kind == "prefix":
        span = span_of(slots, prefix=slots.expand(2, -1) < torch.tensor([[20], [5]]))
        return View(span, span)
    key = PlainSpan(0, length + past, "cpu")
    return View(key.last(length), key, 9 if kind == "window" else None)


@pytest.mark.parametrize("kind", ["plain", "window", "padded", "prefix", "everything"])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("scores", [1, 2**18])
def test_attention_gives_the_gradients_of_the_specification(
    kind: str, cap: float | None, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where rounding hides nothing, in many blocks and in one."""
    monkeypatch.setattr(blocked_attention, "serves", lambda *_: True)
    monkeypatch.setattr(activations, "_SCORES", scores)
    torch.manual_seed(0)
    view = view_of(kind, 37, past=11 if kind in ("plain", "window") else 0)
    keys = 37 if view is None else len(view.key)
    states = [torch.randn(2, heads, tokens, 8, requires_grad=True) for heads, tokens in ((4, 37), (2, keys), (2, keys))]
    expected = eager(*states, view, Scores(0.4, cap))[0]
    found = attend(*states, view, Scores(0.4, cap))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(found, *states), gradients(expected, *states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_its_gradients_are_as_near_to_the_exact_ones_as_those_of_the_specification() -> None:
    torch.manual_seed(0)
    view = view_of("window", 70)
    exact = [torch.randn(2, heads, 70, 16, requires_grad=True) for heads in (4, 1, 1)]
    states = [each.detach().bfloat16().requires_grad_() for each in exact]
    true = gradients(eager(*exact, view, Scores(0.3))[0], *exact)
    specified = gradients(eager(*states, view, Scores(0.3))[0], *states)
    found = gradients(attend(*states, view, Scores(0.3))[0], *states)
    for ours, theirs, best in zip(found, specified, true, strict=True):
        assert (ours.float() - best).norm() < 1.2 * (theirs.float() - best).norm()


@pytest.mark.parametrize(
    ("dtype", "wants", "dropout"),
    [(torch.float32, True, 0.0), (torch.bfloat16, False, 0.0), (torch.bfloat16, True, 0.3)],
)
def test_elsewhere_it_attends_as_models_do(dtype: torch.dtype, wants: bool, dropout: float) -> None:
    view = view_of("plain", 20)
    states = [torch.randn(2, heads, 20, 8).to(dtype).requires_grad_(wants) for heads in (4, 1, 1)]
    found, expected = [], []
    for way, results in ((attend, found), (sdpa, expected)):
        torch.manual_seed(0)
        results.append(way(*states, view, Scores(0.3, dropout=dropout))[0])
    assert torch.equal(found[0], expected[0])


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    labels = batch["input_ids"].clone()
    labels[:, :6] = -100
    return model.train()(**batch, labels=labels).loss


class TestModels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_losses_and_gradients_stay(self, tiny: ModuleType, dtype: torch.dtype) -> None:
        for family in tiny.FAMILIES:
            batch = tiny.prompt(family, length=12)
            losses, all_gradients = [], []
            for less in (False, True):
                model = tiny.fresh(family).to(dtype)
                if less:
                    keep_less(model)
                loss = loss_of(model, batch)
                loss.backward()
                losses.append(float(loss.detach()))
                every = [weight.grad.float().flatten() for weight in model.parameters() if weight.grad is not None]
                all_gradients.append(torch.cat(every))
            assert losses[1] == pytest.approx(losses[0], rel=1e-5 if dtype is torch.float32 else 0.02), family
            likeness = torch.nn.functional.cosine_similarity(*all_gradients, dim=0)
            assert likeness > (0.99999 if dtype is torch.float32 else 0.99), family

    def test_weights_keep_their_names_and_a_chosen_attention_stays(self, tiny: ModuleType) -> None:
        model = tiny.fresh("gemma3-pictures", attn_implementation="eager")
        names, weights = [*model.state_dict()], [*model.parameters()]
        keep_less(model)
        assert [*model.state_dict()] == names
        assert all(new is old for new, old in zip(model.parameters(), weights, strict=True))
        assert not model.training
        assert {block.attend for block in model.modules() if hasattr(block, "attend")} == {eager}
        assert sum(type(module) is RMSNorm for module in model.modules()) == 0

    def test_a_trained_model_answers_and_is_saved_as_before(self, tiny: ModuleType, tmp_path: Any) -> None:
        model = tiny.fresh("gemma3")
        ids = tiny.words(1, 6)
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
        keep_less(model)
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False), expected)

    def test_far_fewer_bytes_are_kept(self, tiny: ModuleType) -> None:
        sizes = []
        for less in (False, True):
            model = tiny.fresh("gemma3", attn_implementation=None).bfloat16()
            add_lora(model, LoraSettings(dropout=0.0))
            if less:
                keep_less(model)
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, keep):
                loss = loss_of(model, tiny.prompt("gemma3", length=200))
            own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
            sizes.append(sum(size for place, size in kept.items() if place not in own))
            del loss
        assert sizes[1] < 0.75 * sizes[0]
