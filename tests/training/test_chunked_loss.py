"""Cross-entropy by chunks is cross-entropy: value and gradients, in every number format, with every kind of head."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gemlens.models.layers import softcap
from gemlens.training.chunked_loss import Rule, chunked_cross_entropy

N, D, V = 11, 6, 17
RULES = [Rule(cap, smoothing, chunk) for cap, smoothing, chunk in product((None, 0.7), (0.0, 0.3), (1, 4, 11, 50))]
PEAK = Path("/proc/self/clear_refs")


class WithAdapter(nn.Module):
    """A frozen matrix and two thin ones that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(D, V, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.matrix(hidden) + self.up(F.dropout(self.down(hidden), 0.5, self.training))


class EightBits(nn.Module):
    """A matrix of whole numbers, as quantization leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (V, D), dtype=torch.int8))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.to(hidden.dtype) / 127)


def with_hook() -> nn.Module:
    head = nn.Linear(D, V, bias=False)
    head.register_forward_hook(lambda module, given, logits: logits * 2)
    return head


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "learning": lambda: nn.Linear(D, V, bias=False),
    "frozen": lambda: nn.Linear(D, V, bias=False).requires_grad_(False),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: nn.Linear(D, V),
    "adapter": lambda: WithAdapter().eval(),
    "eight bits": EightBits,
    "hook": with_hook,
    "two layers": lambda: nn.Sequential(nn.Linear(D, 3), nn.Linear(3, V)),
}
HEADS = PLAIN | OTHERS


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def rows(count: int = N, size: int = D, words: int = V) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets, weights."""
    return torch.randn(count, size, requires_grad=True), torch.randint(0, words, (count,)), torch.rand(count)


def at_once(hidden: Tensor, targets: Tensor, head: nn.Module, rule: Rule, weights: Tensor) -> Tensor:
    """The definition, on all logits."""
    logits = softcap(head(hidden).float(), rule.cap)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=rule.label_smoothing)
    return (losses * weights).sum()


def gradients(loss: Tensor, hidden: Tensor, head: nn.Module) -> list[Tensor]:
    learning = [hidden, *(weight for weight in head.parameters() if weight.requires_grad)]
    return list(torch.autograd.grad(loss, learning))


def gap(first: list[Tensor], second: list[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for each in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.untyped_storage().nbytes() // each.itemsize)
        return given


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_give_the_loss_and_gradients_of_all_logits(kind: str, rule: Rule) -> None:
    head = HEADS[kind]()
    hidden, targets, weights = rows()
    expected = at_once(hidden, targets, head, rule, weights)
    given = chunked_cross_entropy(hidden, targets, head, rule, weights)
    assert abs(given / expected - 1) < 1e-6
    assert gap(gradients(expected, hidden, head), gradients(given, hidden, head)) < 1e-6


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_follow_what_is_done_with_the_loss(kind: str) -> None:
    head = HEADS[kind]()
    hidden, targets, weights = rows()
    expected = (at_once(hidden, targets, head, Rule(), weights) / 7).square()
    given = (chunked_cross_entropy(hidden, targets, head, Rule(chunk=3), weights) / 7).square()
    assert gap(gradients(expected, hidden, head), gradients(given, hidden, head)) < 1e-6


@pytest.mark.parametrize("rule", [Rule(chunk=2), Rule(cap=0.7, chunk=2), Rule(0.9, 0.2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["learning", "frozen", "bias", "adapter"])
def test_derivatives_are_those_of_differences_in_double_precision(kind: str, rule: Rule) -> None:
    head = HEADS[kind]().double()
    hidden, targets, weights = rows(4)
    learning = [weight for weight in head.parameters() if weight.requires_grad]  # gradcheck changes them in place

    def loss(hidden: Tensor, *_: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, targets, head, rule, weights.double())

    assert torch.autograd.gradcheck(loss, (hidden.detach().double().requires_grad_(), *learning))


@pytest.mark.parametrize("kind", HEADS)
def test_no_tokens_give_zero_and_no_gradient(kind: str) -> None:
    head = HEADS[kind]()
    hidden, targets, _ = rows(0)
    loss = chunked_cross_entropy(hidden, targets, head, Rule())
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not any(weight.grad.any() for weight in head.parameters() if weight.grad is not None)


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_is_the_same_without_gradients(kind: str) -> None:
    head = HEADS[kind]()
    hidden, targets, weights = rows()
    loss = chunked_cross_entropy(hidden, targets, head, Rule(0.7, 0.1, 4), weights)
    with torch.no_grad():
        alone = chunked_cross_entropy(hidden, targets, head, Rule(0.7, 0.1, 4), weights)
    assert torch.equal(loss, alone)
    assert loss.requires_grad
    assert not alone.requires_grad


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    head = nn.Linear(D, V, bias=False)
    hidden, targets, weights = rows()
    hidden = (hidden * 1e4).detach().requires_grad_()
    expected = at_once(hidden, targets, head, Rule(), weights)
    given = chunked_cross_entropy(hidden, targets, head, Rule(chunk=4), weights)
    assert expected > 1000
    assert abs(given / expected - 1) < 1e-6
    assert gap(gradients(expected, hidden, head), gradients(given, hidden, head)) < 1e-3  # of gradients of 1e4


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learning", "frozen", "bias"])
def test_bfloat16_models_have_a_float32_softmax(kind: str) -> None:
    """Rounded are only the products, as in a model that makes all logits."""
    head = HEADS[kind]().bfloat16()
    hidden, targets, weights = rows()
    hidden = hidden.detach().bfloat16().requires_grad_()
    expected = at_once(hidden, targets, head, Rule(0.7, 0.1), weights)
    given = chunked_cross_entropy(hidden, targets, head, Rule(0.7, 0.1, 4), weights)
    assert given.dtype == torch.float32
    assert abs(given / expected - 1) < 1e-6
    for ours, theirs in zip(gradients(given, hidden, head), gradients(expected, hidden, head), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["learning", "frozen", "bias", "adapter"])
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(kind: str) -> None:
    head = HEADS[kind]()
    hidden, targets, weights = rows()
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16
        expected = at_once(hidden, targets, head, Rule(0.7, 0.1), weights)
        given = chunked_cross_entropy(hidden, targets, head, Rule(0.7, 0.1, 4), weights)
    exact = at_once(hidden, targets, head, Rule(0.7, 0.1), weights)
    assert given.dtype == torch.float32
    assert abs(given / expected - 1) < 1e-6
    assert abs(given / exact - 1) > 1e-6  # otherwise nothing was rounded
    for ours, theirs in zip(gradients(given, hidden, head), gradients(expected, hidden, head), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max()


def test_the_weights_gradient_is_summed_in_float32() -> None:
    """512 chunks that each add a half to it; in bfloat16 128 and a half are 128."""
    head = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(head.weight)
    hidden, targets = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.int64)
    chunked_cross_entropy(hidden, targets, head, Rule(chunk=1)).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.flatten().tolist() == [-256.0, 256.0]
    assert sum(torch.full((512,), 0.5, dtype=torch.bfloat16)) == 128


# -- where it stands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learning", "adapter"])
def test_a_dropout_in_the_head_falls_the_same_way_in_the_backward_pass(kind: str) -> None:
    """And the loss may itself be part of what is computed twice."""
    head = HEADS[kind]().train()
    hidden, targets, weights = rows()

    def loss(hidden: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden.tanh(), targets, head, Rule(chunk=4), weights)

    torch.manual_seed(1)
    expected = gradients(loss(hidden), hidden, head)
    torch.manual_seed(1)
    twice: Any = checkpoint(loss, hidden, use_reentrant=False)
    assert gap(expected, gradients(twice, hidden, head)) == 0


def test_an_embedding_that_is_the_head_gets_gradients_of_both() -> None:
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    head.weight = embedding.weight
    ids, targets, weights = torch.randint(0, V, (N,)), torch.randint(0, V, (N,)), torch.rand(N)

    def gradient(loss: Callable[..., Tensor], states: Tensor) -> Tensor:
        return torch.autograd.grad(loss(states, targets, head, Rule(chunk=4), weights), embedding.weight)[0]

    expected = gradient(at_once, embedding(ids))
    given = gradient(chunked_cross_entropy, embedding(ids))
    assert gap([expected], [given]) < 1e-6
    by_the_head_alone = gradient(chunked_cross_entropy, embedding(ids).detach())
    assert gap([expected], [by_the_head_alone]) > 1e-2


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_no_tensor_is_larger_than_a_chunks_logits(kind: str) -> None:
    head = HEADS[kind]()
    hidden, targets, weights = rows(100)
    most = {}
    for name, loss in (("at once", at_once), ("chunks", chunked_cross_entropy)):
        with Largest() as largest:
            gradients(loss(hidden, targets, head, Rule(0.7, 0.1, 40), weights), hidden, head)
        most[name] = largest.numbers
    assert most == {"at once": 100 * V, "chunks": 40 * V}


def peak(do: Callable[[], Any]) -> int:
    """How many bytes more the process needs at most, in this call."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    PEAK.write_text("5")  # Linux then counts the peak anew
    before = status("VmRSS:")
    do()
    return status("VmHWM:") - before


@pytest.mark.skipif(not PEAK.exists(), reason="the system does not say how much memory was needed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_of_memory_is_that_of_a_few_chunks(dtype: torch.dtype) -> None:
    words, count = 50_000, 1000
    head = nn.Linear(4, words, bias=False, dtype=dtype).requires_grad_(False)
    hidden, targets, weights = rows(count, 4, words)
    hidden = hidden.detach().to(dtype).requires_grad_()
    chunk, logits = Rule(chunk=50), count * words * dtype.itemsize
    assert peak(lambda: at_once(hidden, targets, head, chunk, weights).backward()) > logits
    assert peak(lambda: chunked_cross_entropy(hidden, targets, head, chunk, weights).backward()) < logits / 2
