"""What the layer contract of pyproject.toml (lint-imports) cannot say: circles through a package, torch at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "safetensors", "tokenizers", "ray"}
LIGHT = ("core", "tasks", "store", "judging", "runner", "report", "power", "plugin", "sweep", "cli")
"""Rooms that import nothing heavy when they are imported. Most do not in functions either: see lint-imports."""
BESIDE = ("kvcheck.suites", "kvcheck.fixtures", "kvcheck.baselines")
"""Folders of the repository that are installed so, where the contract does not see them."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether in a function) of all that a file imports when it runs."""

    def walk(node: ast.AST, inner: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inner) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield child.module, inner
            elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from walk(child, inner or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return walk(ast.parse(path.read_text("utf-8")), False)


def importing(folders: Iterable[str], kind: Callable[[str, bool], bool]) -> dict[str, list[str]]:
    """What the modules in folders import of that kind, by their paths in the repository."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): [name for name, inner in imports(path) if kind(name, inner)] for path in paths
    }
    assert found
    return {path: names for path, names in found.items() if names}


def test_no_module_imports_itself_through_others() -> None:
    grimp = pytest.importorskip("grimp", reason="import-linter is not installed: it needs Python 3.11")
    graph = grimp.build_graph("kvcheck", exclude_type_checking_imports=True, cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_nothing_heavy_is_imported_where_methods_are_only_named() -> None:
    rooms = [f"kvcheck/{room}" for room in LIGHT]
    assert not importing(["suites", *rooms], lambda name, inner: name.partition(".")[0] in HEAVY and not inner)


def test_the_package_imports_nothing_of_what_lies_beside_it() -> None:
    assert not importing(["kvcheck"], lambda name, inner: name.startswith(BESIDE))


def test_a_suite_imports_nothing_of_the_package_when_it_runs() -> None:
    assert not importing(["suites"], lambda name, inner: name.partition(".")[0] == "kvcheck")


def test_listing_methods_and_tasks_imports_no_torch() -> None:
    code = (
        "import sys; from kvcheck.methods import METHODS; from kvcheck.tasks import TASKS; METHODS.names(); "
        "[TASKS.get(name) for name in TASKS.names()]; import kvcheck.judging.budget; "
        "import kvcheck.plugin.gate, kvcheck.cli; import kvcheck.power, kvcheck.conformance; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
