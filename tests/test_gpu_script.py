"""The script that measures on a GPU: limits hold, what there was is kept, and nothing is green that did not run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "gpu"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("gpu_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_script", loader)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def code(text: str) -> list[str]:
    """A command that runs this Python."""
    return [sys.executable, "-uc", text]


def test_all_parts_with_their_grace_take_nine_minutes_at_most(gpu: ModuleType, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        assert sum(seconds + gpu.GRACE for _, seconds, _ in gpu.parts(device, tmp_path)) <= 540


def test_a_part_that_is_cut_keeps_what_it_had_sums_up_and_the_next_one_runs(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hang = "import time\ntry: print('had this') or time.sleep(60)\nfinally: print('summed up')"
    assert not gpu.measure([("hangs", 5, code(hang)), ("next", 30, code("print('ran')"))], tmp_path)
    assert "had this\nsummed up" in (tmp_path / "hangs.txt").read_text()
    assert "ran" in (tmp_path / "next.txt").read_text()
    said = capsys.readouterr().out
    assert "cut at its limit of 5 s" in said
    assert re.search(r"next +\d+ s  done", said)


def test_a_part_that_ignores_the_signal_is_killed(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    assert gpu.part(code(deaf), 1, tmp_path / "deaf.txt") == (-9, True)


def test_a_part_that_fails_makes_the_whole_fail_and_shows_its_end(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not gpu.measure([("bad", 30, code("print('why'); raise SystemExit(4)"))], tmp_path)
    assert re.search(r"why\nbad +\d+ s  exit status 4", capsys.readouterr().out)


def test_what_the_machine_has_is_left_and_what_it_lacks_comes_from_the_wheels(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, folder = tmp_path / "site", tmp_path / "wheels"
    folder.mkdir()
    for name in ("numpy", "not_there"):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "carried = True\n")
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(
                f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "not_there"))
    assert gpu.installed(str(folder), str(site))
    assert sorted(path.stem for path in site.glob("*.py")) == ["not_there"]


def test_what_is_lacking_is_named(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "no_such_package"))
    assert not gpu.installed(None, str(tmp_path))
    assert "lacks no_such_package" in capsys.readouterr().out


def test_without_a_device_nothing_is_measured_and_it_fails(tmp_path: Path) -> None:
    env = {**os.environ, "OUT": str(tmp_path / "out"), "CUDA_VISIBLE_DEVICES": "", "DEVICE": "cuda"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torch sees no CUDA device" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["facts.txt"]
