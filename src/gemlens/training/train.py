"""`train(settings)`: names in settings -> model, processor, data -> Run -> files.

OUTPUT/settings.json        what was asked for, complete
       metrics.jsonl        loss.png  tensorboard/
       checkpoints/         where the run stands
       best/ last/          models, or adapters, with what reads prompts for them
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemlens.data.example import Source
from gemlens.errors import InputError
from gemlens.models.generative import GenerativeModel
from gemlens.training import metrics, plot
from gemlens.training.batches import Collator
from gemlens.training.loading import Batch
from gemlens.training.loop import Run, Say, Stop, Watch, mean_loss
from gemlens.training.objective import Objective
from gemlens.training.settings import Settings


@dataclass(frozen=True)
class Trainee:
    """What learns, and what reads prompts for it.

    Args:
        model: with the weights that learn marked by requires_grad.
        processor: a processor, or a tokenizer for a model without pictures.
    """

    model: GenerativeModel
    processor: Any

    def save(self, folder: Path, adapter_of: str | None = None) -> None:
        """Writes the model and the processor; of a model with an adapter, named as `adapter_of`, the adapter alone."""
        from gemlens.training.adapters import save_adapter

        if adapter_of is not None:
            save_adapter(self.model, folder, adapter_of)
        else:
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def train(
    settings: Settings,
    *,
    watch: Watch = lambda step, steps, values: None,
    say: Say = lambda sentence: None,
    stop: Stop = lambda: False,
) -> Path:
    """Trains, or goes on where a run with the same settings and output stopped.

    Args:
        settings: of the run.
        watch: told (step, steps, values) after each step.
        say: told sentences.
        stop: asked after each step whether to save and stop there.

    Returns:
        The folder of the result: the best model or adapter, or without validation the last one.

    Raises:
        GemlensError: something cannot be read or written, or does not fit.
        KeyboardInterrupt: `stop` said so; where the run stands is saved.
    """
    from gemlens.checkpoints.save import write_json
    from gemlens.data.sources import open_source

    settings = settled(settings)
    trainee = prepare(settings)
    source = open_source(*settings.data)
    collator = Collator(trainee.processor, max_length=settings.max_length or None)
    folder, adapter_of = Path(settings.output), settings.model if settings.method == "lora" else None
    run = Run(settings, trainee.model, source, collator, watch=watch, say=say, stop=stop)
    if settings.validation:
        run.evaluate = Evaluation(settings, trainee, open_source(settings.validation), collator)
        run.keep_best = partial(trainee.save, folder / "best", adapter_of)
    run.train()
    write_json(folder / "settings.json", settings.to_dict())
    trainee.model.eval()
    trainee.save(folder / "last", adapter_of)
    if not plot.draw_loss(metrics.read(folder / metrics.FILE), folder / plot.FILE):
        say("There is no picture of the loss, because matplotlib is not installed; pip install 'gemlens[train]'.")
    return folder / ("best" if settings.validation else "last")


def settled(settings: Settings) -> Settings:
    """The same with precision as it is computed in here."""
    from gemlens.quantization.packed import multiplies_bfloat16

    if settings.precision != "auto":
        return settings
    return replace(settings, precision="bf16" if torch.cuda.is_available() or multiplies_bfloat16() else "fp32")


def prepare(settings: Settings) -> Trainee:
    """Loads a model and marks what learns; settings must be `settled`.

    Raises:
        GemlensError: it cannot be loaded, a part that should learn is unknown, or there is no compiler.
    """
    from gemlens.models.auto import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from gemlens.processing.auto_processor import AutoProcessor
    from gemlens.processing.text.auto_tokenizer import AutoTokenizer
    from gemlens.training.activations import keep_less
    from gemlens.training.compiling import compile_layers
    from gemlens.training.freezing import train_only
    from gemlens.training.lora import add_lora

    config = AutoConfig.from_pretrained(settings.model)
    has_pictures = config.get_text_config() is not config
    low_rank = settings.method == "lora"
    model = (AutoModelForImageTextToText if has_pictures else AutoModelForCausalLM).from_pretrained(
        settings.model,
        dtype=torch.bfloat16 if low_rank and settings.precision == "bf16" else torch.float32,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        attn_implementation=settings.attention or None,
    )
    assert isinstance(model, GenerativeModel)
    torch.manual_seed(settings.seed)
    if low_rank:
        add_lora(model, settings.lora)
    if settings.train or not low_rank:
        train_only(model, [*settings.train, *(["lora"] if low_rank else [])] or ["all"])
    keep_less(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.compile:
        compile_layers(model)
    processor = (AutoProcessor if has_pictures else AutoTokenizer).from_pretrained(settings.model)
    return Trainee(model, processor)


@dataclass
class Evaluation:
    """Scores a model on other data: the loss, and a metric of gemlens.evals if one is asked for.

    Args:
        settings: of the run.
        trainee: what is scored.
        source: what it is scored on.
        collator: examples -> what the model takes.
    """

    settings: Settings
    trainee: Trainee
    source: Source
    collator: Collator
    objective: Objective = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.source):
            raise InputError(f"The validation data '{self.settings.validation}' holds no examples.")
        self.objective = Objective(mean=self.settings.mean)

    def __call__(self) -> Mapping[str, float]:
        """Values by name: "validation_loss" and the metric's."""
        settings, model = self.settings, self.trainee.model
        values = {"validation_loss": mean_loss(model, self.objective, self._batches(), settings.precision)}
        if settings.metric != "loss":
            from gemlens.evals.run import evaluate

            report = evaluate(
                model,
                self.trainee.processor,
                self.source,
                metric=settings.metric,
                batch_size=settings.batch_size,
                limit=settings.evaluate_limit or None,
            )
            values |= report.values
        return values

    def _batches(self) -> Iterator[Batch]:
        count = min(len(self.source), self.settings.evaluate_limit or len(self.source))
        for first in range(0, count, self.settings.batch_size):
            numbers = range(first, min(first + self.settings.batch_size, count))
            yield self.collator([self.source[number] for number in numbers])
