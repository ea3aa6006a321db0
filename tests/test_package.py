"""The package as a whole: what importing it costs, who imports whom, and that public code says what it takes."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

import gemlens

ROOT = Path(gemlens.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

each_file = pytest.mark.parametrize("path", FILES, ids=IDS)


@lru_cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def python(program: str, *flags: str) -> str:
    """What a fresh interpreter prints, on standard output and standard error."""
    command = [sys.executable, *flags, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


class TestImport:
    """`import gemlens` is free; names cost when they are used."""

    def test_it_loads_nothing_slow(self) -> None:
        slow = {"torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "PIL", "accelerate"}
        loaded = python("import sys, gemlens; print(*{name.split('.')[0] for name in sys.modules})").split()
        assert not slow & set(loaded)

    def test_it_takes_less_than_a_tenth_of_a_second(self) -> None:
        """Of five, the best: the others measure what else runs on the machine."""
        times = []
        for _ in range(5):
            lines = python("import gemlens", "-X", "importtime").splitlines()
            found = [re.fullmatch(r"import time: +\d+ \| +(\d+) \| gemlens", line) for line in lines]
            times += [int(match[1]) for match in found if match]
        assert len(times) == 5
        assert min(times) < 100_000, "microseconds"

    def test_every_public_name_is_found_documented_and_listed(self) -> None:
        assert gemlens.__all__ == sorted(set(gemlens.__all__))
        for name in gemlens.__all__:
            thing = getattr(gemlens, name)
            assert thing.__name__ == name
            assert inspect.getdoc(thing), name
            assert name in dir(gemlens)

    def test_names_for_the_type_checker_are_the_names_that_are_looked_up(self) -> None:
        block = next(node for node in tree(ROOT / "__init__.py").body if isinstance(node, ast.If))
        lines = [part for part in block.body if isinstance(part, ast.ImportFrom)]
        declared = {alias.asname: part.module for part in lines for alias in part.names}
        for name, module in declared.items():
            assert getattr(gemlens, str(name)) is getattr(sys.modules[str(module)], str(name))
        assert set(gemlens.__all__) == declared.keys()

    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(AttributeError, match=r"gemlens has no 'Gemma4Model'; it has .*Gemma3Model"):
            _ = gemlens.Gemma4Model

    def test_it_says_its_version(self) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", gemlens.__version__)

    def test_all_modules_import_without_the_reference(self) -> None:
        modules = [".".join(("gemlens", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES]
        names = [name.removesuffix(".__init__") for name in modules if "triton" not in name and "__main__" not in name]
        program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
        assert not {"transformers", "gguf"} & set(python(program).split())


# -- who imports whom --------------------------------------------------------------------------------------------------


@lru_cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(module, whether at import time) of every import in a file; what only the type checker sees is left out."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, not inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} has a relative import"
                yield str(child.module), not inside
                if str(child.module).startswith("gemlens"):  # `from gemlens.models import text` names a module too
                    yield from ((f"{child.module}.{alias.name}", not inside) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, inside or function)

    return tuple(visit(tree(path), False))


def folder(module: str) -> str:
    """The part of the package that a module of ours stands in: `models.configs`, `caches`, `spans`."""
    parts = module.split(".")[1:]
    return "models.configs" if parts[:2] == ["models", "configs"] else parts[0] if parts else ""


def place(path: Path) -> str:
    return folder(".".join(("gemlens", *path.relative_to(ROOT).with_suffix("").parts)))


MODELS = {"models", "models.configs"}
# What the folders may import when they are imported.
MAY_KNOW = {
    "errors": set[str](),
    "spans": {"errors"},
    "caches": {"errors", "spans", "kernels"},
    "kernels": {"errors", "spans"},
    "models.configs": {"errors"},
    "models": {"errors", "spans", "caches", "models.configs"},
    "assets": set[str](),
    "checkpoints": {"errors", "kernels", "assets"},
    "quantization": {"errors", "spans", "caches", "kernels", "models"},
}
# What they may import inside functions besides: files describe models, and these files of models open the doors.
LEARNING = {"data", "scenes", "training", "evals"}
UPWARDS = {"checkpoints", "generation", "processing", "tasks"}
MAY_CALL = {
    "checkpoints": {*MODELS, "quantization"},
    "models/pretrained.py": UPWARDS,
    "models/generative.py": UPWARDS,
    "models/auto.py": UPWARDS,
    "models/configs/pretrained.py": UPWARDS,
}
# Of the folders above these: what they must not know at all.
MUST_NOT_KNOW = {
    "processing": {*MODELS, "caches", "generation", "tasks", "spans"},
    "tasks": {*MODELS, "caches", "generation", "checkpoints", "spans", *LEARNING},
    "generation": {"processing", "tasks", *LEARNING},
    "data": {*MODELS, "caches", "generation", "spans", "training", "evals"},
    "scenes": {*MODELS, "caches", "generation", "spans", "training", "evals"},
    "evals": {"caches", "generation", "spans", "scenes"},
    "training": {"caches", "generation", "scenes"},
}


@each_file
def test_foreign_libraries_that_only_tests_may_use_are_not_imported(path: Path) -> None:
    oracles = {"transformers", "gguf", "peft", "pycocotools"}
    # Pictures and masks come and go as arrays; nothing else needs numpy.
    oracles |= set() if place(path) in ("processing", "tasks", "data", "scenes", "evals") else {"numpy"}
    assert not {module.split(".")[0] for module, _ in imports(path)} & oracles


@each_file
def test_files_import_only_what_their_folder_may_know(path: Path) -> None:
    here, name = place(path), str(path.relative_to(ROOT))
    for module, when_imported in imports(path):
        there = folder(module) if module.startswith("gemlens.") else here
        assert there not in MUST_NOT_KNOW.get(here, ()), f"{name} imports {module}"
        assert there != "cli" or here in ("cli", "__main__"), f"{name} imports {module}"
        if here in MAY_KNOW and there not in {here, *MAY_KNOW[here]}:
            assert there in MAY_CALL.get(name, MAY_CALL.get(here, set())), f"{name} imports {module}"
            assert not when_imported, f"{name} imports {module}, which it may only do inside a function"


@each_file
def test_kernels_know_tensors_only(path: Path) -> None:
    if place(path) != "kernels":
        return
    ours = {"torch", "triton", "gemlens"}
    assert {module.split(".")[0] for module, _ in imports(path)} <= ours | set(sys.stdlib_module_names)


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    known: dict[str, set[str]] = {}
    for path in FILES:
        if path.parent == ROOT and path.name == "__init__.py":
            continue
        there = {folder(module) for module, at_import in imports(path) if at_import and module.startswith("gemlens.")}
        known.setdefault(place(path), set()).update(there - {place(path), ""})

    def search(trail: tuple[str, ...]) -> None:
        for there in known.get(trail[-1], ()):
            assert there not in trail, " -> ".join((*trail, there))
            search((*trail, there))

    for start in known:
        search((start,))


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    names = {".".join(("gemlens", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
             for path in FILES}  # fmt: skip
    known = {name: {there for there, at_import in imports(path) if at_import and there in names and there != name}
             for name, path in names.items()}  # fmt: skip
    done: set[str] = set()

    def search(trail: tuple[str, ...]) -> None:
        for there in sorted(known[trail[-1]] - done):
            assert there not in trail, " -> ".join((*trail, there))
            search((*trail, there))
        done.add(trail[-1])

    for start in known:
        search((start,))


# -- public code -------------------------------------------------------------------------------------------------------


def public(node: ast.Module | ast.ClassDef, trail: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods; those inside functions and private classes are nobody's business."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield trail + child.name, child
            yield from public(child, f"{trail}{child.name}.")
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_") and not is_setter(child):
            yield trail + child.name, child


def is_setter(node: ast.FunctionDef) -> bool:
    """What a property is, is said where it is read."""
    return any(isinstance(how, ast.Attribute) and how.attr == "setter" for how in node.decorator_list)


@each_file
def test_public_code_is_documented(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "the file itself"
    for name, node in public(tree(path)):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef)
        assert ast.get_docstring(node), name


@each_file
def test_all_functions_are_annotated(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        typed_by_python = ("self", "__self", "cls")
        bare = [each.arg for each in given if each and not each.annotation and each.arg not in typed_by_python]
        assert not bare, f"{node.name}({', '.join(bare)})"
        assert node.returns, f"{node.name} does not say what it gives"


@each_file
def test_source_is_ascii(path: Path) -> None:
    assert path.read_text().isascii()


def test_the_map_of_the_package_names_what_is_there() -> None:
    """The docstring of the package lists its folders and files, each on a line of its own."""
    drawn = re.findall(r"^ {4}(\w+(?:/|\.py)) ", gemlens.__doc__ or "", re.MULTILINE)
    there = {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    there |= {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(drawn) == there
    assert len(drawn) == len(set(drawn))


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "py.typed").exists()
