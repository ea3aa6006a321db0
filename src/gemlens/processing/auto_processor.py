"""AutoProcessor: the processor that a checkpoint's files name."""

import os
from pathlib import Path
from typing import Any

from gemlens.checkpoints.hub import Origin
from gemlens.errors import CheckpointError
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.processor_files import class_of
from gemlens.processing.text.tokenizer import GemmaTokenizerFast

_CLASSES = {each.__name__: each for each in (PaliGemmaProcessor, Gemma3Processor)}


class AutoProcessor:
    """Finds the processor of a checkpoint."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast:
        """The processor of a folder or a hub repository; of a model without pictures, its tokenizer.

        Arguments as in `PaliGemmaProcessor.from_pretrained` and `Gemma3Processor.from_pretrained`.

        Raises:
            InputError: a setting that nothing there has.
            CheckpointError: files are missing or damaged, or name a class that gemlens does not have.
        """
        where: dict[str, Any] = {"revision": revision, "subfolder": subfolder, "token": token, "cache_dir": cache_dir}
        where["local_files_only"] = local_files_only
        named = class_of(Origin(pretrained_model_name_or_path, **where))
        if named is None:
            settings.pop("use_fast", None)
            return GemmaTokenizerFast.from_pretrained(pretrained_model_name_or_path, **where, **settings)
        if named not in _CLASSES:
            raise CheckpointError(
                f"The checkpoint's processor is a {named[:100]!r}, but gemlens has {' and '.join(_CLASSES)}."
            )
        return _CLASSES[named].from_pretrained(pretrained_model_name_or_path, **where, **settings)
