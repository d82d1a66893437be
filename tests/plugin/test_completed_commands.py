"""Commands in messages are completed by what decides which records they are about."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
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


def said_by(**given: Any) -> Callable[[str], str]:
    """What completes messages in a session with these options."""
    kv = {f"kv_{name}": value for name, value in given.items()}
    return completer(SimpleNamespace(option=SimpleNamespace(pyargs=False, file_or_dir=["a b/t.py::t[x]"], **kv)))  # type: ignore[arg-type]


def test_limits_of_the_session_stay_beside_the_one_that_a_command_lifts() -> None:
    said = said_by(budget="bytes=0.3,drop=2")("accept: pytest --kv-method=snapkv --kv-budget=drop=5")
    assert said == "accept: pytest 'a b/t.py::t' --kv-method=snapkv --kv-budget=bytes=0.3,drop=5"


def test_a_record_of_unknown_method_is_written_by_all_of_the_session_and_fp16() -> None:
    said = said_by(methods=["snapkv", "kivi:bits=4"])("mv x x.bad; pytest --kv-method=… --kv-record=new")
    methods = "--kv-method=fp16 --kv-method=snapkv --kv-method=kivi:bits=4"
    assert said == f"mv x x.bad; pytest 'a b/t.py::t' {methods} --kv-record=new"


def test_prose_about_pytest_stays_as_it_is() -> None:
    prose = "run pytest without torchrun; --kv-device=spread puts whole layers on several GPUs"
    assert said_by(n="8")(prose) == prose


SPEC = "mine.make:path='it is'"


@pytest.fixture
def printed(
    repo: pytest.Pytester, recorded: Callable[..., pytest.RunResult], behave: Callable[..., None]
) -> dict[str, str]:
    """The commands of failures in a session of narrow options and awkward names: "look", "accept", …"""
    repo.makepyfile(mine="def make(model, path=''): ...")
    behave({SPEC: 0.0})
    recorded("--kv-method=fp16", "--collect-only")
    shutil.move("stored", "my stored")
    narrow = ("--kv-profile=quick", "--kv-modes=single", "--kv-lengths=512", "--kv-tasks=kv,multi_hop", "--kv-n=8")
    where = ("--pyargs", "kvcheck.suites.test_string_retrieval", "-m", "not conformance", "--kv-baselines=my stored")
    result = repo.runpytest(*where, *narrow, f"--kv-method={SPEC}", "--kv-budget=bytes=0.4")
    result.assert_outcomes(failed=5)  # two cases, their tasks, and the run
    lines = [line for line in result.outlines if "pytest -" in line]
    assert len(lines) >= 6
    return {line.partition("pytest ")[0].strip(" :"): line[line.index("pytest ") :] for line in lines}


def test_printed_commands_are_pasteable_and_reproduce_the_failure(
    repo: pytest.Pytester, printed: dict[str, str]
) -> None:
    for command in printed.values():
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert repo.runpytest(*shlex.split(command)[1:], "--collect-only", "-q").ret == 0, command
    repo.runpytest(*shlex.split(printed["look"])[1:]).assert_outcomes(failed=2)
    accepted = next(command for what, command in printed.items() if re.match("accept.*price", what))
    repo.runpytest(*shlex.split(accepted)[1:]).assert_outcomes(failed=2)  # each price is accepted by itself
