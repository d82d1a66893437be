"""Several that write one baseline at once: nothing is lost, with flock or without, or it is refused by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from building import MODEL, record

from kvcheck.core import files
from kvcheck.core.errors import BaselineError
from kvcheck.core.files import LOCK, one_writer
from kvcheck.core.record import CaseRecord
from kvcheck.store import file_store
from kvcheck.store.baselines import FileStore, ModelId
from kvcheck.store.publish import plan, write

MINI = ModelId("mini", MODEL)
ABOUT = {"kvcheck": "0.1.0", "packages": {"torch": "2.13"}}
FLOCK = {
    "flock works": "",
    "flock raises": "import fcntl\ndef no(*_): raise OSError(38, 'Function not implemented')\nfcntl.flock = no",
    "flock does nothing": "import fcntl\nfcntl.flock = lambda *_: None",
}
WRITER = """
import sys
sys.path.insert(0, {tests!r})
{flock}
from test_baseline_writers import case_of, keep
from kvcheck.store.baselines import FileStore
for at in range({first}, {first} + {count}):
    keep(FileStore({root!r}), case_of(at))
"""


def case_of(length: int) -> CaseRecord:
    mine = record([1.0, 0.0], nll=0.5)
    return replace(mine, case=replace(mine.case, length=length + 1))


def keep(store: FileStore, *records: CaseRecord, verb: str = "new") -> None:
    store.record(MINI, "snapkv", records, verb, ABOUT)


def lengths(store: FileStore) -> list[int]:
    stored = store.load(MINI, "snapkv")
    return sorted(one.case.length - 1 for one in stored.cases.values()) if stored is not None else []


@pytest.mark.parametrize("how", FLOCK)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock to break")
def test_sixty_recordings_by_four_processes_lose_nothing(tmp_path: Path, how: str) -> None:
    code = [
        WRITER.format(tests=str(Path(__file__).parent), flock=FLOCK[how], root=str(tmp_path), first=15 * at, count=15)
        for at in range(4)
    ]
    writers = [subprocess.Popen([sys.executable, "-c", one]) for one in code]
    assert [one.wait(120) for one in writers] == [0] * 4
    assert lengths(FileStore(tmp_path)) == list(range(60))
    assert [path.name for path in (tmp_path / "mini").iterdir()] == ["snapkv.txt"]


def test_what_something_else_wrote_just_before_the_rename_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that takes no lock: a checkout, a copy, an older kvcheck."""
    mine, other, usual = FileStore(tmp_path / "a"), FileStore(tmp_path / "b"), file_store.write_atomically
    keep(mine, case_of(0))
    keep(other, case_of(0), case_of(1))
    path, theirs = mine.path(MINI, "snapkv"), Path(other.path(MINI, "snapkv")).read_text()

    def late(at: str, text: str, last) -> None:
        monkeypatch.setattr(file_store, "write_atomically", usual)
        usual(path, theirs)
        usual(at, text, last)

    monkeypatch.setattr(file_store, "write_atomically", late)
    keep(mine, case_of(2))
    assert lengths(FileStore(tmp_path / "a")) == [0, 1, 2]


def test_what_something_else_wrote_right_behind_it_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other, usual = FileStore(tmp_path / "a"), FileStore(tmp_path / "b"), file_store.write_atomically
    keep(other, case_of(1))
    path, theirs = mine.path(MINI, "snapkv"), Path(other.path(MINI, "snapkv")).read_text()

    def overwritten(at: str, text: str, last) -> None:
        monkeypatch.setattr(file_store, "write_atomically", usual)
        usual(at, text, last)
        usual(path, theirs)

    monkeypatch.setattr(file_store, "write_atomically", overwritten)
    keep(mine, case_of(2))
    assert lengths(FileStore(tmp_path / "a")) == [1, 2]


def test_a_file_that_something_else_writes_again_and_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, usual = FileStore(tmp_path), file_store.write_atomically
    texts = []
    for at in (1, 2):
        keep(FileStore(tmp_path / str(at)), case_of(at))
        texts.append((tmp_path / str(at) / "mini" / "snapkv.txt").read_text())

    def always(at: str, text: str, last) -> None:
        texts.reverse()
        usual(at, texts[0])
        usual(at, text, last)

    monkeypatch.setattr(file_store, "write_atomically", always)
    with pytest.raises(BaselineError, match=r"snapkv\.txt is written again and again by something else"):
        keep(mine, case_of(3))
    assert Path(mine.path(MINI, "snapkv")).read_text() in texts


def test_a_lock_that_another_machine_holds_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT", 0.2)
    (tmp_path / "mini").mkdir()
    lock = tmp_path / "mini" / LOCK
    lock.write_text("4711\nsome-other-machine\n")
    with pytest.raises(BaselineError, match=rf"nothing was written to .*{LOCK} for 0\.2 s[\s\S]*remove that file"):
        keep(FileStore(tmp_path), case_of(0))
    lock.unlink()
    keep(FileStore(tmp_path), case_of(0))


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_lock_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    inside = "print('in', flush=True); input()"
    code = f"from kvcheck.core.files import one_writer\nwith one_writer({str(tmp_path / 'mini')!r}): {inside}"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"in\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert (tmp_path / "mini" / LOCK).exists()
    start = time.monotonic()
    keep(FileStore(tmp_path), case_of(0))
    assert time.monotonic() - start < 30
    assert os.listdir(tmp_path / "mini") == ["snapkv.txt"]


def test_a_push_waits_for_the_same_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shared = FileStore(tmp_path / "own"), FileStore(tmp_path / "shared")
    keep(own, case_of(0))
    merges = plan(own, shared)
    monkeypatch.setattr(files, "WAIT", 0.2)
    with one_writer(str(tmp_path / "shared" / "mini")), pytest.raises(BaselineError, match="nothing was written"):
        write(shared, merges)
    write(shared, merges)
    assert lengths(FileStore(shared.root)) == [0]


def test_a_push_leaves_what_was_recorded_there_since_it_was_planned(tmp_path: Path) -> None:
    own, shared = FileStore(tmp_path / "own"), FileStore(tmp_path / "shared")
    keep(own, case_of(0))
    merges = plan(own, shared)
    keep(FileStore(shared.root), case_of(1))
    with pytest.raises(BaselineError, match="changed by another process meanwhile"):
        write(shared, merges)
    assert lengths(FileStore(shared.root)) == [1]
    write(shared, plan(own, shared))
    assert lengths(FileStore(shared.root)) == [0, 1]
