"""What the workflows do beyond what zizmor looks at: packages as recorded, and commits of baselines alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
RECORDED = [FOLDER / f"{name}.yml" for name in ("ci", "gpu", "baselines")]


def commands(path: Path) -> list[str]:
    """Every line that a shell runs."""
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
    return [line.strip() for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_torch_is_the_one_that_baselines_were_recorded_with(path: Path) -> None:
    named = [line for line in commands(path) if "pip install" in line and "torch" in line.split()]
    assert [line for line in named if "-c constraints.txt" not in line] == []


def test_a_pull_request_of_baselines_holds_recorded_files_and_nothing_else(tmp_path: Path) -> None:
    shell = commands(FOLDER / "baselines.yml")
    (record,) = [line for line in shell if line.startswith("git diff")]
    intend, *_ = [line for line in shell if line.startswith("git add --intent-to-add")]
    (apply,) = [line for line in shell if line.startswith("git apply")]
    add = next(line for line in shell if line.startswith("git add -- "))
    there, here = tmp_path / "there", tmp_path / "here"
    start = "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m start"
    for folder in (there, here):
        (folder / "found").mkdir(parents=True)
        subprocess.run(["bash", "-ec", start], cwd=folder, check=True)
    for name in ("mini/fp16.txt", "mini/.writing-x.tmp", "mini/notes.md", "mini/deep/er.txt"):
        path = there / "baselines" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("recorded\n")
    subprocess.run(["bash", "-ec", f"export RUNNER_TEMP=$PWD; {intend}; {record}"], cwd=there, check=True)
    patch = (there / "found" / "baselines.patch").read_text()
    foreign = "diff --git a/x.yml b/x.yml\nnew file mode 100644\n--- /dev/null\n+++ b/x.yml\n@@ -0,0 +1 @@\n+planted\n"
    (here / "found" / "baselines.patch").write_text(patch + foreign)
    (here / "left.txt").write_text("lies about")
    subprocess.run(["bash", "-ec", f"export RUNNER_TEMP=$PWD; {apply}; {add}"], cwd=here, check=True)
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], cwd=here, capture_output=True, text=True)
    assert staged.stdout.split() == ["baselines/mini/fp16.txt"]
    assert not (here / "x.yml").exists()
