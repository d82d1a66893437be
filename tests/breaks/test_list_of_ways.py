"""The list of ways to break a run names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "breaks.md"


def test_every_way_in_the_list_is_tried_by_a_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8")))
    trees = [ast.parse(path.read_text("utf-8")) for path in HERE.glob("test_*.py")]
    known = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert len(named) > 30
    assert named <= known, sorted(named - known)
