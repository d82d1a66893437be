"""Versions of torch and transformers that kvcheck runs with: declared once, refused once, shown by doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kvcheck.cli.commands import main
from kvcheck.core import env
from kvcheck.core.errors import KvcheckError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    """As if another version were installed; "" for none."""
    true = env.metadata.version

    def found(asked: str) -> str:
        if asked == name and not version:
            raise env.metadata.PackageNotFoundError(name)
        return version if asked == name else true(asked)

    monkeypatch.setattr(env.metadata, "version", found)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("transformers", "4.57.1"),
        ("transformers", "6.0.0.dev0"),
        ("torch", "2.5.1+cu124"),
        ("torch", "3.0"),
        ("torch", ""),
    ],
)
def test_an_unsupported_version_is_named_with_what_is_supported(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    pretend(monkeypatch, name, version)
    with pytest.raises(KvcheckError) as caught:
        env.expect_versions()
    assert f"{name} {version or 'is not installed'}" in caught.value.message
    assert f"kvcheck needs {name}{env.SUPPORTED[name].text}" in caught.value.message
    assert caught.value.hint == "pip install 'torch>=2.6,<3' 'transformers>=5.2,<6'"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("5.24.0", "is among the versions that kvcheck was tried with"),
        ("5.31.2", "is newer than all that kvcheck was tried with"),
        ("5.7.0", "is not among those that kvcheck was tried with"),
        ("4.57.1", "is not supported"),
    ],
)
def test_doctor_says_whether_this_environment_was_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, words: str
) -> None:
    pretend(monkeypatch, "transformers", version)
    code = main(["doctor"])
    out = capsys.readouterr().out
    assert f"  transformers {version} {words}" in out
    assert ("threads on" in out) == (words != "is not supported")
    assert code == (1 if words == "is not supported" else 0)


def test_the_package_asks_for_the_versions_that_are_declared() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    bounds = {Requirement(text).name: Requirement(text).specifier for text in asked}
    for name, known in env.SUPPORTED.items():
        assert bounds[name] == Requirement(f"{name}{known.text}").specifier
        assert all(bounds[name].contains(version) for version in known.tried)


def test_what_was_tried_is_what_ci_tries() -> None:
    """The oldest by name, and the newest as it is pinned."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split() if "==" in line)
    for name, known in env.SUPPORTED.items():
        assert pinned[name] in known.tried
        assert f"{name}=={known.tried[0]}" in script


def test_an_unsupported_version_ends_a_run_before_anything_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = pytester.path / "old" / "transformers-4.57.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.1\n")
    monkeypatch.setenv("PYTHONPATH", str(old.parent))
    result = pytester.runpytest_subprocess("--pyargs", "kvcheck.suites", "--kv-method=fp16", "--kv-tasks=kv")
    said = result.stderr.str() + result.stdout.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said.count("transformers 4.57.1 is not supported; kvcheck needs transformers>=5.2,<6") == 1
    assert "collected" not in said


@pytest.mark.parametrize("command", [["speed", "--methods=fp16"], ["prompt", "kv"]])
def test_commands_that_need_torch_say_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    pretend(monkeypatch, "transformers", "4.57.1")
    assert main(command) == 2
    assert "transformers 4.57.1 is not supported" in capsys.readouterr().err


def test_commands_on_files_need_no_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, "torch", "")
    assert main(["tasks"]) == 0
    assert "kv" in capsys.readouterr().out
