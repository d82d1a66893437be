"""The wheel holds what the checkout holds, and works in another repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SHIPPED = ("kvcheck", "suites", "fixtures", "baselines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; skipped where setuptools is too old to build it without a network."""
    pytest.importorskip("setuptools", minversion="77")
    out = tmp_path_factory.mktemp("wheel")
    # Build from a copy: a build folder left in the checkout would be packed again.
    source = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the wheel cannot be built from what git knows:\n{done.stdout}{done.stderr}", pytrace=False)
    return next(out.glob("*.whl"))


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])
    found = {
        "kvcheck" if path.parent == ROOT / "kvcheck" else ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "kvcheck").rglob("__init__.py")
    }
    assert found | {"kvcheck.suites", "kvcheck.fixtures", "kvcheck.baselines"} <= listed


def test_the_wheel_holds_every_file_of_the_checkout(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *SHIPPED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = {name if name.startswith("kvcheck/") else f"kvcheck/{name}" for name in listed if (ROOT / name).is_file()}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= held, sorted(wanted - held)


def test_the_suites_run_from_the_wheel_in_another_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--strict-markers"\n')
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["--pyargs", "kvcheck.suites", "--kv-method=fp16", "--collect-only", "-q", "--kv-profile=quick"]
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[kv-multi_turn-512-fp16]" in done.stdout
