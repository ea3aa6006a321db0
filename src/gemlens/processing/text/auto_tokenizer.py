"""AutoTokenizer: the tokenizer of a checkpoint."""

import os
from typing import Any

from gemlens.processing.text.tokenizer import GemmaTokenizerFast


class AutoTokenizer:
    """Finds the tokenizer of a checkpoint; all models here share one class."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str], **arguments: Any) -> GemmaTokenizerFast:
        """The tokenizer of a folder or a hub repository; arguments as in `GemmaTokenizerFast.from_pretrained`."""
        return GemmaTokenizerFast.from_pretrained(pretrained_model_name_or_path, **arguments)
