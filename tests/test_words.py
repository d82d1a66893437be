"""The runner of the documentation does what a reader would, and stops where the page is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ROOT / ".ci" / "words.py"
GOOD = """# A page

Save this as `one.toml`:

```toml
two words
```

```text
what is shown here is no command
```

1. Look at it. It needs a folder of its own.

   ```
   mkdir inner && cd inner
   ```

2. It is still there:

   ```
   grep -q 'two words' ../one.toml
   kept=yes
   ```

   and now it is not:

   ```
   test "$kept" = yes
   grep nothing ../one.toml
   ```

   The exit status is 1.

## Another section

```
exit 7
```
"""


def read(page: str, folder: Path, *section: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.md").write_text(page)
    command = [sys.executable, str(WORDS), str(folder / "page.md"), str(folder / "empty"), *section]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_page_that_is_right_runs_in_one_shell(tmp_path: Path) -> None:
    done = read(GOOD.partition("## Another")[0], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "empty" / "one.toml").read_text() == "two words\n"
    assert "$ grep nothing ../one.toml" in done.stdout


def test_one_section_is_run_alone(tmp_path: Path) -> None:
    assert read(GOOD, tmp_path, "Another section").returncode == 7
    assert not (tmp_path / "empty" / "one.toml").exists()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("The exit status is 1.", "It prints nothing."),
        ("grep -q 'two words' ../one.toml", "grep -q 'three words' ../one.toml"),
        ("The exit status is 1.", "The exit status is 2."),
    ],
)
def test_a_status_that_is_not_the_one_that_is_said_ends_it(tmp_path: Path, right: str, wrong: str) -> None:
    assert right in GOOD
    done = read(GOOD.replace(right, wrong), tmp_path)
    assert done.returncode == 1
    assert "and the page says" in done.stdout


def test_a_page_without_commands_is_not_right_by_that(tmp_path: Path) -> None:
    assert read("# Nothing\n", tmp_path).returncode == 1


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/tutorial/{one}.md" for one in ("author", "engine_team", "server"))]
)
def test_the_pages_that_ci_runs_begin_with_the_install(page: str) -> None:
    spec = importlib.util.spec_from_file_location("words", WORDS)
    assert spec is not None
    assert spec.loader is not None
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    text = (ROOT / page).read_text("utf-8")
    commands = [block.text for block in words.blocks(text) if not block.language]
    assert words.CLONE in commands[0]
    assert f".ci/words.py {page}" in (ROOT / ".ci" / "run").read_text("utf-8")
