"""Checkpoint: what MODEL names on the command line -> its files, config, model, and what reads prompts for it.

folder | hub id | path of a GGUF file, with the mmproj file beside it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.cli.settings import Loading
from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.models.auto import AutoModelForCausalLM, AutoModelForImageTextToText
    from gemlens.models.configs.pretrained import PretrainedConfig
    from gemlens.models.generative import GenerativeModel
    from gemlens.processing.gemma3 import Gemma3Processor
    from gemlens.processing.paligemma import PaliGemmaProcessor
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast
    from gemlens.quantization.config import TorchAoConfig


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model; `Checkpoint.of` makes one.

    Args:
        place: a folder or a hub id.
        gguf: names of GGUF files in the folder: the text model's, and perhaps that of its picture encoder.
    """

    place: str
    gguf: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str) -> "Checkpoint":
        """What a person calls the model.

        Raises:
            InputError: a file that is no GGUF file, or several picture encoders lie beside it.
        """
        path = Path(model)
        if path.is_file() or path.suffix == ".gguf":
            if path.suffix != ".gguf" or not path.is_file():
                wrong = "does not exist" if not path.is_file() else "is no GGUF file"
                raise InputError(f"'{model}' {wrong}; pass a folder, a hub id, or the path of a GGUF file.")
            return cls(str(path.parent), (path.name, *_beside(path)))
        if path.is_dir() and not (path / "config.json").exists() and (found := sorted(path.glob("*.gguf"))):
            raise InputError(f"'{model}' holds GGUF files; pass the path of one, as in '{found[0]}'.")
        return cls(model)

    @property
    def gguf_file(self) -> str | tuple[str, str] | None:
        """As `from_pretrained` wants it."""
        match self.gguf:
            case (text, mmproj):
                return text, mmproj
            case (text,):
                return text
            case _:
                return None

    @property
    def name(self) -> str:
        """How to call it in a sentence."""
        return str(Path(self.place, self.gguf[0])) if self.gguf else self.place

    def config(self) -> "PretrainedConfig":
        """The model's config; nothing else is read."""
        from gemlens import AutoConfig

        return AutoConfig.from_pretrained(self.place, gguf_file=self.gguf_file)

    def load(
        self, loading: Loading, quantization: "TorchAoConfig | None" = None, quantize: str | None = None
    ) -> "GenerativeModel":
        """The model with its weights, in eval mode; `quantize` as in `from_pretrained`."""
        from gemlens.models.generative import GenerativeModel

        device = chosen_device(loading.device)
        model = auto_class(self.config()).from_pretrained(
            self.place,
            gguf_file=self.gguf_file,
            dtype=dequantised_dtype(device) if self.gguf and loading.dtype == "auto" else loading.dtype,
            device_map=device,
            quantization_config=quantization,
            quantize=quantize,
        )
        assert isinstance(model, GenerativeModel)  # all that these classes know are
        return model

    def load_to_answer(self, loading: Loading) -> "GenerativeModel":
        """The same in the order of memory that answers fastest; such a model cannot be saved.

        The blocks of a GGUF file are computed with as they are where kernels can, unless a dtype is named.
        """
        from gemlens.quantization.packed import hasten

        if loading.dtype == "auto" and chosen_device(loading.device) == "cpu" and self._has_native_blocks():
            return self.load(Loading("float32", "cpu"), quantize="stored")
        model = self.load(loading)
        hasten(model)
        return model

    def _has_native_blocks(self) -> bool:
        """Whether this is the GGUF file of a text model all of whose matrices native kernels compute with."""
        from gemlens.checkpoints.gguf import GGUFFile
        from gemlens.kernels.machine import machine
        from gemlens.kernels.tiles import FORMATS

        if len(self.gguf) != 1 or machine().native is None:
            return False
        tensors = GGUFFile.open(Path(self.place, self.gguf[0])).tensors.values()
        return {tensor.format for tensor in tensors if len(tensor.shape) == 2} <= set(FORMATS)

    def reader(self, config: "PretrainedConfig") -> "PaliGemmaProcessor | Gemma3Processor | GemmaTokenizerFast":
        """What reads prompts: the processor of a model with pictures, else the tokenizer."""
        from gemlens import AutoProcessor, AutoTokenizer, Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

        if not self.gguf and config.get_text_config() is not config:
            return AutoProcessor.from_pretrained(self.place)
        if not self.gguf:  # published text models name Gemma 3's processor, but lack its files
            return AutoTokenizer.from_pretrained(self.place)
        tokenizer = AutoTokenizer.from_pretrained(self.place, gguf_file=self.gguf[0])
        if not isinstance(config, Gemma3Config):
            return tokenizer
        # A GGUF file says nothing about how pictures are prepared but their size: the rest is alike in all of Gemma 3.
        side = config.vision_config.image_size
        pictures = Gemma3ImageProcessor(size={"height": side, "width": side})
        return Gemma3Processor(pictures, tokenizer, image_seq_length=config.tokens_per_image)


def _beside(path: Path) -> list[str]:
    """The name of the picture encoder beside a text model's file, if there is one."""
    if path.name.startswith("mmproj"):
        raise InputError(f"'{path}' is a picture encoder; pass the text model's file beside it.")
    found = sorted(each.name for each in path.parent.glob("mmproj*.gguf"))
    if len(found) > 1:
        raise InputError(f"Beside '{path}' lie {' and '.join(found)}; leave the one that belongs to it.")
    return found


def auto_class(config: "PretrainedConfig") -> type["AutoModelForCausalLM | AutoModelForImageTextToText"]:
    """The AutoModel class that knows models of this config which answer, if any does."""
    from gemlens import AutoModelForCausalLM, AutoModelForImageTextToText

    return (
        AutoModelForImageTextToText
        if config.model_type in AutoModelForImageTextToText.classes
        else AutoModelForCausalLM
    )


def chosen_device(device: str) -> str:
    """The device to put a model on.

    Raises:
        InputError: torch does not know it, or it is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"There is no device '{device}' for torch here ({reason}); pass another --device.") from error
    return device


def dequantised_dtype(device: str) -> str:
    """What GGUF's formats become unless told: bfloat16, or float32 on a processor that cannot multiply bfloat16."""
    from gemlens.quantization.packed import multiplies_bfloat16

    return "bfloat16" if device != "cpu" or multiplies_bfloat16() else "float32"
