"""`gemlens caption`: asks for a caption in the words of the model's kind."""

from collections.abc import Callable

import pytest
from scripted_model import make_all_say
from typer.testing import Result

from gemlens.cli.prompts import Message, Reader

Call = Callable[..., Result]
Folder = Callable[[str], str]


def test_paligemma_reads_caption_and_the_language(
    gemlens: Call, checkpoint: Folder, cow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("paligemma")
    make_all_say(monkeypatch, folder, {"caption en": "a brown cow", "caption de": "eine braune Kuh"})
    assert gemlens("caption", cow, "--model", folder).stdout == "a brown cow\n"
    assert gemlens("caption", cow, "--model", folder, "--language", "de").stdout == "eine braune Kuh\n"
    assert gemlens("caption", cow, cow, "--model", folder).stdout == f"{cow}: a brown cow\n" * 2


def test_a_model_with_a_chat_template_is_told_what_to_write(
    gemlens: Call, checkpoint: Folder, cow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Message] = []
    conversation = Reader.conversation
    monkeypatch.setattr(Reader, "conversation", lambda self, told: asked.extend(told) or conversation(self, told))
    arguments = ("caption", cow, "--model", checkpoint("gemma3-pictures"), "--max-new-tokens", 2)
    assert gemlens(*arguments).exit_code == 0
    assert gemlens(*arguments, "--language", "de").exit_code == 0
    assert [(message.text, len(message.pictures)) for message in asked] == [
        ("Write a caption for this picture: one short sentence.", 1),
        ("Write a caption for this picture: one short sentence, in the language with the code 'de'.", 1),
    ]
