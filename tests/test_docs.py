"""What the documentation shows works as shown."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcheck.conformance.runner import examine
from kvcheck.core.record import HOLDS

STORED = (
    "a_slot_holds_the_token_of_its_position",
    "bytes_are_as_declared",
    "a_row_of_a_batch_is_as_alone",
    "forks_do_not_disturb_each_other",
    "beams_that_are_reordered_go_on_as_their_parents",
    "a_reset_cache_is_as_a_fresh_one",
)
"""Properties that storage of one's own can break."""
ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^ *```(\w*).*\n([\s\S]*?)^ *```|((?:^ {4}.*\n|^\n(?=\n* {4}))+)", re.MULTILINE)
"""A block of code: between fences, or indented."""
BEGINS = re.compile(r"(python|pytest|kvcheck|torchrun) ")
"""A line of shell that runs something of ours."""
AGAIN = re.compile(r"(?<! -m)\s(pytest|kvcheck) (?=-|[a-z])")
"""A command in the middle of a line."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def code(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of every block of a page, without what indents it. One without a fence says no language."""
    for language, fenced, indented in BLOCK.findall(text):
        yield language, textwrap.dedent(fenced or indented).strip("\n")


def run_together(block: str) -> list[str]:
    """Lines of shell that hold more than one command, or only the end of one."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    wrong = [line for line in lines if re.search(r"#.*\s(pytest|kvcheck)$", line)]
    for line in lines:
        commands = re.split(r" (?:&&|\||;) ", line.partition(" #")[0])
        again = any(BEGINS.match(one) and AGAIN.search(one) for one in commands)
        wrong += [line] if again or (line.startswith("--") and AGAIN.search(line)) else []
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_line_of_a_block_of_code_is_one_line_of_it(page: Path) -> None:
    """As when a page is wrapped anew and its blocks with it."""
    for language, block in code(page.read_text("utf-8")):
        assert not run_together(block), block
        if language == "python" or (not language and block.startswith(("from ", "import "))):
            compile(block, str(page), "exec")


def test_commands_that_were_run_together_are_seen() -> None:
    assert not run_together("pytest --kv-method=snapkv \\\n  --kv-n=4  # kvcheck reads it\nkvcheck tasks\n")
    assert run_together("python -c 'import this' pytest --pyargs\nkvcheck.suites --kv-model=mini")
    assert run_together("pytest --kv-record=new\n--kv-against=self pytest --pyargs kvcheck.suites")
    assert run_together("kvcheck push --to A  # what would change kvcheck\npush --to B")


def test_the_method_of_the_how_to_runs_through_a_suite(tmp_path):
    (tmp_path / "my_cache.py").write_text(blocks("howto/own_method.md", "python")[0])
    command = [sys.executable, "-m", "pytest", "--pyargs", "kvcheck.suites", "--kv-method=my_cache.Strided:window=64"]
    command += ["--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4", "--kv-modes=multi_request", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert "my_cache.Strided:window=64" in done.stdout, done.stdout + done.stderr
    assert re.search(r"[12] (passed|failed)", done.stdout), done.stdout + done.stderr  # the case, and the run of it
    assert "kvcheck.core.errors" not in done.stdout


def test_a_wrong_parameter_of_that_method_is_refused_by_name(tmp_path):
    (tmp_path / "my_cache.py").write_text(blocks("howto/own_method.md", "python")[0])
    command = [sys.executable, "-m", "pytest", "--pyargs", "kvcheck.suites", "--kv-method=my_cache.Strided:windw=64"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 4
    assert "did you mean window?" in done.stdout + done.stderr


def test_own_storage_of_the_how_to_keeps_what_every_method_must(tmp_path, monkeypatch):
    (tmp_path / "my_bytes.py").write_text(blocks("howto/own_method.md", "python")[1])
    monkeypatch.syspath_prepend(tmp_path)
    for name in STORED:
        found = examine(name, "my_bytes.Bytes", 3)
        assert found.outcome == HOLDS, found


def test_the_line_that_the_newest_job_looks_for_is_the_one_that_the_readme_shows():
    """The job reads it from the terminal: a line that was worded anew would fail it in CI alone."""
    sought = re.findall(r"grep -qx '([^']+)'", (ROOT / ".ci" / "newest").read_text("utf-8"))
    assert sought
    assert set(sought) <= set((ROOT / "README.md").read_text("utf-8").splitlines())
