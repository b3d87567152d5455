"""Imports run one way, from commands down to storage, stay inside the library, and have no cycle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rooms of the library from the top; a room imports only rooms after it. "" is calce_jax/__init__.py.
ROOMS = (
    "__main__",
    "commands",
    "",
    "search",
    "training",
    "report",
    "datasets",
    "inference",
    "speech",
    "input_pipeline",
    "checkpoints",
    "text",
    "presets",
    "models",
    "moments",
    "video",
    "config",
    "config_compat",
    "config_fields",
    "batch",
    "distributed",
    "storage",
    "errors",
    "assets",
)
OUTSIDE = {"configs", "data", "launch", "benchmarks", "tests"}


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """Return the dotted name of a source file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, also inside functions; "a.b" for `from a import b` if that is a module."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)


def defined_names(path: Path) -> set[str]:
    """Return the names that a module has at its top level: what it defines, assigns and imports."""
    names: set[str] = set()
    nodes: list[ast.AST] = list(parse(path).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return names


LIBRARY = {module_name(path): path for path in sorted((ROOT / "calce_jax").rglob("*.py"))}


def room(module: str) -> str:
    """Return the room of a module of the library: "search" for "calce_jax.search.ranking"."""
    return [*module.split("."), ""][1]


def test_every_room_is_in_the_list():
    assert {room(module) for module in LIBRARY} == set(ROOMS)


@pytest.mark.parametrize("module", LIBRARY)
def test_a_room_imports_only_rooms_below(module):
    for imported in imports(LIBRARY[module]):
        top = imported.split(".")[0]
        assert top not in OUTSIDE, f"{module} imports {imported}, which is outside the library"
        if top == "calce_jax":
            allowed = ROOMS[ROOMS.index(room(module)) :]
            assert room(imported) in allowed, f"{module} imports {imported}, which is above it"


def test_imports_have_no_cycle():
    graph = {module: {name for name in imports(path) if name in LIBRARY} for module, path in LIBRARY.items()}
    finished: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, f"a cycle: {' -> '.join([*chain[chain.index(module) :], module])}"
        if module not in finished:
            for imported in sorted(graph[module]):
                visit(imported, (*chain, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_configs_and_launch_import_only_data_and_the_library():
    for folder in ("configs", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            assert {name.split(".")[0] for name in imports(path)} & OUTSIDE <= {folder, "data"}, path


def test_only_commands_set_environment_variables():
    """A process belongs to the program that imports the library."""
    changes = re.compile(r"environ(\[[^\]]*\]\s*=[^=]|\.(setdefault|update|pop|clear)\(|\s*\|=)|\b(putenv|unsetenv)\(")
    for module, path in LIBRARY.items():
        if room(module) != "commands":
            assert not changes.search(path.read_text(encoding="utf-8")), module


@pytest.mark.parametrize("folder", ["calce_jax", *sorted(OUTSIDE)])
def test_imported_names_exist(folder):
    """Also those of benchmarks and tests that need what is not installed, which nothing else imports."""
    defined: dict[Path, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] not in {"calce_jax", *OUTSIDE}:
                continue
            place = ROOT / str(node.module).replace(".", "/")
            source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            modules = {inner.stem for inner in place.iterdir()} if place.is_dir() else set()
            if source not in defined:
                defined[source] = defined_names(source) if source.is_file() else set()
            missing = {alias.name for alias in node.names} - defined[source] - modules
            assert not missing, f"{path.relative_to(ROOT)}:{node.lineno}: {node.module} has no {missing}"
