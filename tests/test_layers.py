"""Imports point down only, and nothing above the methods imports torch when it is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"record", "errors", "escape", "spec", "registry", "paths", "env", "settings", "files", "hub", "threads"},
    {"stats", "validate"},
    {"pairing", "questions", "explain", "budget", "allowances", "compare", "runfile", "journal", "published"}
    | {
        "baseline",
        "baseline_files",
        "baseline_lines",
        "baseline_text",
        "baseline_reader",
        "baseline_remote",
        "baseline_push",
    },
    {"methods", "tasks", "models", "measure", "sources"},
    {"report", "engine", "conformance", "zoo", "power", "rescoring"},
    {"plugin", "fixtures", "baselines"},
    {"suites", "cli", "cli_checks", "cli_baselines", "cli_record", "cli_speed"},
)
"""From the bottom up. A module may import from its own layer and from those below."""

HEAVY = {"torch", "transformers", "datasets", "safetensors", "tokenizers"}
MAY_BE_HEAVY = {"methods", "models", "measure", "engine", "fixtures", "conformance", "zoo"}
"""Parts whose modules may import torch when they are imported."""

NEVER_HEAVY = {"tasks", "report", "plugin", "suites", "stats", "power"}
"""Parts that do not import torch anywhere, not even in a function; the benchmarks import `datasets` in functions."""


def part(module: str) -> str:
    """The part of kvcheck that a dotted name belongs to."""
    return module.split(".")[1] if module.startswith("kvcheck.") else ""


def sources() -> Iterator[tuple[str, Path]]:
    """(part, file) of every module."""
    for path in sorted((ROOT / "kvcheck").rglob("*.py")):
        inner = path.relative_to(ROOT / "kvcheck")
        yield (inner.parts[0] if len(inner.parts) > 1 else inner.stem), path
    for folder in ("suites", "fixtures", "baselines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield folder, path


def imports(path: Path, *, module_level: bool) -> Iterator[str]:
    """Dotted names that a file imports when it runs; imports for the type checker only are left out."""
    for node in walk(ast.parse(path.read_text("utf-8")), module_level):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def walk(node: ast.AST, module_level: bool) -> Iterator[ast.AST]:
    """Every node outside `if TYPE_CHECKING`, and outside functions where only the module level counts."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if module_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield child
        yield from walk(child, module_level)


def rank(name: str) -> int | None:
    """The layer of a part, None for a part that belongs to none (`__init__`)."""
    return next((at for at, layer in enumerate(LAYERS) if name in layer), None)


SOURCES = list(sources())
IDS = [str(path.relative_to(ROOT)) for _, path in SOURCES]


@pytest.mark.parametrize(("name", "path"), SOURCES, ids=IDS)
def test_every_module_has_a_layer(name: str, path: Path) -> None:
    assert name == "__init__" or rank(name) is not None


@pytest.mark.parametrize(("name", "path"), SOURCES, ids=IDS)
def test_imports_point_down(name: str, path: Path) -> None:
    mine = rank(name)
    for module in imports(path, module_level=False):
        theirs = rank(part(module))
        if mine is not None and theirs is not None:
            assert theirs <= mine, f"{name} imports {module}, which lies above it"


@pytest.mark.parametrize(("name", "path"), SOURCES, ids=IDS)
def test_nothing_above_the_methods_imports_torch_when_it_is_imported(name: str, path: Path) -> None:
    if name not in MAY_BE_HEAVY:
        heavy = HEAVY & {module.partition(".")[0] for module in imports(path, module_level=True)}
        assert not heavy
    if name in NEVER_HEAVY:
        anywhere = HEAVY & {module.partition(".")[0] for module in imports(path, module_level=False)}
        assert anywhere <= ({"datasets"} if path.parent.name == "benchmarks" else set())


def test_listing_methods_and_tasks_imports_no_torch() -> None:
    code = (
        "import sys; from kvcheck.methods import METHODS; from kvcheck.tasks import TASKS; METHODS.names(); "
        "[TASKS.get(name) for name in TASKS.names()]; import kvcheck.judging.budget; "
        "import kvcheck.plugin.gate, kvcheck.cli; import kvcheck.power, kvcheck.conformance; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
