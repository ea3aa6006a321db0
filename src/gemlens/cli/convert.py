"""`gemlens convert`: a GGUF file -> a folder with safetensors, config and tokenizer, which is then read and compared.

GGUF -> tensors, dequantised one by one -> model -> files -> read -> compared, tensor by tensor
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemlens.cli import options
from gemlens.cli.checkpoint import Checkpoint, auto_class
from gemlens.cli.folders import check_free, folder_size
from gemlens.cli.prompts import Reader
from gemlens.cli.terminal import progress, size_text, tell, waiting
from gemlens.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gemlens.checkpoints.load import WeightSource
    from gemlens.models.pretrained import PreTrainedModel
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast

_SAMPLE = "The quick brown fox, 12345;\n\n  \u00fcber alles <start_of_turn>user \U0001f600"


def convert(
    file: Annotated[
        str, typer.Argument(metavar="FILE.gguf", help="The text model; an mmproj file beside it is taken along.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the safetensors folder is written.")],
    dtype: Annotated[
        Literal["bfloat16", "float32", "float16"], typer.Option(help="float32 keeps dequantised values exactly.")
    ] = "bfloat16",
    verify: Annotated[bool, typer.Option(help="Read what was written and compare every tensor.")] = True,
    force: options.Force = False,
) -> None:
    """Turn a GGUF file into a folder of safetensors that gemlens and transformers open.

    Quantised weights are dequantised. Tokenizer and chat template are written too, as far as the file has them.

    \b
    gemlens convert real/gemma-3-270m-q4_k_m.gguf gemma-3-270m
    """
    checkpoint = Checkpoint.of(file)
    if not checkpoint.gguf:
        raise InputError(f"'{file}' is no GGUF file; pass the path of one.")
    check_free(folder, force)
    model = _load(checkpoint, dtype)
    reader = checkpoint.reader(model.config)
    with waiting(f"Writing {folder}"):
        model.save_pretrained(folder)
        reader.save_pretrained(folder)
    tell(f"Wrote {size_text(folder_size(folder))} to {folder}.")
    if verify:
        _verify(model, folder)
        _verify_tokenizer(Reader(reader).tokenizer, folder)
        tell("Read again: every tensor and the tokenizer are the same.")


def _load(checkpoint: Checkpoint, dtype: str) -> "PreTrainedModel":
    """The model, as `from_pretrained` makes it, with a bar that moves at each tensor."""
    import torch

    from gemlens.checkpoints.gguf import GGUFFile
    from gemlens.checkpoints.gguf_names import GGUFSource
    from gemlens.checkpoints.load import fill
    from gemlens.checkpoints.pretrained import DTYPES, layout_of

    source = GGUFSource(*(GGUFFile.open(Path(checkpoint.place, name)) for name in checkpoint.gguf))
    config = checkpoint.config()
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    with progress("Dequantising", len(source.shapes())) as advance:
        fill(model, _Watched(source, advance), layout_of(type(model)), dtype=DTYPES[dtype])
    model.config.dtype = dtype
    return model.eval()


@dataclass(frozen=True)
class _Watched:
    """A source of weights that tells when it gives one."""

    source: "WeightSource"
    advance: Callable[[], None]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As the source."""
        return self.source.shapes()

    def tensor(self, name: str, dtype: "torch.dtype | None") -> "Tensor":
        """As the source."""
        self.advance()
        return self.source.tensor(name, dtype)

    def transient(self, name: str, dtype: "torch.dtype | None") -> "Tensor":
        """As the source."""
        self.advance()
        return self.source.transient(name, dtype)


def _verify(model: "PreTrainedModel", folder: Path) -> None:
    """Reads the folder as anybody would and compares.

    Raises:
        CheckpointError: a tensor is another.
    """
    written = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    state = model.state_dict()
    with progress("Comparing", len(state)) as advance:
        for name, tensor in state.items():
            if not tensor.equal(written[name]):
                raise CheckpointError(
                    f"'{name}' in '{folder}' is not what was written; the disk may be full or failing."
                )
            advance()


def _verify_tokenizer(tokenizer: "GemmaTokenizerFast", folder: Path) -> None:
    from gemlens import AutoTokenizer

    written = AutoTokenizer.from_pretrained(folder)
    if written.encode(_SAMPLE) != tokenizer.encode(_SAMPLE) or written.chat_template != tokenizer.chat_template:
        raise CheckpointError(f"The tokenizer in '{folder}' is not the one of the GGUF file; please report this.")
