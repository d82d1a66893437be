"""Files that cannot be written are refused before anything is measured; what is written is whole or absent."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from outside import SUITE, Foreign, Result

METHOD = "--kv-method=snapkv"
OLD = "this was here before\n"
EARLIER = {
    "--kv-json": '{"header": "of an earlier run"}\n',
    "--kv-md": "## kvcheck: passed, earlier\n",
    "--kv-html": '<!DOCTYPE html>\n<meta name="generator" content="kvcheck">\n',
}
"""What a file may hold that is written anew, by option."""
FILLS_UP = """
import pathlib

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    with contextlib.suppress(OSError), open("full/more", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
"""
"""Of a conftest.py: at the end of the session nothing more fits on the disk."""


def output(fake: Foreign, option: str, path: str, **how: object) -> Result:
    """A run whose one file goes to this path."""
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single")
    return fake.run(*SUITE, *small, "--kv-baselines=stored", METHOD, f"{option}={path}", **how)


def refused(fake: Foreign, result: Result, path: str) -> None:
    """Refused by the name of the path, before anything was measured."""
    assert result.status == pytest.ExitCode.USAGE_ERROR, result.out
    assert path in result.out
    assert "INTERNALERROR" not in result.out
    assert not fake.tried()


def on_a_disk(fake: Foreign, option: str, pages: int) -> Result:
    """A run whose one file goes to a disk of its own; one of one page is filled up by a file that is there.

    Copies of the file and of the names beside it are left in the folder, as "left" and "names".
    """
    (fake.path / "full").mkdir()
    fake.write("old", EARLIER[option])
    namespace = ("unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]))
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file systems can be mounted here")
    lines = (
        f"mount -t tmpfs -o size={4 * pages}k tmpfs full && cp old full/out || exit 99",
        "touch full/rest",
        "head -c 4096 /dev/zero >full/rest 2>/dev/null" if pages == 1 else ":",
        '"$@"',
        "status=$?",
        "cat full/out >left; ls full >names",
        "exit $status",
    )
    return output(fake, option, "full/out", before=(*namespace, "sh", "-c", "\n".join(lines), "sh"))


@pytest.mark.parametrize("option", list(EARLIER))
class TestAFile:
    def test_a_folder_is_refused(self, fake: Foreign, option: str) -> None:
        (fake.path / "folder").mkdir()
        refused(fake, output(fake, option, "folder"), "folder")
        assert list((fake.path / "folder").iterdir()) == []

    @pytest.mark.nightly
    def test_a_place_below_a_file_is_refused(self, fake: Foreign, option: str) -> None:
        fake.write("file", OLD)
        refused(fake, output(fake, option, "file/out"), "file/out")
        assert (fake.path / "file").read_text() == OLD

    @pytest.mark.nightly
    def test_a_place_where_nothing_can_be_made_is_refused(self, fake: Foreign, option: str) -> None:
        refused(fake, output(fake, option, "/proc/kvcheck/out"), "/proc/kvcheck/out")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_is_read_only_is_refused(self, fake: Foreign, option: str) -> None:
        (fake.path / "locked").mkdir(mode=0o500)
        refused(fake, output(fake, option, "locked/out"), "locked/out")

    def test_a_new_folder_is_made(self, fake: Foreign, option: str) -> None:
        result = output(fake, option, "new/folder/out")
        assert result.status == 0, result.out
        assert "snapkv" in result.text("new/folder/out")

    def test_a_full_disk_is_refused_and_the_old_file_stays(self, fake: Foreign, option: str) -> None:
        result = on_a_disk(fake, option, pages=1)
        assert result.text("left") == EARLIER[option], "the old file was emptied"
        assert result.text("names").split() == ["out", "rest"]
        refused(fake, result, "full/out")

    def test_a_disk_that_fills_up_meanwhile_ends_red_and_the_old_file_stays(self, fake: Foreign, option: str) -> None:
        fake.add("conftest.py", FILLS_UP)
        result = on_a_disk(fake, option, pages=64)
        result.red()
        assert "full/out" in result.out
        assert result.text("left") == EARLIER[option], "the old file was emptied"


def test_one_path_for_both_files_is_refused(fake: Foreign) -> None:
    result = fake.run(*fake.words(METHOD, "--kv-json=out", "--kv-md=./out"))
    refused(fake, result, "out")


def test_nothing_is_left_beside_the_files(fake: Foreign) -> None:
    before = set(os.listdir(fake.path))
    assert fake.check(METHOD).status == 0
    made = {
        name for name in set(os.listdir(fake.path)) - before if not name.startswith((".pytest_cache", "out-", "ran"))
    }
    assert {"run.json", "run.md"} <= made
    assert not [name for name in made if Path(name).suffix in (".tmp", ".writing")]
