"""transformers, for workers/protocol.py."""

import torch
from protocol import serve
from torch_library import TorchLibrary
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


class Transformers(TorchLibrary):
    """The folder of a checkpoint, with pictures or without."""

    def load(self, path: str, pictures: bool = False) -> None:
        """See protocol.Library."""
        self.model = None
        kind = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
        self.model = kind.from_pretrained(path, dtype=torch.bfloat16)


serve(Transformers())
