"""`gemlens chat`: a conversation at the terminal."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gemlens.cli import options
from gemlens.cli.answer import Answer, Speaker
from gemlens.cli.checkpoint import Checkpoint
from gemlens.cli.dialogue import dialogue_for
from gemlens.cli.prompts import Picture, Reader
from gemlens.cli.session import Session
from gemlens.cli.settings import Loading
from gemlens.cli.terminal import columns, show, tell, waiting
from gemlens.cli.transcripts import write_transcript
from gemlens.errors import GemlensError, InputError


def chat(
    model: options.Model,
    image: options.Images = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    greedy: options.Greedy = False,
    stop: options.Stop = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    verbose: options.Verbose = False,
) -> None:
    """Talk with a model.

    A line is a message. Ctrl-C ends an answer, which stays as far as it went; Ctrl-D or /exit ends the chat. Commands:

    \b
    /image PATH    show a picture with the next message
    /system TEXT   tell the model something beforehand; without TEXT, nothing
    /reset         forget what was said
    /save FILE     write the conversation, FILE ends in .json or .md
    /help          list these
    /exit          end

    Base models, which have no chat template, are shown a transcript to continue; PaliGemma answers each message by
    itself, about the pictures so far.

    \b
    gemlens chat google/gemma-3-4b-it --system "Answer in one sentence."
    gemlens chat real/gemma-3-270m-q4_k_m.gguf --greedy
    """
    sampling = options.sampling(max_new_tokens, temperature, top_k, top_p, seed, greedy, stop)
    pictures = [Picture.open(source) for source in image or ()]
    checkpoint = Checkpoint.of(model)
    with waiting(f"Loading {checkpoint.name}"):
        reader = Reader(checkpoint.reader(checkpoint.config()))
        if pictures:
            reader.check_takes_pictures()
        speaker = Speaker(checkpoint.load_to_answer(Loading(dtype, device)), reader.tokenizer)
    dialogue = dialogue_for(reader)
    session = Session(speaker, dialogue, sampling, system)
    session.pictures += pictures
    tell(f"{checkpoint.name}: /help lists the commands, Ctrl-D ends. {dialogue.note}".rstrip())
    Terminal(session, reader, verbose).talk()


@dataclass
class Terminal:
    """A person at a terminal in a session.

    Args:
        session: the conversation.
        reader: says whether the model takes pictures.
        verbose: tell how each answer went.
    """

    session: Session
    reader: Reader
    verbose: bool = False
    _saved: set[Path] = field(default_factory=set)

    def talk(self) -> None:
        """Reads lines until there are no more."""
        if sys.stdin.isatty():
            with suppress(ImportError):  # line editing and history, where Python has them
                import readline  # noqa: F401 - `input` uses it once it is imported
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
                if line in ("/exit", "/quit"):
                    return
                self._take(line)
            except EOFError:
                if sys.stdin.isatty():
                    print()
                return
            except KeyboardInterrupt:
                tell("\n(Ctrl-D or /exit ends the chat.)")
            except UnicodeDecodeError:
                tell("That line is no text in UTF-8; please type it again.")
            except GemlensError as error:
                tell(f"gemlens: {error}")

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            if name not in _COMMANDS:
                raise InputError(f"There is no command {name}; there are {', '.join(_COMMANDS)}, /exit.")
            _COMMANDS[name].act(self, argument.strip())
        elif line:
            answer = self.session.ask(line, show)
            print(flush=True)
            self._tell_how(answer)

    def _tell_how(self, answer: Answer) -> None:
        """Says why an answer that looks unfinished ended."""
        new, together = len(answer.tokens), answer.prompt_tokens + len(answer.tokens)
        kept = "what was said is kept" if answer.text else "nothing was said yet"
        reasons = {
            "interrupted": f"(Interrupted; {kept}.)",
            "length": f"(Ended after {new} tokens; --max-new-tokens sets how many.)",
            "context": f"(Ended: the conversation has {together} tokens, all that the model was made for; /reset.)",
        }
        if answer.stop_reason in reasons:
            tell(reasons[answer.stop_reason])
        if self.verbose:
            tell(str(answer))

    def image(self, argument: str) -> None:
        """Shows a picture with the next message."""
        self.reader.check_takes_pictures()
        if not argument:
            raise InputError("/image needs the path of a picture.")
        picture = Picture.open(str(Path(argument).expanduser()) if "://" not in argument else argument)
        self.session.pictures.append(picture)
        tell(f"({picture.image.width} x {picture.image.height} pixels go with the next message.)")

    def system(self, argument: str) -> None:
        """Tells the model something beforehand."""
        self.session.system = argument or None
        tell("(The model is told this beforehand.)" if argument else "(The model is told nothing beforehand.)")

    def reset(self, argument: str) -> None:
        """Forgets what was said."""
        self.session.reset()
        tell("(Forgotten.)")

    def save(self, argument: str) -> None:
        """Writes the conversation to a file, which may be one that this chat wrote before."""
        if not argument:
            raise InputError("/save needs the name of a file that ends in .json or .md.")
        file = Path(argument).expanduser().resolve()
        if file.exists() and file not in self._saved:
            raise InputError(f"'{argument}' is there already, and not of this chat; choose another name.")
        write_transcript(file, self.session.told)
        self._saved.add(file)
        tell(f"(Saved to {file}.)")

    def help(self, argument: str) -> None:
        """Lists the commands."""
        rows = [(f"{name} {command.argument}".rstrip(), command.what) for name, command in _COMMANDS.items()]
        tell("\n".join(columns([*rows, ("/exit", "end, as Ctrl-D does; Ctrl-C ends an answer")])))


@dataclass(frozen=True)
class _Command:
    argument: str
    what: str
    act: Callable[[Terminal, str], None]


_COMMANDS = {
    "/image": _Command("PATH", "show a picture with the next message", Terminal.image),
    "/system": _Command("TEXT", "tell the model something beforehand; without TEXT, nothing", Terminal.system),
    "/reset": _Command("", "forget what was said", Terminal.reset),
    "/save": _Command("FILE", "write the conversation; FILE ends in .json or .md", Terminal.save),
    "/help": _Command("", "list these", Terminal.help),
}
