"""Conversations -> the one text that a model continues, with its pictures in order.

    messages -> `read_conversation` -> turns -> a checkpoint's template, or our own writing -> `Prompt` -> token ids

Control tokens such as `<start_of_turn>` mean something only where the template writes them. What a person wrote gets an
invisible guard, a private-use character that the conversation does not have, behind each letter that could begin a
control token; the guards leave when the text becomes ids (`tokens_of` in encoding.py), and such a text is then encoded
as plain letters. Characters of the same kind mark what the assistant says and where a text is to be continued.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gemlens.errors import InputError
from gemlens.processing.chat.messages import Picture, Turn, plain_copy, read_conversation
from gemlens.processing.chat.template_sandbox import TemplateRefusalError, marks, render

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Prompt:
    """A written conversation. `text` still has the marks; `plain` has none.

    Args:
        text: what the model continues.
        pictures: their sources, in the order of the text's picture tokens.
        guard: stands behind what looks like the beginning of a control token in a person's text.
        start: stands before what the assistant says, `end` behind it.
        end: see `start`.
    """

    text: str
    pictures: tuple[Any, ...] = ()
    guard: str = ""
    start: str = ""
    end: str = ""

    @property
    def plain(self) -> str:
        """The text without marks."""
        return _without(self.text, self.guard + self.start + self.end)


@dataclass(frozen=True)
class Style:
    """How a conversation is written.

    Args:
        template: Jinja text of a checkpoint; None: `write`.
        write: our own way: (messages, bos token, whether to open the model's turn, start and end mark) -> text.
        special_tokens: named tokens that templates use: `bos_token` and so on.
        control_tokens: texts that become control tokens, and must not within what a person wrote; empty to allow it.
        add_generation_prompt: opens the turn of the model.
        continue_final_message: leaves the last turn open, to be continued.
        mark_assistant: marks what the assistant says.
        variables: more that the template can name, `tools` and `documents` among it.
    """

    template: str | None
    write: Callable[[Sequence[Mapping[str, Any]], str, bool, tuple[str, str]], str]
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    control_tokens: Collection[str] = ()
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    mark_assistant: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            raise InputError(
                "continue_final_message=True leaves the last message open and add_generation_prompt=True opens a new "
                "one; pass one of them."
            )
        if self.continue_final_message and self.mark_assistant:
            raise InputError(
                "return_assistant_tokens_mask=True does not go with continue_final_message=True, whose last answer has "
                "no end yet; pass one of them."
            )


# -- turns to text -----------------------------------------------------------------------------------------------------


def write_conversation(conversation: Any, style: Style) -> Prompt:
    """The text of a conversation.

    Raises:
        InputError: a message is wrong, or the template failed, refused or was stopped.
    """
    template = style.template or ""
    turns = read_conversation(conversation, knows_tools="tool" in template)
    pictures = tuple(part.source for turn in turns for part in turn.parts if isinstance(part, Picture))
    turns = [_fitting(turn, template) for turn in turns]
    if style.continue_final_message and not (turns[-1].parts and isinstance(turns[-1].parts[-1], str)):
        raise InputError("continue_final_message=True continues a text, but the last message does not end with one.")
    messages = [turn.message() for turn in turns]
    variables = {name: plain_copy(value, f"'{name}'") for name, value in style.variables.items()}
    guard, start, end, stop = marks(4, template, *_texts([messages, variables]))
    written = _Writer(style, (start, end), stop)
    plain = written(messages, variables)
    letters = {token[0] for token in style.control_tokens if token}
    if not letters.isdisjoint("".join(_texts([messages, variables]))):
        guarded = written(_guarded(messages, letters, guard), _guarded(variables, letters, guard))
        if _without(guarded, guard) != plain:
            raise InputError(
                "The chat template changes texts that have letters of control tokens, so that it cannot be told who "
                "wrote these; pass split_special_tokens=False to let a message's control tokens act."
            )
        plain = guarded
    return Prompt(plain, pictures, guard, start, end)


@dataclass(frozen=True)
class _Writer:
    """Writes messages, whether guarded or not, in one style."""

    style: Style
    marks: tuple[str, str]
    stop: str  # where a text that is to be continued ends

    def __call__(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        style = self.style
        end = ""
        if style.continue_final_message:
            messages, end = _with_stop(messages, self.stop)
        around = self.marks if style.mark_assistant else ("", "")
        if style.template is None:
            bos = style.special_tokens.get("bos_token", "")
            text = style.write(messages, bos, style.add_generation_prompt, around)
        else:
            text = self._by_template(style.template, messages, variables, around)
        if not style.continue_final_message:
            return text
        head, found, tail = text.rpartition(self.stop)
        if not found:
            raise InputError("The chat template does not write the last message's text, so it cannot be continued.")
        return _without(head, self.stop) + (end if tail.startswith(end) else "")

    def _by_template(
        self, template: str, messages: list[dict[str, Any]], variables: dict[str, Any], around: tuple[str, str]
    ) -> str:
        style = self.style
        values = {"tools": None, "documents": None, **style.special_tokens, **variables}
        values |= {"messages": messages, "add_generation_prompt": style.add_generation_prompt}
        text = render(template, values, around)
        if not style.mark_assistant or _GENERATION.search(template):
            return text
        # A template that does not say what is the assistant's may still be the one that we know by heart.
        try:
            ours = style.write(messages, style.special_tokens.get("bos_token", ""), style.add_generation_prompt, around)
        except TemplateRefusalError:
            ours = ""
        if _without(ours, "".join(around)) != text:
            raise InputError(
                "return_assistant_tokens_mask=True needs a chat template that encloses what the assistant says in "
                "{% generation %} and {% endgeneration %}; this one does not."
            )
        return ours


def _fitting(turn: Turn, template: str) -> Turn:
    """The turn as an old template expects it: one that never looks at the type of a part takes texts only."""
    if not template or turn.text_only or re.search(r"\btype\b", template):
        return turn
    if any(isinstance(part, Picture) for part in turn.parts):
        raise InputError("The conversation has pictures, but this chat template takes only text.")
    return replace(turn, text_only=True)


def _with_stop(messages: list[dict[str, Any]], stop: str) -> tuple[list[dict[str, Any]], str]:
    """The messages with a mark behind the last word, and the white space that stands behind that."""
    *earlier, last = messages
    content = last["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    word = text.rstrip()
    marked: Any = word + stop + text[len(word) :]
    if not isinstance(content, str):
        marked = [*content[:-1], {**content[-1], "text": marked}]
    return [*earlier, {**last, "content": marked}], text[len(word) :]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in _texts(each)]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def _guarded(value: Any, letters: Collection[str], guard: str) -> Any:
    if isinstance(value, str):
        for letter in letters:
            value = value.replace(letter, letter + guard)
        return value
    if isinstance(value, dict):
        return {_guarded(key, letters, guard): _guarded(each, letters, guard) for key, each in value.items()}
    return [_guarded(each, letters, guard) for each in value] if isinstance(value, list) else value


def _without(text: str, characters: str) -> str:
    return text.translate(dict.fromkeys(map(ord, characters)))


# -- our own writing ---------------------------------------------------------------------------------------------------


def write_gemma3(
    messages: Sequence[Mapping[str, Any]], bos: str, add_generation_prompt: bool, around: tuple[str, str] = ("", "")
) -> str:
    """Gemma 3's documented format: turns between `<start_of_turn>` and `<end_of_turn>`, the system's text in the first.

    The assistant's part, in marks, is its words and the `<end_of_turn>` that it ends with.
    """
    system, rest = "", list(messages)
    if rest[0]["role"] == "system":
        system = _words(rest.pop(0)["content"], lambda text: text) + "\n\n"
    written = [bos]
    for place, message in enumerate(rest):
        if message["role"] != ("assistant" if place % 2 else "user"):
            raise TemplateRefusalError(
                f"Turn {place + 1} is one of '{message['role']}'; Gemma 3's conversations begin with the user and "
                "alternate between 'user' and 'assistant'."
            )
        start, end = around if place % 2 else ("", "")
        role = "model" if place % 2 else "user"
        words = _words(message["content"], str.strip)
        written.append(f"<start_of_turn>{role}\n{system}{start}{words}<end_of_turn>{end}\n")
        system = ""
    if add_generation_prompt:
        written.append("<start_of_turn>model\n")
    return "".join(written)


def write_paligemma(
    messages: Sequence[Mapping[str, Any]], bos: str, add_generation_prompt: bool, around: tuple[str, str] = ("", "")
) -> str:
    """PaliGemma's format: it holds no conversations, but answers one message: its pictures, then its text.

    The processor itself adds `<bos>` and the closing line break.
    """
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise TemplateRefusalError(
            "PaliGemma answers one message of the user and holds no conversations; pass one message, or a checkpoint's "
            "own chat_template."
        )
    content = messages[0]["content"]
    pictures = sum(part["type"] == "image" for part in content) if not isinstance(content, str) else 0
    return "<image>" * pictures + _words(content, str.strip, "")


def _words(content: Any, trimmed: Callable[[str], str], picture: str = "<start_of_image>") -> str:
    if isinstance(content, str):
        return trimmed(content)
    return "".join(trimmed(part["text"]) if part["type"] == "text" else picture for part in content)
