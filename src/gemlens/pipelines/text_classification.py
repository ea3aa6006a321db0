"""Text -> the names of classes and their scores, with Gemma 3's classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError
from gemlens.models.auto import AutoModelForSequenceClassification
from gemlens.models.pretrained import PreTrainedModel
from gemlens.pipelines.task import Pipeline, batches, sort_keywords
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

Score = dict[str, Any]
_FUNCTIONS = ("default", "sigmoid", "softmax", "none")
_TOKENIZER = ("add_special_tokens", "truncation", "max_length")


@dataclass(frozen=True)
class Settings:
    """What a call asks for.

    Args:
        batch_size: so many texts are read together.
        top_k: how many classes to give, the best first; None for all.
        function_to_apply: from logits to scores: "sigmoid", "softmax" or "none"; None or "default": softmax over
            several classes, sigmoid for one class or several at once, none for regression.
        encode: arguments of the tokenizer: `truncation`, `max_length`, `add_special_tokens`.

    Raises:
        InputError: a value out of range.
    """

    batch_size: int = 1
    top_k: int | None = 1
    function_to_apply: str | None = None
    encode: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.function_to_apply not in (None, *_FUNCTIONS):
            raise InputError(f"function_to_apply is {self.function_to_apply!r}; pass one of {', '.join(_FUNCTIONS)}.")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise InputError(f"top_k is {self.top_k!r}, but it must be a whole number of at least 1, or None for all.")


_OWN = tuple(each.name for each in fields(Settings) if each.name != "encode")


class TextClassificationPipeline(Pipeline):
    """Scores of classes.

    Args:
        model: a classifier.
        tokenizer: of the model.
        defaults: keywords of a call; see `Settings`.
    """

    task = "text-classification"
    models = AutoModelForSequenceClassification

    def __init__(self, model: PreTrainedModel, tokenizer: GemmaTokenizerFast, **defaults: Any) -> None:
        super().__init__(model, tokenizer, **defaults)
        self.tokenizer = tokenizer

    def __call__(self, inputs: Any, **keywords: Any) -> Score | list[Score] | list[list[Score]]:
        """Classifies a text or a list of texts; `{"text": ..., "text_pair": ...}` is one, too.

        Args:
            inputs: the texts.
            keywords: see `Settings`.

        Returns:
            `{"label": ..., "score": ...}` of each text, in a list also for a single one that is no dict. If this call
            says `top_k`, a list of these of each text, and no list around that of a single one.

        Raises:
            InputError: these are no texts, or an argument is wrong.
            TypeError: a keyword of an unknown name.
        """
        settings = self.settings(self.tokenizer, {**self._defaults, **keywords})
        single = isinstance(inputs, (str, Mapping))
        texts = [inputs] if single else inputs
        if not isinstance(texts, (list, tuple)):
            raise InputError(f"A {type(inputs).__name__} came; pass a text or a list of texts.")
        rows = [self._row(text, settings) for text in texts]
        scores = [row for batch in batches(rows, settings.batch_size) for row in self._scores(batch, settings)]
        ranked = [self._ranked(row) for row in scores]
        found: list[Any] = [row[0] for row in ranked]
        if "top_k" in {**self._defaults, **keywords}:
            found = [row[: settings.top_k] for row in ranked]
        if isinstance(inputs, str) and "top_k" not in keywords:
            return found
        return found[0] if single else found

    @classmethod
    def settings(cls, encoder: Any, keywords: Mapping[str, Any]) -> Settings:
        """What keywords of a call ask for; see `Settings`."""
        own, encode = sort_keywords(keywords, _OWN, _TOKENIZER, task=cls.task)
        return Settings(**own, encode=encode)

    def _row(self, text: Any, settings: Settings) -> list[int]:
        pair = dict(text) if isinstance(text, Mapping) else {"text": text}
        if not all(isinstance(each, str) for each in pair.values()) or not {"text"} <= {*pair} <= {"text", "text_pair"}:
            raise InputError("Pass texts, or dicts {'text': ..., 'text_pair': ...} of two texts.")
        return list(self.tokenizer(pair["text"], pair.get("text_pair"), **settings.encode)["input_ids"])

    def _scores(self, rows: Sequence[list[int]], settings: Settings) -> Tensor:
        """[B, classes]."""
        batch = self.tokenizer.pad({"input_ids": rows}, padding=len(rows) > 1, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        scores: Tensor = logits.logits.float().cpu()
        function = settings.function_to_apply or "default"
        if function == "default":
            function = _usual_function(self.model.config.problem_type, self.model.config.num_labels)
        if function == "none":
            return scores
        return scores.sigmoid() if function == "sigmoid" else scores.softmax(-1)

    def _ranked(self, scores: Tensor) -> list[Score]:
        """All classes, the best first."""
        order = scores.argsort(descending=True, stable=True).tolist()
        return [{"label": self._label(place), "score": float(scores[place])} for place in order]

    def _label(self, place: int) -> str:
        names = self.model.config.id2label
        return f"LABEL_{place}" if names is None else names[place]


def _usual_function(problem_type: str | None, classes: int) -> str:
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or classes == 1 else "softmax"
