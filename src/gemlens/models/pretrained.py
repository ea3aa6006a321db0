"""What people call on any model: weights from and to files, embeddings, ties, dtype, attention, checkpointing.

`from_pretrained` and `save_pretrained` are doors: they hand over to gemlens.checkpoints, which knows files.
Nothing else in gemlens.models does.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from gemlens.caches.cache import Cache
from gemlens.caches.dynamic import DynamicCache
from gemlens.errors import InputError
from gemlens.models.attention import AttentionBlock, choose
from gemlens.models.configs.pretrained import PretrainedConfig
from gemlens.models.decoder import Recording
from gemlens.models.outputs import ModelOutput

if TYPE_CHECKING:
    from gemlens.checkpoints.hub import Origin
    from gemlens.models.text import TextModel
    from gemlens.quantization.config import TorchAoConfig

Output = TypeVar("Output", bound=ModelOutput)


class PreTrainedModel(nn.Module):
    """A torch module with a config.

    Args:
        config: of the class's `config_class`. Weights are random; `from_pretrained` reads them from files.
        attn_implementation: `"eager"`, `"sdpa"`, `"flex_attention"`, `"flash_attention_2"` or `"blocked"`; None for
            `"sdpa"`, or `"eager"` where scores are capped. For models with pictures also a dict with the keys
            `text_config`, `vision_config`.

    Raises:
        InputError: a config of another class, or an attention implementation that this model cannot use.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    no_split_modules: ClassVar[tuple[str, ...]] = ()
    main_input_name: ClassVar[str] = "pixel_values"

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise InputError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, but a {type(config).__name__} came."
            )
        config.validate()  # fields may have been set since it was made
        self.config = config
        self.attn_implementation: str | Mapping[str, str] | None = None

    def finish(self, attn_implementation: str | Mapping[str, str] | None) -> None:
        """The last step of every constructor: attention, ties, random weights (none on the meta device)."""
        self.set_attn_implementation(attn_implementation)
        if self.device.type != "meta":
            self.initialise()
        self.tie_weights()

    # -- files ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | int | torch.device | Mapping[str, str | int | torch.device] | None = None,
        attn_implementation: str | Mapping[str, str] | None = None,
        quantization_config: "TorchAoConfig | Mapping[str, Any] | None" = None,
        gguf_file: str | tuple[str, str] | None = None,
        quantize: str | None = None,
        activation_bits: int | None = None,
        revision: str = "main",
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """The model of a folder or of a hub repository, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, or a repository such as `google/gemma-3-4b-it`.
            config: instead of the `config.json` there.
            dtype: of the weights in memory: a torch.dtype, its name, or `"auto"` for the checkpoint's own. The default
                is float32, as in the reference. `torch_dtype` is its older name.
            device_map: `"auto"`, one device, or a dict of module name to device (several need the accelerate package).
            attn_implementation: see the class.
            quantization_config: a TorchAoConfig, to round the weights of linear layers to integers as each is read;
                also as a dict. A folder that was saved from a quantized model needs none, and without a dtype has
                the one that it was saved with. Without a dtype, int4 means bfloat16.
            gguf_file: name of a GGUF file in the folder, which then needs no other; for Gemma 3 with pictures the pair
                (text file, mmproj file), or the text file alone if one `mmproj*.gguf` lies beside it.
            quantize: weights in blocks that a CPU computes with as they are, for inference only. "stored": those of a
                GGUF file, in its size of memory. "q8", "q4": made while loading any checkpoint; with "q4" the decoder's
                embedding and head and the picture encoder have eight bits.
            activation_bits: with `quantize`, of activations where they meet blocks: 8, the default; or 16, which takes
                longer and gives nearly what float32 gives. In the last layer, and the head where it is in eight bits,
                they have 16 in any case.
            revision, subfolder, token, cache_dir, local_files_only: which files of the hub, as in huggingface_hub.
            **overrides: fields of the config to replace.

        Raises:
            CheckpointError: files that are missing, damaged, pickled, or do not fill this model exactly.
            InputError: an argument that cannot be acted on.
        """
        from gemlens.checkpoints.hub import Origin
        from gemlens.checkpoints.pretrained import load_pretrained

        if dtype is not None and torch_dtype is not None:
            raise InputError("dtype and torch_dtype are the same argument; pass one of them.")
        origin = Origin(pretrained_model_name_or_path, revision, subfolder, token, cache_dir, local_files_only)
        return load_pretrained(
            cls,
            origin,
            config=config,
            dtype=torch_dtype if dtype is None else dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            gguf_file=gguf_file,
            quantize=quantize,
            activation_bits=activation_bits,
            overrides=overrides,
        )

    def save_pretrained(self, save_directory: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes `config.json` and safetensors, in the layout of the published checkpoints, which transformers opens.

        Args:
            save_directory: folder; made if it does not exist.
            max_shard_size: bytes, or text such as "5GB"; larger models become several files and an index.
        """
        from gemlens.checkpoints.pretrained import save_pretrained

        save_pretrained(self, Path(save_directory), max_shard_size)

    def read_companions(self, origin: "Origin") -> None:
        """Reads what lies beside weights and config in a checkpoint, which is nothing here."""

    def save_companions(self, folder: Path) -> None:
        """Writes it."""

    # -- weights -------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point weight."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Of the first weight."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights hold; a shared weight counts once."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            weight.numel()
            for weight in self.parameters()
            if (weight.requires_grad or not only_trainable) and not (exclude_embeddings and id(weight) in embeddings)
        )

    def initialise(self) -> None:
        """Random weights, as the reference draws them, in the parts that are no models of their own: those did it."""
        std = getattr(self.config.get_text_config(), "initializer_range", 0.02)
        inner = [module for module in self.modules() if isinstance(module, PreTrainedModel) and module is not self]
        done = {id(part) for model in inner for part in model.modules()}
        for module in self.modules():
            if id(module) not in done and isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])

    def tied_weights(self) -> dict[str, str]:
        """Names of weights that are another's: {name: name of the one it is}."""
        return {}

    def tie_weights(self) -> None:
        """Makes tied weights one and the same parameter."""
        for name, original in self.tied_weights().items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, self.get_parameter(original))

    # -- embeddings ----------------------------------------------------------------------------------------------------

    def text_model(self) -> "TextModel":
        """The part that reads tokens.

        Raises:
            InputError: the model reads none.
        """
        raise InputError(f"{type(self).__name__} has no token embeddings.")

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.text_model().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the embedding of tokens, and the head where it is tied to it."""
        self.text_model().embed_tokens = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head over the vocabulary, if there is one."""
        head = self._modules.get("lm_head")
        return head if isinstance(head, nn.Linear) else None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the head over the vocabulary."""
        self.lm_head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Gives the vocabulary another size, in the embedding, in the head and in the config.

        Args:
            new_num_tokens: rows; None keeps their number.
            pad_to_multiple_of: rounds that number up.
            mean_resizing: new rows are drawn around the mean of the old ones, with 1e-5 of their spread, so that new
                tokens start with an average probability; False draws them like those of a random model.

        Returns:
            The embedding.
        """
        embedding = self.text_model().embed_tokens
        rows = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        for name, value in {"new_num_tokens": rows, "pad_to_multiple_of": pad_to_multiple_of or 1}.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}, but it must be a positive integer.")
        rows = -(-rows // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        if (pad := self.text_model().config.pad_token_id) is not None and pad >= rows:
            raise InputError(f"{rows} rows would cut off that of config.pad_token_id, {pad}; set another one first.")
        head = self.get_output_embeddings()
        if head is None and "lm_head" in self._modules:
            raise InputError("The head was replaced by one that cannot be resized; resize before that.")
        is_tied = head is not None and head.weight is embedding.weight
        std = None if mean_resizing else getattr(self.config.get_text_config(), "initializer_range", 0.02)
        embedding.weight = _resized(embedding.weight, rows, std)
        embedding.num_embeddings = rows
        if head is not None:
            head.weight = embedding.weight if is_tied else _resized(head.weight, rows, std)
            head.out_features = rows
        self.text_model().config.vocab_size = rows
        return embedding

    # -- running -------------------------------------------------------------------------------------------------------

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str] | None) -> None:
        """Computes attention in another way from now on; see the class."""
        given = attn_implementation
        if isinstance(given, Mapping) and (unknown := given.keys() - {"text_config", "vision_config"}):
            raise InputError(
                f"attn_implementation has the key {min(unknown)!r}; its parts are called text_config and vision_config."
            )
        chosen = {}
        for name, module in self.named_modules():
            if isinstance(module, AttentionBlock):
                part = "vision_config" if "vision_model." in name else "text_config"
                chosen[module] = choose(given.get(part) if isinstance(given, Mapping) else given, module.cap)
        for module, attend in chosen.items():  # only after all of them agreed
            module.attend = attend
        self.attn_implementation = given

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """In training, computes activations of layers again instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: of torch.utils.checkpoint; only `use_reentrant=False`, the
                default, is known.
        """
        if unknown := {
            key: value for key, value in (gradient_checkpointing_kwargs or {}).items() if value is not False
        }:
            raise InputError(f"gradient_checkpointing_kwargs holds {unknown}, but only use_reentrant=False is known.")
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        self._set_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part computes activations again."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def _set_checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if "gradient_checkpointing" in vars(module):
                module.gradient_checkpointing = on  # type: ignore[assignment]

    def recording(self, hidden_states: bool | None, attentions: bool | None, last: int = 0) -> Recording:
        """What to record: the arguments, or the config's defaults where they are None."""
        return Recording(
            self.config.output_hidden_states if hidden_states is None else hidden_states,
            self.config.output_attentions if attentions is None else attentions,
            last,
        )

    def cache_for(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache of a call: the one given, or a new one if it is wanted; in training only if asked for."""
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise InputError(
                f"past_key_values is a {type(past_key_values).__name__}, but it must be a Cache such as DynamicCache "
                "or StaticCache; DynamicCache.from_legacy_cache() takes tuples."
            )
        wanted = past_key_values is not None or use_cache
        if use_cache is None and past_key_values is None:
            wanted = not self.training and getattr(self.config.get_text_config(), "use_cache", True)
        if wanted and self.training and self.is_gradient_checkpointing:
            if past_key_values is not None and past_key_values.get_seq_length():
                raise InputError("past_key_values hold tokens, but gradient checkpointing in training keeps no cache.")
            warnings.warn("No cache is kept in training with gradient checkpointing.", UserWarning, stacklevel=3)
            return None
        if past_key_values is not None or not wanted:  # a cache without tokens is false, so it is not asked by `or`
            return past_key_values
        return DynamicCache(self.text_model())

    def given(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """The output, or a plain tuple if that is wanted."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


def _resized(weight: Tensor, rows: int, std: float | None) -> nn.Parameter:
    """The first `rows` rows of a weight [V, D], and new ones below: N(0, std), or around the mean if std is None."""
    with torch.no_grad():
        old = weight.detach()
        result = old.new_empty(rows, old.shape[1])
        kept = min(rows, old.shape[0])
        result[:kept] = old[:kept]
        if rows > kept:
            full = old.float()
            mean, spread = (full.mean(0), full.std(0) * 1e-5) if std is None else (torch.zeros_like(full[0]), std)
            noise = torch.randn(rows - kept, old.shape[1], device=old.device)
            result[kept:] = (mean + noise * spread).to(result.dtype)
    return nn.Parameter(result, requires_grad=weight.requires_grad)
