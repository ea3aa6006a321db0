"""Sessions in a pseudo-terminal: what is typed, what is shown, what Ctrl-C and Ctrl-D do."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals", allow_module_level=True)
from pseudo_terminal import CTRL_C, CTRL_D, PseudoTerminal

from gemlens.cli.terminal import columns, plain, size_text

Folder = Callable[[str], str]
ENDLESS = ("--greedy", "--max-new-tokens", "900000")


def test_a_chat_with_interruptions_a_picture_a_reset_and_an_end(checkpoint: Folder, cow: str, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with PseudoTerminal("chat", checkpoint("endless-pictures"), *ENDLESS) as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> ")
        shown = interrupted_answer(terminal, "The work")
        terminal.send(f"/image {cow}\n")
        terminal.wait_for("(20 x 16 pixels go with the next message.)\n> ")
        shown_of_the_picture = interrupted_answer(terminal, "and more")
        terminal.send(f"/save {saved}\n")
        terminal.wait_for("(Saved to ")
        one, first, two, second = json.loads(saved.read_text())
        terminal.wait_for("> ")
        terminal.send("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt_until("(Ctrl-D or /exit ends the chat.)\n> ")
        terminal.send("/reset\n")
        terminal.wait_for("(Forgotten.)\n> ")
        terminal.send(f"/save {saved}\n")
        terminal.wait_for("(Saved to ")
        terminal.wait_for("\n> ")  # before readline waits for keys, Ctrl-D would be lost
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.screen
    assert one == {"role": "user", "content": "The work"}
    assert plain(first["content"]).split() == shown.split()
    assert two["content"] == [{"type": "image", "path": cow}, {"type": "text", "text": "and more"}]
    assert plain(second["content"]).split() == shown_of_the_picture.split()
    assert json.loads(saved.read_text()) == []


def interrupted_answer(terminal: PseudoTerminal, question: str) -> str:
    """Asks, interrupts the answer when it is under way, and gives what was shown of it."""
    terminal.send(f"{question}\n")
    terminal.wait_for(f"{question}\n")  # the terminal's echo
    terminal.wait_for_more(200)
    terminal.send(CTRL_C)
    shown = terminal.wait_for("\n(Interrupted; what was said is kept.)\n")
    terminal.wait_for("> ")
    return shown.removesuffix("\n(Interrupted; what was said is kept.)\n").replace("^C", "")


def test_run_keeps_what_was_said_when_it_is_interrupted_and_exits_with_130(checkpoint: Folder) -> None:
    with PseudoTerminal("run", checkpoint("endless"), "The work", *ENDLESS) as terminal:
        terminal.wait_for_more(300)
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.screen
    assert len(terminal.screen.replace("^C", "").strip()) > 200
    assert terminal.screen.endswith("\n")


def test_a_missing_prompt_at_a_terminal_is_a_mistake_in_usage() -> None:
    with PseudoTerminal("run", "anything") as terminal:
        assert terminal.exit_code() == 2
    assert "pass a text, or - to type it" in terminal.screen


# -- what reaches the terminal -----------------------------------------------------------------------------------------


def test_control_characters_are_taken_out_and_line_breaks_and_tabs_stay() -> None:
    assert plain("a\x1b[31mb\x07c\x9bd\x7f\r\x00e\n\tf") == "a[31mbcde\n\tf"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (253_113_024, "253.1 MB"),
        (10**12, "1.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_sizes_are_told_in_a_unit_that_fits(size: int, text: str) -> None:
    assert size_text(size) == text


def test_columns_are_as_wide_as_their_widest_cells_and_show_no_control_characters() -> None:
    assert columns([("a", "1"), ("bbb\x1b", "22")], right=(1,)) == ["a     1", "bbb  22"]
