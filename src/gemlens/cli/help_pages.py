"""The help pages in docs/cli, generated from the app: python -m gemlens.cli.help_pages docs/cli (`make docs`)."""

import sys
from pathlib import Path
from typing import Any

import typer

from gemlens.cli.main import app

_WIDTH = 100
_WRITTEN_BY = "Written by `make docs` from `src/gemlens/cli`; change it there."


def pages() -> dict[str, str]:
    """{name of the file: Markdown} of the overview and of each command."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    listing = "\n".join(f"- [gemlens {name}]({name}.md)" for name in group.commands)
    found = {"README.md": f"# gemlens\n\n{_WRITTEN_BY}\n\n{_help('gemlens', group)}\n{listing}\n"}
    return found | {f"{name}.md": _page(f"gemlens {name}", command) for name, command in group.commands.items()}


def _page(name: str, command: Any) -> str:
    """Of a command, and of the commands in it if it is a group."""
    inside = getattr(command, "commands", {})
    parts = [f"\n## {name} {each}\n\n{_help(f'{name} {each}', part)}" for each, part in inside.items()]
    return f"# {name}\n\n{_WRITTEN_BY}\n\n{_help(name, command)}{''.join(parts)}"


def _help(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name, terminal_width=_WIDTH, max_content_width=_WIDTH)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"```text\n{text}\n```\n"


def write(folder: Path) -> None:
    """Writes the pages, and removes those of commands that are gone."""
    found = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.glob("*.md")) - {folder / name for name in found}:
        old.unlink()
    for name, text in found.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
