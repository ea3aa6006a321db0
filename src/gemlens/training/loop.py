"""The loop: read a step, add up gradients, update, measure; and once in a while evaluate and save.

Everything that happens in a step is a function of the settings and of the step's number, and of the weights: order and
dropout draw from seeds of their own. So a run that was killed goes on from its last checkpoint to the very same end.
Several processes (torchrun, FSDP2) would each take their share in `Order.step`, wrap `model` before the optimizer is
made, and add up `weight` and the gradients before `_update`.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gemlens.data.example import Source
from gemlens.errors import InputError
from gemlens.training import checkpoints
from gemlens.training.loading import Batch, Collate, Step, read_steps, steps_of
from gemlens.training.metrics import Metrics
from gemlens.training.objective import Goal, Objective
from gemlens.training.optimizers import learning, optimizers_of, update
from gemlens.training.order import seed_of
from gemlens.training.schedule import rate
from gemlens.training.settings import Settings

Say = Callable[[str], None]
Evaluate = Callable[[], Mapping[str, float]]
Watch = Callable[[int, int, Mapping[str, float]], None]
Stop = Callable[[], bool]


@dataclass
class Run:
    """One training, ready to go.

    Args:
        settings: of the run.
        model: whose weights that require a gradient learn.
        source: what is learned from.
        collate: examples -> what the model takes.
        objective: what is minimised; None for the cross-entropy of answers that the settings describe.
        evaluate: values by name, "loss" among them as "validation_loss"; None for no evaluation.
        keep_best: writes the result somewhere; called when an evaluation is the best so far.
        watch: told (step, steps, values) after each step.
        say: told sentences.
        stop: asked after each step whether to save and stop there.
    """

    settings: Settings
    model: nn.Module
    source: Source
    collate: Collate
    objective: Goal | None = None
    evaluate: Evaluate | None = None
    keep_best: Callable[[], None] | None = None
    watch: Watch = field(default=lambda step, steps, values: None)
    say: Say = field(default=lambda sentence: None)
    stop: Stop = field(default=lambda: False)

    def __post_init__(self) -> None:
        self.steps = steps_of(self.settings, len(self.source))
        self.optimizers = optimizers_of(self.model, self.settings)
        self.goal = self.objective or Objective(self.settings.mean, self.settings.label_smoothing)
        self.folder = Path(self.settings.output)
        self.best: float | None = None

    def train(self) -> None:
        """Trains to the end, from the last checkpoint in the output folder if there is one.

        Raises:
            GemlensError: an example cannot be read, a file cannot be written, or the loss is no longer a number.
            KeyboardInterrupt: `stop` said so; where the run stands is saved.
        """
        start = self._resume()
        metrics = Metrics(self.folder, start, self.settings.tensorboard)
        self.model.train()
        try:
            for step in read_steps(self.source, self.collate, self.settings, start, self.steps):
                began = time.perf_counter()
                values = self._step(step)
                values["seconds"] = time.perf_counter() - began
                self._after(step.number + 1, values, metrics)
                if self.stop() and step.number + 1 < self.steps:
                    self._save(step.number + 1)
                    self.say(f"Stopped after step {step.number + 1}; the same training goes on from there.")
                    raise KeyboardInterrupt
        finally:
            metrics.close()

    # -- a step --------------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> dict[str, float]:
        for sentence in step.skipped:
            self.say(f"Skipped: {sentence}")
        torch.manual_seed(seed_of(self.settings.seed, step.number))
        learning_rate = rate(self.settings, step.number, self.steps)
        weight = sum(weight_of(self.goal, batch) for batch in step.batches)
        loss = 0.0
        for batch in step.batches if weight else ():
            part = summed_loss(self.model, self.goal, batch, self.settings.precision) / weight
            torch.autograd.backward(part)
            loss += float(part.detach())
        if not math.isfinite(loss):
            raise InputError(
                f"The loss of step {step.number + 1} is {loss}; the weights of the last checkpoint are whole. A lower "
                "learning_rate, more warmup, or precision = 'fp32' may help."
            )
        return {"loss": loss, "rate": learning_rate, "norm": self._update(learning_rate) if weight else 0.0}

    def _update(self, learning_rate: float) -> float:
        """Changes the weights; gives the norm of the gradient."""
        norm = nn.utils.clip_grad_norm_(learning(self.model).values(), self.settings.clip or math.inf)
        update(self.optimizers, learning_rate)
        return float(norm)

    # -- between steps -------------------------------------------------------------------------------------------------

    def _after(self, done: int, values: dict[str, float], metrics: Metrics) -> None:
        settings, is_last = self.settings, done == self.steps
        is_scored = self.evaluate is not None and (done % settings.evaluate_every == 0 or is_last)
        if self.evaluate is not None and is_scored:
            scored = self.evaluate()
            self.model.train()
            values |= scored
            self._keep_if_best(scored)
        if done % settings.log_every == 0 or is_last or is_scored:
            metrics.write(done, values)
        self.watch(done, self.steps, values)
        if done % settings.save_every == 0 or is_last:
            self._save(done)

    def _save(self, done: int) -> None:
        state = checkpoints.State(done, self.best, self.settings.to_dict())
        checkpoints.save(self.folder / "checkpoints", self.model, self.optimizers, state, self.settings.keep)

    def _keep_if_best(self, scored: Mapping[str, float]) -> None:
        name = "validation_loss" if self.settings.metric == "loss" else self.settings.metric
        if name not in scored:
            raise InputError(f"The evaluation gives {', '.join(scored)}, but no {name!r}; choose one as metric.")
        value = -scored[name] if name == "validation_loss" else scored[name]
        if self.best is None or value > self.best:
            self.best = value
            if self.keep_best is not None:
                self.keep_best()

    def _resume(self) -> int:
        """How many steps were made already, by an earlier run with the same settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in reversed(checkpoints.found(self.folder / "checkpoints")):
            state = checkpoints.read_state(place)
            checkpoints.check_same(place, state.settings, self.settings.to_dict())
            checkpoints.restore(place, self.model, self.optimizers, state.step)
            self.best = state.best
            self.say(f"Going on from step {state.step} of {self.steps}.")
            return state.step
        return 0


def summed_loss(model: nn.Module, objective: Goal, batch: Batch, precision: str) -> Tensor:
    """The sum that an objective gives for a batch, computed where the model is and in the wanted numbers."""
    device = next(model.parameters()).device
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return objective(model, moved)


def weight_of(objective: Goal, batch: Batch) -> float:
    """How much of a batch counts; see `Objective.weight`."""
    return float(objective.weight(batch["labels"], batch.get("attention_mask"), batch.get("position_ids")))


def mean_loss(model: nn.Module, objective: Goal, batches: Iterable[Batch], precision: str) -> float:
    """The loss over batches of any sizes, in eval mode; nan where nothing is scored."""
    model.eval()
    total = weight = 0.0
    with torch.no_grad():
        for batch in batches:
            total += float(summed_loss(model, objective, batch, precision))
            weight += weight_of(objective, batch)
    return total / weight if weight else math.nan
