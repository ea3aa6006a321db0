"""transformers, for workers/protocol.py."""

import torch
from protocol import serve
from torch_library import TorchLibrary
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, SiglipVisionModel

KINDS = {"text": AutoModelForCausalLM, "pictures": AutoModelForImageTextToText, "encoder": SiglipVisionModel}


class Transformers(TorchLibrary):
    """The folder of a checkpoint of some kind."""

    def load(self, path: str, kind: str = "text") -> None:
        """See protocol.Library."""
        self.model = None
        self.model = KINDS[kind].from_pretrained(path, dtype=torch.bfloat16).eval()


serve(Transformers())
