"""Commands in messages are completed by what decides which records they are about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvcheck.plugin.commands import completer


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("data", "some rows", "'--kv-data=some rows'"),
        ("chat", "no", "--kv-chat=no"),
        ("history", "gold", "--kv-history=gold"),
        ("compat", True, "--kv-compat"),
        ("rope", "yarn:factor=4", "--kv-rope=yarn:factor=4"),
        ("trust_remote_code", "a/b", "--kv-trust-remote-code=a/b"),
    ],
)
def test_what_a_model_is_shown_and_how_it_is_loaded_stands_in_the_command(option: str, value: Any, words: str) -> None:
    config: Any = SimpleNamespace(option=SimpleNamespace(pyargs=False, file_or_dir=[], **{f"kv_{option}": value}))
    said = completer(config)("record it: pytest --kv-method=fp16 --kv-record=new")
    assert said == f"record it: pytest {words} --kv-method=fp16 --kv-record=new"
