"""Conversations without pictures -> ids, for models that have a tokenizer and no processor."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from gemlens.errors import InputError
from gemlens.processing.chat.chat_template import Prompt, Style, write_conversation, write_gemma3
from gemlens.processing.encoding import Encoder, control_tokens, tokens_of

if TYPE_CHECKING:
    from gemlens.processing.text.tokenizer import GemmaTokenizerFast

Messages = Sequence[Mapping[str, Any]]


def write_chat(
    tokenizer: "GemmaTokenizerFast",
    messages: Messages,
    template: str | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    mark_assistant: bool = False,
) -> Prompt:
    """The conversation as a template of the tokenizer's writes it, else as Gemma 3's format is.

    Args:
        tokenizer: whose template, and whose control tokens stay text within what a person wrote.
        messages: `{"role": "user", "content": "Hello"}` and so on.
        template: Jinja text, or the name of one of several; None for the only one or "default".
        add_generation_prompt: opens the turn of the model.
        continue_final_message: leaves the last message open, to be continued.
        mark_assistant: marks what the assistant says.

    Raises:
        InputError: messages that the template refuses, or pictures.
    """
    stored = tokenizer.chat_template
    if isinstance(stored, dict):
        template = stored.get("default" if template is None else template, template)
    elif template is None:
        template = stored
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    style = Style(
        template,
        write_gemma3,
        named,
        control_tokens(cast(Encoder, tokenizer)),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        mark_assistant=mark_assistant,
    )
    prompt = write_conversation(messages, style)
    if prompt.pictures:
        raise InputError("The conversation has pictures, and this model reads text only; leave them out.")
    return prompt


def chat_ids(tokenizer: "GemmaTokenizerFast", prompt: Prompt) -> list[int]:
    """The ids of a written conversation. The template wrote its `<bos>`, if there is to be one."""
    return tokens_of(cast(Encoder, tokenizer), prompt).ids
