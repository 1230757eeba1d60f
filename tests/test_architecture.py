"""The layers of docs/architecture.md, read off the import statements of every file (those inside functions too)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"threat", "classifier", "checks", "files"}
# Room -> the rooms that it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "checks": set(),
    "files": set(),
    "threat": {"checks"},
    "classifier": {"checks"},
    "models": {*BASE},
    "data": {*BASE},
    "results": {"checks", "files"},
    "certify": {*BASE, "attacks"},
    "processes": set(),
    "attacks": {*BASE, "models"},  # models: AdvGAN's generator
    "objectives": {*BASE, "attacks", "certify", "models"},
    "defenses": {*BASE, "attacks", "models"},
    "evaluation": {*BASE, "attacks", "certify", "results"},
    "training": {*BASE, "attacks", "certify", "data", "defenses", "models", "objectives"},
    "verdict": {*BASE, "attacks", "evaluation", "results"},
    "figures": {"checks", "files", "results"},
    "comparison": {"checks", "figures", "files", "results"},
    "tracking": {"checks", "figures", "results"},
}
EVERYTHING = {*MAY_IMPORT}
MAY_IMPORT["experiment"] = EVERYTHING
MAY_IMPORT["callbacks"] = EVERYTHING
MAY_IMPORT["cli"] = EVERYTHING | {"experiment"}
# Private names of wandb, wandb-workspaces, torch and Lightning, which offer no public way; os._exit is public.
THIRD_PARTY = {"run._public_api", "workspace._model", "given._version", "trainer._signal_connector", "os._exit"}
LOOSE = {"__init__", "__main__", "checks", "classifier", "files", "threat"}


def files() -> dict[str, Path]:
    """Dotted module name -> file, of the package and of callbacks/."""
    found = {}
    for top, prefix in ((ROOT / "robustlit", "robustlit"), (ROOT / "callbacks", "robustlit.callbacks")):
        for file in sorted(top.rglob("*.py")):
            parts = [prefix, *file.relative_to(top).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = files()


def imported(module: str, *, at_import: bool = False) -> Iterator[str]:
    """The modules of robustlit that a file imports; with `at_import` only those that importing it loads."""
    tree = ast.parse(FILES[module].read_text())
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(tree) if at_import else ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in FILES:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not typing_only:
            yield child
            yield from _statements(child)


def room(module: str) -> str:
    """The room of a module: the part after the package's name."""
    return module.split(".")[1] if "." in module else ""


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        if room(module) and room(module) != "__main__"
        for name in imported(module)
        if room(name) not in {room(module), "", *MAY_IMPORT[room(module)]}
    ]
    assert wrong == []


def test_there_are_no_import_circles() -> None:
    graph = {module: {*imported(module, at_import=True)} for module in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in graph[module]:
                # A package and its own parts import each other: __init__ collects what its files define.
                if not (module.startswith(f"{name}.") or name.startswith(f"{module}.")):
                    visit(name, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


def test_only_the_base_files_lie_loose() -> None:
    assert {file.stem for file in (ROOT / "robustlit").glob("*.py")} == LOOSE


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_private_name_is_imported(module: str) -> None:
    tree = ast.parse(FILES[module].read_text())
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robustlit")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert private == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_private_attribute_of_another_class_is_used(module: str) -> None:
    tree = ast.parse(FILES[module].read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    foreign = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
        and ast.unparse(node) not in THIRD_PARTY
    ]
    assert foreign == []


# Longer ones, each with its reason in docs/architecture.md.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_and_functions_are_short(module: str) -> None:
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= LONG_FILES.get(module, 300)
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {n: k for n, k in long.items() if k > LONG_FUNCTIONS.get(f"{module}.{n}", 60)} == {}
