"""gemlens: PaliGemma, PaliGemma 2 and Gemma 3 in one small, readable, fast library.

The way of the data, one direction, seven words:

    ask -> encode -> prefill -> step -> sample -> decode -> understand

    models/        prefill, step: ids, pixels, spans and a cache in, logits out
    caches/        what has been seen
    spans.py       who sees whom: two integers per token and one rule
    checkpoints/   files <-> models
    kernels/       number formats and their plain arithmetic
    processing/    encode, decode: people <-> numbers
    generation/    sample: the only loop
    tasks/         understand: text <-> boxes, masks, drawings
    data/          examples to learn from and to be scored on, from files
    scenes/        a drawn world of exact examples
    training/      examples -> weights that learned
    evals/         examples -> scores
    cli/           ask: the command line
    pipelines/     ask: what a person has -> answers, in one call
    visualize/     the true mask, drawn
    utils/         one alias that the documented interface has there
    quantization/  weights as small integers: leaves that take the place of others
    assets/        the embedded model, and a picture to show it
    errors.py      what is refused, as sentences

Names are looked up when they are first used: `import gemlens` loads neither torch nor anything else that is slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemlens.caches.cache import Cache as Cache
    from gemlens.caches.dynamic import DynamicCache as DynamicCache
    from gemlens.caches.offloaded import OffloadedCache as OffloadedCache
    from gemlens.caches.offloaded import OffloadedStaticCache as OffloadedStaticCache
    from gemlens.caches.quantized import QuantizedCache as QuantizedCache
    from gemlens.caches.static import StaticCache as StaticCache
    from gemlens.errors import CheckpointError as CheckpointError
    from gemlens.errors import ConfigError as ConfigError
    from gemlens.errors import GemlensError as GemlensError
    from gemlens.errors import InputError as InputError
    from gemlens.errors import PictureError as PictureError
    from gemlens.generation.config import GenerationConfig as GenerationConfig
    from gemlens.generation.logits import LogitsProcessor as LogitsProcessor
    from gemlens.generation.logits import LogitsProcessorList as LogitsProcessorList
    from gemlens.generation.stopping import StoppingCriteria as StoppingCriteria
    from gemlens.generation.stopping import StoppingCriteriaList as StoppingCriteriaList
    from gemlens.models.auto import AutoConfig as AutoConfig
    from gemlens.models.auto import AutoModel as AutoModel
    from gemlens.models.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from gemlens.models.auto import AutoModelForImageTextToText as AutoModelForImageTextToText
    from gemlens.models.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from gemlens.models.configs.multimodal import Gemma3Config as Gemma3Config
    from gemlens.models.configs.multimodal import PaliGemmaConfig as PaliGemmaConfig
    from gemlens.models.configs.siglip import SiglipVisionConfig as SiglipVisionConfig
    from gemlens.models.configs.text import Gemma2Config as Gemma2Config
    from gemlens.models.configs.text import Gemma3TextConfig as Gemma3TextConfig
    from gemlens.models.configs.text import GemmaConfig as GemmaConfig
    from gemlens.models.gemma3 import Gemma3ForConditionalGeneration as Gemma3ForConditionalGeneration
    from gemlens.models.gemma3 import Gemma3ForSequenceClassification as Gemma3ForSequenceClassification
    from gemlens.models.gemma3 import Gemma3Model as Gemma3Model
    from gemlens.models.paligemma import PaliGemmaForConditionalGeneration as PaliGemmaForConditionalGeneration
    from gemlens.models.paligemma import PaliGemmaModel as PaliGemmaModel
    from gemlens.models.siglip import SiglipVisionModel as SiglipVisionModel
    from gemlens.models.text import Gemma2ForCausalLM as Gemma2ForCausalLM
    from gemlens.models.text import Gemma2Model as Gemma2Model
    from gemlens.models.text import Gemma3ForCausalLM as Gemma3ForCausalLM
    from gemlens.models.text import Gemma3TextModel as Gemma3TextModel
    from gemlens.models.text import GemmaForCausalLM as GemmaForCausalLM
    from gemlens.models.text import GemmaModel as GemmaModel
    from gemlens.pipelines.pipeline import pipeline as pipeline
    from gemlens.processing.auto_processor import AutoProcessor as AutoProcessor
    from gemlens.processing.gemma3 import Gemma3Processor as Gemma3Processor
    from gemlens.processing.paligemma import PaliGemmaProcessor as PaliGemmaProcessor
    from gemlens.processing.pictures.auto_image_processor import AutoImageProcessor as AutoImageProcessor
    from gemlens.processing.pictures.image_processors import Gemma3ImageProcessor as Gemma3ImageProcessor
    from gemlens.processing.pictures.image_processors import SiglipImageProcessor as SiglipImageProcessor
    from gemlens.processing.pictures.image_processors_fast import Gemma3ImageProcessorFast as Gemma3ImageProcessorFast
    from gemlens.processing.text.auto_tokenizer import AutoTokenizer as AutoTokenizer
    from gemlens.processing.text.streaming import TextIteratorStreamer as TextIteratorStreamer
    from gemlens.processing.text.streaming import TextStreamer as TextStreamer
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast as GemmaTokenizerFast
    from gemlens.quantization.config import TorchAoConfig as TorchAoConfig
    from gemlens.quantization.packed import can_pack as can_pack
    from gemlens.quantization.packed import pack as pack
    from gemlens.visualize.visualizer import AttentionMaskVisualizer as AttentionMaskVisualizer

__version__ = "0.1.0"

_HOMES = {
    "caches.cache": ("Cache",),
    "caches.dynamic": ("DynamicCache",),
    "caches.offloaded": ("OffloadedCache", "OffloadedStaticCache"),
    "caches.quantized": ("QuantizedCache",),
    "caches.static": ("StaticCache",),
    "errors": ("CheckpointError", "ConfigError", "GemlensError", "InputError", "PictureError"),
    "generation.config": ("GenerationConfig",),
    "generation.logits": ("LogitsProcessor", "LogitsProcessorList"),
    "generation.stopping": ("StoppingCriteria", "StoppingCriteriaList"),
    "models.auto": (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForSequenceClassification",
    ),
    "models.configs.multimodal": ("Gemma3Config", "PaliGemmaConfig"),
    "models.configs.siglip": ("SiglipVisionConfig",),
    "models.configs.text": ("Gemma2Config", "Gemma3TextConfig", "GemmaConfig"),
    "models.gemma3": ("Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification", "Gemma3Model"),
    "models.paligemma": ("PaliGemmaForConditionalGeneration", "PaliGemmaModel"),
    "models.siglip": ("SiglipVisionModel",),
    "models.text": (
        "Gemma2ForCausalLM",
        "Gemma2Model",
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        "GemmaForCausalLM",
        "GemmaModel",
    ),
    "pipelines.pipeline": ("pipeline",),
    "processing.auto_processor": ("AutoProcessor",),
    "processing.gemma3": ("Gemma3Processor",),
    "processing.paligemma": ("PaliGemmaProcessor",),
    "processing.pictures.auto_image_processor": ("AutoImageProcessor",),
    "processing.pictures.image_processors": ("Gemma3ImageProcessor", "SiglipImageProcessor"),
    "processing.pictures.image_processors_fast": ("Gemma3ImageProcessorFast",),
    "processing.text.auto_tokenizer": ("AutoTokenizer",),
    "processing.text.streaming": ("TextIteratorStreamer", "TextStreamer"),
    "processing.text.tokenizer": ("GemmaTokenizerFast",),
    "quantization.config": ("TorchAoConfig",),
    "quantization.packed": ("can_pack", "pack"),
    "visualize.visualizer": ("AttentionMaskVisualizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"gemlens has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"gemlens.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
