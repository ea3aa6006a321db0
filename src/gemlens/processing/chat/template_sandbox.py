"""Runs a chat template that came with a checkpoint: Jinja text and plain values in, text out, and nothing else happens.

A template is a program by a stranger. jinja2's immutable sandbox keeps it away from Python; three rules more keep it
from eating the machine, in the calling thread, with no process or thread that could be left behind:

- It sees plain values only, and of those the few attributes, filters and tests that chat templates use.
- No value heavier than the limit ever comes to be. Whatever builds one (operators, calls, filters, literals, blocks) is
  measured before it works, so each single operation is short. The limit grows with the conversation, not the template.
- While it runs, `sys.settrace` reads the thread's own clock at each line and call. As every operation is short and
  every loop has lines, this stops it wherever it is. A timer thread could not stop it, and a new process takes 45 ms
  to import jinja2.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, wraps
from types import CodeType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace

from gemlens.checkpoints.hub import first_line
from gemlens.errors import InputError
from gemlens.processing.chat.template_limits import TEMPLATE_NAME, Budget, Stop, watched

LONGEST_TEMPLATE = 65_536  # characters; published templates have 300 to 20,000
_DEEPEST_CALL = 50
# Chosen from the private-use area, so that no text has them by accident; `marks` takes those that a text does not have.
_PRIVATE_USE = range(0xE000, 0xF8FF)

_NAMES = {
    str: """
        capitalize count endswith find format format_map index isalnum isalpha isdecimal isdigit islower isnumeric
        isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition
        rsplit rstrip split splitlines startswith strip swapcase title upper
    """,
    dict: "get items keys values",
    list: "count index",
    tuple: "count index",
    LoopContext: """
        changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0
    """,
    Cycler: "current next reset",
    Macro: "arguments name",
}
_ATTRIBUTES = [(kind, frozenset(names.split())) for kind, names in _NAMES.items()]
_FILTERS = """
    abs capitalize count d default dictsort first float groupby int items last length list lower map max min reject
    rejectattr reverse select selectattr sort string title trim unique upper wordcount
"""
_NO_TESTS = frozenset(["escaped"])
_NO_NODES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class TemplateRefusalError(InputError):
    """The template itself said that it does not take this conversation (`raise_exception`)."""


def render(template: str, values: Mapping[str, Any], generation_marks: tuple[str, str] = ("", "")) -> str:
    """The text that a template makes of plain values.

    Args:
        template: Jinja text, with `{% generation %}` besides the usual tags.
        values: what the template can name: texts, numbers, None, lists and dicts of them.
        generation_marks: what to put before and after the output of each `{% generation %}` block.

    Raises:
        TemplateRefusalError: the template called `raise_exception`.
        InputError: the template is too long, is no Jinja, failed, reached for what it may not have, or did not end
            within its limits of time, memory and output.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise InputError(f"The chat template has {len(template)} characters; {LONGEST_TEMPLATE} are the limit.")
    with _sentences():
        environment = _Environment(values, generation_marks)
    with _sentences(), watched(environment.budget.seconds):
        code = _compiled(template)
        program = Template.from_code(environment, code, environment.make_globals(None))
        return environment.concat(_bounded(program.generate(values), environment))


def marks(count: int, *texts: str) -> list[str]:
    """Characters that none of the texts has, to mark places in a text that a template works on."""
    taken = set().union(*texts)
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
    found = [character for _, character in zip(range(count), free, strict=False)]
    if len(found) < count:
        raise InputError("The conversation uses every private-use character of Unicode; at least one must be free.")
    return found


@lru_cache(maxsize=16)
def _compiled(template: str) -> CodeType:
    environment = _Environment({}, ("", ""))
    tree = environment.parse(template)
    for node in tree.find_all(_NO_NODES):
        raise SecurityError(f"it loads another template in line {node.lineno}")
    return environment.compile(tree, filename=TEMPLATE_NAME)


def _bounded(pieces: Iterator[str], environment: "_Environment") -> Iterator[str]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > environment.budget.limit:
            raise Stop(f"it writes more than {environment.budget.limit} characters")
        yield piece


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns whatever a template can end with into a sentence."""
    try:
        yield
    except Stop as stop:
        raise InputError(f"The chat template was stopped: {stop}; use another template.") from None
    except _RefusedError as refused:
        raise TemplateRefusalError(f"The chat template does not take this conversation: {_ended(refused)}") from None
    except TemplateSyntaxError as error:
        raise InputError(f"The chat template has a mistake in line {error.lineno}: {_ended(error.message)}") from None
    except SecurityError as error:
        raise InputError(f"The chat template was refused: {error}; use another template.") from None
    except (RecursionError, MemoryError):
        raise InputError("The chat template was stopped: it is nested too deeply; use another template.") from None
    except InputError:
        raise
    except Exception as error:  # a template is a program: it can raise whatever Python raises
        raise InputError(f"The chat template failed ({first_line(error)}); check what it expects.") from None


def _ended(message: object) -> str:
    """What somebody else says, short enough for a sentence and with its end."""
    text = " ".join(str(message).split())[:300].rstrip(".")
    return f"{text or 'it does not say why'}."


class _RefusedError(TemplateError):
    """What `raise_exception` of a template raises."""


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant says, marked at both ends."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        assert isinstance(self.environment, _Environment)
        start, end = self.environment.generation_marks
        return f"{start}{caller()}{end}"


class _CodeGenerator(CodeGenerator):
    """Has each value that the language itself builds measured, by a call that the clock is read in."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - named by jinja2
        self._measured("environment.concat((", node.nodes, "))", frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._measured("environment.made([", node.items, "])", frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            return super().visit_Tuple(node, frame)
        return self._measured("environment.made((", node.items, "))", frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made(" if isinstance(node.arg, nodes.Slice) else "(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def _measured(self, opening: str, items: list[nodes.Expr], closing: str, frame: Frame) -> None:
        self.write(opening)
        for item in items:
            self.visit(item, frame)
            self.write(", ")
        self.write(closing)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering: what a template finds there, and the limit on what it may build."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, values: Mapping[str, Any], generation_marks: tuple[str, str]) -> None:
        self.budget = Budget(values)
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self.budget.measured,
            cache_size=0,
        )
        self.generation_marks = generation_marks
        self.depth = 0
        offered_filters: dict[str, Any] = self.filters
        self.filters = {name: self._guarded(offered_filters[name]) for name in _FILTERS.split()}
        self.filters |= {"tojson": self._to_json, "round": self._round, "sum": self._sum, "safe": self.budget.measured}
        self.filters |= {"indent": self._indent, "format": self._format, "join": self._join, "replace": self._replace}
        offered_tests: dict[str, Any] = self.tests
        self.tests = {name: self._guarded(test) for name, test in offered_tests.items() if name not in _NO_TESTS}
        offered = {name: self.globals[name] for name in ("cycler", "joiner", "namespace")}
        now = datetime.now()
        self.globals = {
            **offered,
            "dict": lambda **entries: dict(entries),  # the class itself could be subscripted
            "range": self._range,
            "raise_exception": self._raise,
            "strftime_now": lambda form: now.strftime(str(form)[:100]),
        }

    # -- what is measured ----------------------------------------------------------------------------------------------

    def made(self, value: Any) -> Any:
        """A literal of the template."""
        return self.budget.made(value)

    def concat(self, parts: Any) -> str:
        """Parts joined; of `~`, of blocks, of macros and of the whole."""
        return self.budget.joined(parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls what the template calls: methods of plain values, macros, and the functions offered."""
        self, budget = __self, __self.budget
        for value in (*args, *kwargs.values()):
            budget.measured(value)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            if __obj.__name__ == "replace" and not kwargs and all(isinstance(arg, str) for arg in args[:2]):
                return budget.replaced(text, *args)
            if __obj.__name__ == "join" and len(args) == 1 and isinstance(args[0], (str, list, tuple, dict)):
                budget.spend(budget.weight(args[0]) + len(text) * len(args[0]))
            budget.made(text)  # what it is split into
        self.depth += 1
        if self.depth > _DEEPEST_CALL:
            raise Stop("its calls are nested too deeply")
        try:
            return budget.made(super().call(__context, __obj, *args, **kwargs))
        finally:
            self.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One operator, after a look at how large its result will be."""
        if operator == "%" and isinstance(left, str):
            return self._format(left, right)
        self.budget.check_operation(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test whose arguments are measured, and whose result is a list where it was an iterator."""

        @wraps(function)  # keeps the marks that tell jinja2 whether it wants the environment too
        def guarded(*args: Any, **kwargs: Any) -> Any:
            plain = [self._plain(arg) for arg in args]
            for value in (*plain, *kwargs.values()):
                self.budget.measured(value)
            return self.budget.made(self._plain(function(*plain, **kwargs)))

        return guarded

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return self.budget.listed(value)
        return value

    # -- what may be reached -------------------------------------------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only the attributes that chat templates use, by the type that has them."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in names for kind, names in _ATTRIBUTES)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Says so at once; jinja2 would wait until the value is used."""
        raise SecurityError(f"it may not use '{attribute[:80]}' of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, without the widths that make a gigabyte of one letter."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form: str = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            self.budget.check_format(form, [args, kwargs])
            return wrapped(*args, **kwargs)

        return formatted

    # -- what is offered -----------------------------------------------------------------------------------------------

    def _raise(self, message: Any = "") -> NoReturn:
        raise _RefusedError(str(self.budget.measured(message)))

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        try:
            self.budget.spend(len(numbers))
        except OverflowError:  # more than a machine word can count
            self.budget.spend(float("inf"))
        return numbers

    def _format(self, form: str, *values: Any, **named: Any) -> str:
        self.budget.check_format(form, [values, named])
        given = values[0] if len(values) == 1 and isinstance(values[0], (tuple, dict)) else named or values
        return str(self.budget.made(str(form) % given))

    def _join(self, values: Any, d: str = "", attribute: Any = None) -> str:
        items = self.budget.listed(values)
        if attribute is not None:
            items = [self._inside(item, attribute) for item in items]
        return self.budget.joined(items, str(self.budget.measured(d)))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        whole, before, after = (str(self.budget.measured(value)) for value in (text, old, new))
        return self.budget.replaced(whole, before, after, -1 if count is None else count)

    def _inside(self, value: Any, attribute: Any) -> Any:
        """What `attribute="a.b"` of a filter means."""
        for name in str(attribute).split("."):
            value = self.getitem(value, int(name) if name.isdigit() else name)
        return value

    def _to_json(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
    ) -> str:
        """JSON without the HTML escapes of jinja2's own filter, as all published templates expect."""
        self.budget.measured(value)
        space = 0 if indent is None else len(indent) if isinstance(indent, str) else int(indent)
        if space > 16:
            raise Stop("it indents JSON by more than 16")
        how = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        return str(self.budget.made(json.dumps(value, default=_no_json, **how)))

    def _round(self, value: Any, precision: int = 0, method: str = "common") -> float:
        if method != "common" or abs(precision) > 20:
            raise SecurityError("it may round by the common method to at most 20 digits")
        return round(float(value), precision)

    def _sum(self, values: Any, attribute: str | None = None, start: float = 0) -> float:
        items = self.budget.listed(values)
        numbers = items if attribute is None else [self._inside(item, attribute) for item in items]
        return sum((number for number in numbers if isinstance(number, (int, float))), start)

    def _indent(self, text: str, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        space = width if isinstance(width, str) else " " * min(int(width), 99)
        head, *rest = str(self.budget.measured(text)).split("\n")
        lines = [space + head if first else head, *(space + line if line or blank else line for line in rest)]
        self.budget.spend(len(text) + len(space) * len(lines))
        return self.budget.joined(lines, "\n")


def _no_json(value: Any) -> NoReturn:
    what = "undefined" if isinstance(value, Undefined) else type(value).__name__
    raise TypeError(f"{what} cannot be written as JSON")
