"""Pictures and labels -> what is where in them, pixel by pixel: boxes and masks.

pictures, labels -> "segment cat" -> the model's answer, greedily -> parse with the mask codec -> Findings
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from gemlens.checkpoints.hub import Origin
from gemlens.errors import InputError
from gemlens.evals.asking import Reader
from gemlens.models.generative import GenerativeModel
from gemlens.pipelines.detection import DetectionPipeline, Settings
from gemlens.pipelines.task import sort_keywords
from gemlens.tasks import prompts
from gemlens.tasks.findings import Finding, parse
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.tasks.masks import Codec

CODEC_FILE = "mask_codec.npz"  # beside the weights


@dataclass(frozen=True)
class SegmentationSettings(Settings):
    """What a call asks for; see `Settings`.

    Args:
        codec: makes masks of `<seg>` tokens: a MaskCodec, or the path of its file, such as the official `vae-oid.npz`.
    """

    codec: Codec | str | Path | None = None


class SegmentationPipeline(DetectionPipeline):
    """Finds things in pictures, and which pixels are theirs.

    Args:
        model: a PaliGemma.
        processor: of the model.
        defaults: keywords of a call; see `SegmentationSettings`.
    """

    task = "segment"
    prompt: ClassVar[Callable[..., str]] = staticmethod(prompts.segment)

    def __init__(self, model: GenerativeModel, processor: Reader, **defaults: Any) -> None:
        if "codec" in defaults:
            defaults["codec"] = _opened(defaults["codec"])
        super().__init__(model, processor, **defaults)

    @classmethod
    def settings(cls, encoder: Any, keywords: Mapping[str, Any]) -> SegmentationSettings:
        """What keywords of a call ask for; see `SegmentationSettings`."""
        (own,) = sort_keywords(keywords, [each.name for each in fields(SegmentationSettings)], task=cls.task)
        return SegmentationSettings(**own)

    def _parse(self, text: str, size: tuple[int, int], settings: Settings) -> list[Finding]:
        assert isinstance(settings, SegmentationSettings)
        return parse(text, size, _opened(settings.codec), settings.bins)


def codec_of(model: Origin) -> MaskCodec | None:
    """The mask codec that lies beside a model's weights, if there is one.

    Raises:
        CheckpointError: the file is damaged, or the model is not there.
    """
    path = model.find(CODEC_FILE)
    return None if path is None else MaskCodec.load(path)


def _opened(codec: Codec | str | Path | None) -> Codec:
    if codec is None:
        raise InputError(
            f"Masks need the network that <seg> tokens were made with, and no '{CODEC_FILE}' lies beside the model's "
            "weights; pass codec=, the path of such a file, for PaliGemma that of the official vae-oid.npz."
        )
    return MaskCodec.load(codec) if isinstance(codec, str | Path) else codec
