"""Text -> more text, and conversations -> the next message, with every model that has a head over the vocabulary."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from gemlens.errors import InputError
from gemlens.models.auto import AutoModelForCausalLM
from gemlens.models.generative import GenerativeModel
from gemlens.pipelines.generating import (
    Ask,
    GeneratingPipeline,
    Record,
    Settings,
    are_conversations,
    is_conversation,
)
from gemlens.processing.batch import BatchFeature
from gemlens.processing.text.tokenizer import GemmaTokenizerFast


class TextGenerationPipeline(GeneratingPipeline):
    """Continues texts and conversations.

    Where neither the call nor the model's generation_config says otherwise, tokens are drawn at temperature 0.7, and
    spaces before punctuation are left out of the new text; both as in the reference.

    Args:
        model: with a head over the vocabulary.
        tokenizer: of the model.
        defaults: keywords of a call.
    """

    task = "text-generation"
    models = AutoModelForCausalLM
    generation_defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
    cleans_up = True

    def __init__(self, model: GenerativeModel, tokenizer: GemmaTokenizerFast, **defaults: Any) -> None:
        super().__init__(model, tokenizer, **defaults)
        self.tokenizer = tokenizer

    def __call__(self, text_inputs: Any, **keywords: Any) -> list[Record] | list[list[Record]]:
        """Continues a text, a list of texts, a conversation or a list of conversations.

        Args:
            text_inputs: what to continue; messages are `{"role": "user", "content": "Hello"}`.
            keywords: see `Settings`; every argument of `generate`, also in a dict `generate_kwargs`;
                `tokenizer_encode_kwargs`, a dict of arguments for the tokenizer of texts.

        Returns:
            A list of records `{"generated_text": ...}`; of a list, one such list for each.

        Raises:
            InputError: these are no texts, or an argument is wrong.
            TypeError: a keyword of an unknown name.
        """
        settings = self.settings(self.tokenizer, {**self._defaults, **keywords})
        if isinstance(text_inputs, str) or is_conversation(text_inputs):
            return self._records([Ask(text_inputs)], settings)[0]
        texts = isinstance(text_inputs, (list, tuple)) and all(isinstance(each, str) for each in text_inputs)
        if not text_inputs or not (texts or are_conversations(text_inputs)):
            raise InputError(
                f"A {type(text_inputs).__name__} came; pass a text, messages like {{'role': 'user', 'content': "
                "'Hello'}, or a list of one of them."
            )
        return self._records([Ask(each) for each in text_inputs], settings)

    @staticmethod
    def encoding_names(encoder: Any) -> Collection[str]:
        """The one name for the tokenizer's arguments."""
        return ("tokenizer_encode_kwargs",)

    def _encode(self, asks: Sequence[Ask], settings: Settings, continues: bool) -> BatchFeature:
        if isinstance(asks[0].prompt, str):
            given: dict[str, Any] = {"padding": len(asks) > 1, "padding_side": "left"}
            given |= settings.encode.get("tokenizer_encode_kwargs", {})
            encoded = self.tokenizer([str(ask.prompt) for ask in asks], return_tensors="pt", **given)
        else:
            encoded = self.tokenizer.apply_chat_template(
                [ask.prompt for ask in asks],
                add_generation_prompt=not continues,
                continue_final_message=continues,
                return_dict=True,
                return_tensors="pt",
                padding=len(asks) > 1,
                padding_side="left",
            )
        return BatchFeature({name: encoded[name] for name in ("input_ids", "attention_mask")})
