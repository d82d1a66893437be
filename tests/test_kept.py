"""A folder of files that may be lost: bounded, never half a file, never a damaged one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.core.kept import FORGOTTEN, PENDING, KeptFiles, expect_folder

A, B, C = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def kept(tmp_path: Path) -> KeptFiles:
    """A folder for ten bytes."""
    found = KeptFiles(tmp_path / "deep" / "kept", limit=10)
    found.open()
    return found


def put(kept: KeptFiles, key: str, content: bytes, used: int = 0) -> None:
    """Keep a content, last used so many seconds ago."""
    kept.write(key, content)
    kept.keep()
    for path in kept.folder.glob(f"{key}.*"):
        os.utime(path, (path.stat().st_atime - used, path.stat().st_mtime - used))


def test_what_is_kept_is_found_by_another_process(kept: KeptFiles) -> None:
    put(kept, A, b"four")
    other = KeptFiles(kept.folder, limit=10)
    assert (other.read(A), other.read(B), other.size()) == (b"four", None, (1, 4))


def test_what_was_used_longest_ago_goes_first(kept: KeptFiles) -> None:
    put(kept, A, b"four", used=30)
    put(kept, B, b"four", used=20)
    assert kept.read(A) == b"four"  # used now
    put(kept, C, b"four")
    assert [kept.read(key) for key in (A, B, C)] == [b"four", None, b"four"]
    assert kept.size() == (2, 8)


def test_what_exceeds_the_limit_by_itself_is_not_kept_and_drives_nothing_out(kept: KeptFiles) -> None:
    put(kept, A, b"four")
    put(kept, B, b"eleven byte")
    assert (kept.read(A), kept.read(B)) == (b"four", None)


def test_what_is_being_written_counts_and_is_not_read(kept: KeptFiles) -> None:
    for key in (A, B, C):
        kept.write(key, b"four")
    assert kept.size() == (2, 8)
    assert [kept.read(key) for key in (A, B, C)] == [None] * 3
    kept.keep()
    assert [kept.read(key) for key in (A, B, C)] == [None, b"four", b"four"]


def test_what_is_dropped_leaves_nothing(kept: KeptFiles) -> None:
    kept.write(A, b"four")
    kept.drop()
    kept.keep()
    assert (kept.read(A), os.listdir(kept.folder)) == (None, [])


@pytest.mark.parametrize("damage", [b"", b"fou", b"five", b"fours"], ids=["emptied", "cut", "changed", "longer"])
def test_a_damaged_file_is_noticed_and_removed(kept: KeptFiles, damage: bytes) -> None:
    put(kept, A, b"four")
    next(kept.folder.glob(f"{A}.*")).write_bytes(damage)
    assert (kept.read(A), kept.damaged, kept.size()) == (None, 1, (0, 0))
    put(kept, A, b"four")
    assert kept.read(A) == b"four"


def test_what_is_no_plain_file_is_as_if_it_were_not_there(kept: KeptFiles) -> None:
    put(kept, A, b"four")
    path = next(kept.folder.glob(f"{A}.*"))
    path.unlink()
    os.mkfifo(path)  # a read would wait for ever
    assert kept.read(A) is None


def test_a_killed_process_leaves_what_a_later_one_removes_and_nobody_reads(kept: KeptFiles) -> None:
    kept.write(A, b"four")  # and no keep
    left = next(kept.folder.glob(f"{PENDING}*"))
    later = KeptFiles(kept.folder, limit=10)
    later.open()
    assert (later.read(A), left.exists()) == (None, True), "it may be of a process that goes on"
    os.utime(left, (0, left.stat().st_mtime - FORGOTTEN - 60))
    later.open()
    assert not left.exists()


def test_other_files_in_the_folder_are_left_alone(kept: KeptFiles) -> None:
    mine = kept.folder / "thesis.safetensors"
    mine.write_bytes(b"x" * 100)
    put(kept, A, b"four", used=10)
    put(kept, B, b"eight888")
    assert (mine.stat().st_size, kept.read(A), kept.read(B)) == (100, None, b"eight888")


def test_a_folder_that_is_gone_costs_nothing_but_what_was_in_it(kept: KeptFiles) -> None:
    put(kept, A, b"four")
    for path in kept.folder.iterdir():
        path.unlink()
    kept.folder.rmdir()
    assert (kept.read(A), kept.size()) == (None, (0, 0))
    with pytest.raises(OSError, match="No such file"):
        kept.write(A, b"four")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(SpecError, match=r"taken is a file\n  name a folder .*--kv-prefill-cache=\.kvcheck/prefills"):
        expect_folder(tmp_path / "taken")
    with pytest.raises(SpecError, match=r"cannot be written: Not a directory"):
        expect_folder(tmp_path / "taken" / "below")
    expect_folder(tmp_path / "not" / "there" / "yet")
    assert not (tmp_path / "not").exists()
