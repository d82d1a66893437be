"""Bytes that are not what they seem, on the embedded model: red by the right question, and one that is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from outside import SUITE, Foreign

HELD = Path(__file__).with_name("held.py")
SMALL = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4", "--kv-modes=multi_turn", "-m", "not conformance")


def test_caches_that_hold_other_bytes_than_it_seems_are_told(empty: Foreign) -> None:
    empty.write("held.py", HELD.read_text("utf-8"))
    names = ("Shrunk", "Inflated", "Nothing")
    methods = [f"--kv-method=held.{name}" for name in names]
    result = empty.run(*SUITE, *SMALL, *methods, "--kv-json=run.json")
    run = json.loads((empty.path / "run.json").read_text("utf-8"))
    failures = {name: text for where, text in run["failures"].items() for name in names if where.endswith(f".{name}")}
    assert result.status == 1, result.out
    assert set(failures) == {"Shrunk", "Inflated"}, result.out
    assert "not shown to act" in failures["Shrunk"]
    assert "it holds 3% of the slots" in failures["Shrunk"]
    assert "bytes after the prompt, 350% of what fp16 holds" in failures["Inflated"]
    assert "bytes after decoding, 150% of what fp16 holds" in failures["Inflated"]
    assert "notice: held.Nothing claims nothing and changes nothing" in result.out
