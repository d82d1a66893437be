"""The house rules that a machine can check: functions and parameter lists stay small, modules say what they are for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION, PARAMETERS = 60, 8
SOURCES = sorted(
    path
    for folder in ("kvcheck", "suites", "fixtures", "baselines")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "a module begins with a docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for node in functions(path):
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = len([name for name in names if name.arg not in ("self", "cls")])
        assert (node.end_lineno or 0) - node.lineno < FUNCTION, f"{node.name} is too long"
        assert count <= PARAMETERS, f"{node.name} takes {count} parameters"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_checks_input(path: Path) -> None:
    asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert is gone under python -O: raise an error that says what to do (lines {asserts})"
