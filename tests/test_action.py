"""The GitHub action by its steps: the gate, and the one comment that is kept up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / ".github" / "action"
ACTION = ROOT / "action.yml"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bash")
Step = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """Run a script of the action where programs of these names do what is given: {name: lines of bash}."""

    def run(script: str, programs: dict[str, str], **env: str) -> subprocess.CompletedProcess[str]:
        here = tmp_path / "bin"
        here.mkdir(exist_ok=True)
        for name, text in programs.items():
            file = here / name
            file.write_text(f"#!/usr/bin/env bash\n{text}\n")
            file.chmod(0o755)
        (tmp_path / "output").touch()
        told = {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path)}
        told |= {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "steps.md"), **env}
        return subprocess.run(["bash", str(SCRIPTS / script)], env=told, text=True, capture_output=True, check=False)

    return run


GATE = {"METHODS": "snapkv\nkivi:bits=4", "MODEL": "mini", "PROFILE": "quick", "BUDGET": "drop=5",
        "BASELINES": "", "SUITES": "--pyargs kvcheck.suites", "ARGUMENTS": "-n 2", "TITLE": "kvcheck"}  # fmt: skip
PYTHON = """
printf '%s\\n' "$@" > "$RUNNER_TEMP/typed"
for word in "$@"; do
  case "$word" in --kv-json=*) echo '{}' > "${word#*=}";; --kv-md=*) echo done > "${word#*=}";; esac
done
exit 1
"""


def outputs(folder: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())


def test_the_gate_types_what_was_asked_and_passes_on_how_it_ended(step: Step, tmp_path: Path) -> None:
    ended = step("gate.sh", {"python": PYTHON, "kvcheck": 'echo "<!-- kvcheck --> $*"'}, **GATE)
    assert ended.returncode == 0, ended.stderr  # the last step of the action fails, when all is shown
    typed = (tmp_path / "typed").read_text().splitlines()
    for word in ("--kv-method=snapkv", "--kv-method=kivi:bits=4", "--kv-budget=drop=5", "--pyargs", "-n", "2"):
        assert word in typed
    assert any(word.startswith("--kv-html=") for word in typed)
    assert not any(word.startswith("--kv-baselines") for word in typed)
    found = outputs(tmp_path)
    assert found["status"] == "1"
    assert Path(found["comment"]).read_text().startswith("<!-- kvcheck --> report")
    assert (tmp_path / "steps.md").read_text() == "done\n"


def test_a_run_without_a_result_is_not_green_and_is_told(step: Step, tmp_path: Path) -> None:
    step("gate.sh", {"python": "exit 0", "kvcheck": "exit 0"}, **{**GATE, "TITLE": "gpu"})
    found = outputs(tmp_path)
    assert found["status"] == "1"
    assert Path(found["comment"]).read_text().startswith("<!-- kvcheck gpu -->\n### gpu: no result\n")


GH = """
printf '%s\\n' "$*" >> "$RUNNER_TEMP/asked"
case "$*" in *--paginate*) cat "$RUNNER_TEMP/comments";; esac
"""


def commented(step: Step, folder: Path, comments: str) -> list[str]:
    """What was asked of GitHub, where the pull request has these comments: (number, first line) in columns."""
    (folder / "comments").write_text(comments)
    (folder / "comment.md").write_text("<!-- kvcheck -->\n### kvcheck: passed\n")
    about = {"GITHUB_REPOSITORY": "me/mine", "PULL": "7", "COMMENT": str(folder / "comment.md")}
    ended = step("comment.sh", {"gh": GH}, **about)
    assert ended.returncode == 0, ended.stderr
    return (folder / "asked").read_text().splitlines()


def test_the_first_comment_is_written(step: Step, tmp_path: Path) -> None:
    _, write = commented(step, tmp_path, "11\t<!-- kvcheck gpu -->\n12\thello\n")
    assert write.startswith("api -X POST repos/me/mine/issues/7/comments")


def test_a_later_one_takes_its_place(step: Step, tmp_path: Path) -> None:
    _, write = commented(step, tmp_path, "11\t<!-- kvcheck gpu -->\n12\t<!-- kvcheck -->\r\n13\t<!-- kvcheck -->\n")
    assert write.startswith("api -X PATCH repos/me/mine/issues/comments/12")


BOT = """
printf '%s\\n' "$*" >> "$RUNNER_TEMP/asked"
case "$*" in
  *--paginate*) test -e "$RUNNER_TEMP/kept.md" && printf '12\\t%s\\n' "$(head -n 1 "$RUNNER_TEMP/kept.md")" || true;;
  *) for word in "$@"; do case "$word" in body=@*) cp "${word#body=@}" "$RUNNER_TEMP/kept.md";; esac; done;;
esac
"""


@pytest.mark.nightly
def test_from_the_gate_to_one_comment_on_a_real_run(step: Step, tmp_path: Path) -> None:
    real = {**GATE, "METHODS": "streaming_llm:window=64", "BUDGET": "drop=2", "ARGUMENTS": "--kv-tasks=kv"}
    real |= {"SUITES": "--pyargs kvcheck.suites.test_string_retrieval", "GITHUB_REPOSITORY": "me/mine", "PULL": "7"}
    for _ in range(2):  # the second push to the same pull request
        assert step("gate.sh", {"gh": BOT}, **real).returncode == 0
        found = outputs(tmp_path)
        assert step("comment.sh", {}, **real, COMMENT=found["comment"]).returncode == 0
    assert found["status"] == "1"
    for name in ("run.json", "report.html", "summary.md", "comment.md", "junit.xml"):
        assert (Path(found["folder"]) / name).stat().st_size > 0, name
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [one.split()[2] for one in asked if "--paginate" not in one] == ["POST", "PATCH"]
    comment = (tmp_path / "kept.md").read_text().splitlines()
    assert comment[1] == "### kvcheck: failed"
    assert [line for line in comment if "(fp16) →" in line]
    before_the_fold = comment[: next(at for at, line in enumerate(comment) if line.startswith("<details>"))]
    assert len(before_the_fold) <= 16


def test_every_input_reaches_the_gate() -> None:
    text = ACTION.read_text("utf-8")
    named = [line.strip().rstrip(":") for line in text.partition("inputs:")[2].partition("outputs:")[0].splitlines()
             if line.startswith("  ") and not line.startswith("   ")]  # fmt: skip
    assert len(named) == 11
    assert [name for name in named if f"inputs.{name}" not in text] == []


def test_what_is_run_from_the_action_is_there() -> None:
    text = ACTION.read_text("utf-8")
    for name in ("gate.sh", "comment.sh"):
        assert f"$GITHUB_ACTION_PATH/.github/action/{name}" in text
        assert (SCRIPTS / name).is_file()
