"""gemlens, for workers/protocol.py."""

from pathlib import Path
from typing import Any

from protocol import serve
from torch_library import TorchLibrary

from gemlens import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, SiglipVisionModel
from gemlens.quantization.packed import hasten

FOLDERS = {"pictures": AutoModelForImageTextToText, "encoder": SiglipVisionModel}


class Gemlens(TorchLibrary):
    """A GGUF file, with its tokenizer or without, or a folder of one of FOLDERS."""

    tokenizer: Any = None

    def load(
        self, path: str, kind: str = "text", tokenizer: bool = True, cache: str | None = None, **settings: Any
    ) -> None:
        """See protocol.Library; `cache`: an implementation."""
        self.model = self.tokenizer = None
        if kind in FOLDERS:
            self.model = FOLDERS[kind].from_pretrained(path, **settings)
            hasten(self.model)
            return
        file: dict[str, Any] = {"pretrained_model_name_or_path": Path(path).parent, "gguf_file": Path(path).name}
        self.model = AutoModelForCausalLM.from_pretrained(**file, **settings)
        self.model.generation_config.cache_implementation = cache
        if tokenizer:
            self.tokenizer = AutoTokenizer.from_pretrained(**file)


serve(Gemlens())
