"""transformers, for workers/protocol.py."""

import torch
from protocol import serve
from torch_library import TorchLibrary
from transformers import AutoModelForCausalLM


class Transformers(TorchLibrary):
    """The folder of a checkpoint."""

    def load(self, path: str) -> None:
        """See protocol.Library."""
        self.model = None
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


serve(Transformers())
