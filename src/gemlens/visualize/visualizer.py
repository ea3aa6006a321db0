"""AttentionMaskVisualizer: a prompt -> the mask that the model will use, drawn.

    prompt, pictures -> prompts.py -> ids, types -> model.span (on the meta device: no weights) -> View -> mask

The mask is not drawn by rules of its own: it is what attention in the model gets, see gemlens.spans.
"""

import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch

from gemlens.errors import CheckpointError, InputError
from gemlens.models.auto import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from gemlens.models.configs.multimodal import Gemma3Config, PaliGemmaConfig
from gemlens.models.multimodal import MultimodalForConditionalGeneration
from gemlens.models.text import CausalLM
from gemlens.processing.auto_processor import AutoProcessor
from gemlens.processing.gemma3 import Gemma3Processor
from gemlens.processing.paligemma import PaliGemmaProcessor
from gemlens.processing.text.auto_tokenizer import AutoTokenizer
from gemlens.processing.text.tokenizer import GemmaTokenizerFast
from gemlens.spans import View
from gemlens.visualize.chart import LayerMask, Token
from gemlens.visualize.drawing import MaskDrawing
from gemlens.visualize.prompts import Encoded, encode_gemma3, encode_paligemma, encode_text


class AttentionMaskVisualizer:
    """Shows which tokens of a prompt see which, in each kind of layer of a model.

        visualizer = AttentionMaskVisualizer("google/paligemma2-3b-mix-224")
        visualizer("<img> What is in this image?").save("mask.svg")

    Args:
        model_name: a folder or a hub repository with `config.json` and the files of its tokenizer and, if it sees
            pictures, of its processor. Weights are not read.
        revision, subfolder, token, cache_dir, local_files_only: which files of the hub, as in huggingface_hub.

    Raises:
        CheckpointError: files are missing or damaged, or the processor's do not fit the config.
        InputError: the config describes no model that reads text.
    """

    def __init__(
        self,
        model_name: str | Path,
        *,
        revision: str = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        where: dict[str, Any] = {"revision": revision, "subfolder": subfolder, "token": token, "cache_dir": cache_dir}
        where["local_files_only"] = local_files_only
        self.model_name = os.fspath(model_name)
        self.config = AutoConfig.from_pretrained(model_name, **where)
        self.processor: PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast
        auto: Any = AutoModelForCausalLM
        if isinstance(self.config, PaliGemmaConfig | Gemma3Config):
            auto = AutoModelForImageTextToText
            self.processor = AutoProcessor.from_pretrained(model_name, **where)
            _check_fit(self.processor, self.config)
        else:  # not AutoProcessor: published text models name Gemma 3's processor, but lack its files
            self.processor = AutoTokenizer.from_pretrained(model_name, **where)
        with torch.device("meta"):
            self.model: CausalLM | MultimodalForConditionalGeneration = auto.from_config(self.config)

    def __call__(
        self, prompt: str, images: Any = None, suffix: str | None = None, *, tokens_per_picture_drawn: int = 5
    ) -> MaskDrawing:
        """Prints the masks of a prompt, and gives them.

        The print has colours where the terminal shows them and the variable NO_COLOR is not set.

        Args:
            prompt: the text as the processor takes it (no chat template is applied), with `<img>`, or the model's own
                mark, where a picture stands.
            images: the pictures; None for a blank one in each place.
            suffix: the answer: what PaliGemma learns; for other models, text behind the prompt.
            tokens_per_picture_drawn: how many lines a picture may take where its tokens are alike; one line then stands
                for the rest.

        Raises:
            InputError: pictures and places do not fit, pictures for a text model, or an argument of a wrong type.
            PictureError: a picture is damaged or may not be fetched.
        """
        for name, text in (("prompt", prompt), ("suffix", "" if suffix is None else suffix)):
            if not isinstance(text, str):
                raise InputError(f"{name} is a {type(text).__name__}, but it must be one text.")
        drawn = tokens_per_picture_drawn
        if type(drawn) is not int or drawn < 1:
            raise InputError(f"tokens_per_picture_drawn is {drawn!r}, but it must be a whole number above 0.")
        encoded = self._encode(prompt, images, suffix)
        if not encoded.kinds:
            raise InputError("The prompt has no tokens, so there is nothing to draw; pass some text.")
        drawing = MaskDrawing(self.model_name, self._tokens(encoded), self._masks(encoded), drawn)
        _print(drawing)
        return drawing

    def _encode(self, prompt: str, images: Any, suffix: str | None) -> Encoded:
        if isinstance(self.processor, PaliGemmaProcessor):
            return encode_paligemma(self.processor, prompt, images, suffix)
        if isinstance(self.processor, Gemma3Processor):
            return encode_gemma3(self.processor, prompt, images, suffix)
        return encode_text(self.processor, prompt, images, suffix)

    def _tokens(self, encoded: Encoded) -> tuple[Token, ...]:
        """Pieces with their kinds; the n-th picture token belongs to picture n // tokens per picture."""
        processor, seen = self.processor, count()
        tokenizer = processor if isinstance(processor, GemmaTokenizerFast) else processor.tokenizer
        each = 0 if isinstance(processor, GemmaTokenizerFast) else processor.image_seq_length
        pieces = tokenizer.convert_ids_to_tokens(encoded.ids[0].tolist())
        return tuple(
            Token(piece, kind, next(seen) // each if kind == "picture" else None)
            for piece, kind in zip(pieces, encoded.kinds, strict=True)
        )

    def _masks(self, encoded: Encoded) -> tuple[LayerMask, ...]:
        """A mask per window, as the model makes them (models/decoder.py, run_layers)."""
        span = self.model.span(encoded.ids, token_type_ids=encoded.types)
        windows = self.model.text_model().windows
        without_window = View(span, span).mask[0, 0]
        masks = []
        for window in dict.fromkeys(windows):
            layers = tuple(number for number, each in enumerate(windows) if each == window)
            seen = View(span, span, window).mask[0, 0]
            masks.append(LayerMask(window, layers, len(windows), seen, without_window & ~seen))
        return tuple(masks)


def _check_fit(processor: object, config: PaliGemmaConfig | Gemma3Config) -> None:
    """The processor's files must describe the model's pictures, or the mask would be another than the model's."""
    wanted = PaliGemmaProcessor if isinstance(config, PaliGemmaConfig) else Gemma3Processor
    if not isinstance(processor, wanted):
        raise CheckpointError(
            f"config.json describes a {config.model_type} model, but the other files a {type(processor).__name__}; "
            f"save a {wanted.__name__} beside it."
        )
    if (processor.image_seq_length, processor.image_token_id) != (config.tokens_per_image, config.image_token_index):
        raise CheckpointError(
            f"The processor writes {processor.image_seq_length} tokens of id {processor.image_token_id} per picture, "
            f"but the model takes {config.tokens_per_image} of id {config.image_token_index}; their files are of "
            "different checkpoints."
        )


def _print(drawing: MaskDrawing) -> None:
    """To standard output; what its encoding does not have is written as codes."""
    shows = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = sys.stdout.encoding or "utf-8"
    print(drawing.text(colour=shows).encode(encoding, "backslashreplace").decode(encoding))
