"""Stores at an address: what fsspec reads is read, and a file is published whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from building import MODEL, record
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from kvcheck.core.errors import BaselineError
from kvcheck.store.baselines import FileStore, ModelId, RemoteStore, open_place
from kvcheck.store.text import StoredFile, encode, write_file

MINI = ModelId("mini", MODEL)
OLD, NEW = record([1.0, 0.0]), record([0.0, 0.0])


def text_of(one: Any) -> str:
    """A file with one record."""
    return write_file(StoredFile("0.1.0", MINI, one.method, {}, {one.case.key: encode(one, None)}))


class Flaky(LocalFileSystem):
    """Files on this machine, with something that goes wrong."""

    protocol = "flaky"
    fault = ""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        super().pipe_file(path, value if not self.fault.startswith("cut") else value[: len(value) // 2], **kwargs)
        if self.fault == "cut and raised":
            raise OSError("connection reset")

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if self.fault == "not moved":
            raise OSError("no rename today")
        super().mv(path1, path2, **kwargs)


class NoMove(MemoryFileSystem):
    """A file system that copies and deletes instead of moving, and of which nobody knows that files appear whole."""

    protocol = "nomove"


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield Flaky
    Flaky.fault = ""


@pytest.fixture
def memory() -> RemoteStore:
    """An empty store in memory."""
    return RemoteStore(f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read_listed_and_whole(memory: RemoteStore) -> None:
    memory.write(memory.path(MINI, "snapkv"), text_of(OLD))
    again = RemoteStore(memory.root)
    assert again.get(MINI, "snapkv", OLD.case) == OLD
    assert [entry.path for entry in again.entries()] == [f"{memory.root}/mini/snapkv.txt"]
    assert again.verify() == []


def test_a_file_that_was_missing_is_seen_once_it_is_written(memory: RemoteStore) -> None:
    assert memory.get(MINI, "snapkv", OLD.case) is None
    memory.write(memory.path(MINI, "snapkv"), text_of(OLD))
    assert memory.get(MINI, "snapkv", OLD.case) == OLD


def test_a_file_is_fetched_once_also_where_there_is_none(memory: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fetch = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *given: asked.append(given[1]) or fetch(*given))
    for _ in range(3):
        memory.get(MINI, "snapkv", OLD.case)
    assert len(asked) == 1


def test_a_damaged_file_is_named_with_its_address(memory: RemoteStore) -> None:
    memory.write(memory.path(MINI, "snapkv"), text_of(OLD)[:-80])
    ((path, problem),) = memory.verify()
    assert path == f"{memory.root}/mini/snapkv.txt"
    assert "truncated" in problem


@pytest.mark.parametrize("fault", ["cut", "cut and raised", "not moved"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    fault: str, flaky: type[Flaky], tmp_path: Path
) -> None:
    store = open_place(f"flaky://{tmp_path}")
    store.write(store.path(MINI, "snapkv"), text_of(OLD))
    flaky.fault = fault
    with pytest.raises(BaselineError, match=r"snapkv\.txt cannot be written"):
        store.write(store.path(MINI, "snapkv"), text_of(NEW))
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert (left.name, left.read_text()) == ("snapkv.txt", text_of(OLD))


def test_a_first_write_that_fails_shows_no_file(flaky: type[Flaky], tmp_path: Path) -> None:
    store = open_place(f"flaky://{tmp_path}")
    flaky.fault = "cut and raised"
    with pytest.raises(BaselineError):
        store.write(store.path(MINI, "snapkv"), text_of(NEW))
    assert store.entries() == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_system_without_a_move_is_not_written() -> None:
    fsspec.register_implementation("nomove", NoMove, clobber=True)
    store = open_place("nomove://kv")
    with pytest.raises(BaselineError, match="cannot be written safely"):
        store.write(store.path(MINI, "snapkv"), text_of(NEW))


def test_a_folder_is_written_whole_by_its_file_address(tmp_path: Path) -> None:
    store = open_place(f"file://{tmp_path}")
    assert isinstance(store, FileStore)
    store.write(store.path(MINI, "snapkv"), text_of(OLD))
    assert store.get(MINI, "snapkv", OLD.case) == OLD
    assert [path.name for path in tmp_path.rglob("*.*")] == ["snapkv.txt"]


def test_an_address_takes_no_records_and_names_the_command_that_publishes(memory: RemoteStore) -> None:
    with pytest.raises(BaselineError, match=f"kvcheck baselines push --from FOLDER --to {memory.root}"):
        memory.record(MINI, "snapkv", [OLD], "new", {})


@pytest.mark.parametrize(("uri", "extra"), [("s3://team/kv", "s3"), ("gs://team/kv", "gcs")])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    uri: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install the driver")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(BaselineError, match=rf"pip install 'kvcheck\[{extra}\]'"):
        open_place(uri)


def test_an_unknown_protocol_is_told_what_it_may_have_meant() -> None:
    with pytest.raises(BaselineError, match="did you mean s3"):
        open_place("s33://team/kv")


def test_a_place_that_cannot_be_listed_is_an_error_and_not_empty(
    memory: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(MemoryFileSystem, "glob", forbidden)
    with pytest.raises(BaselineError, match=r"cannot be listed: PermissionError: 403"):
        memory.entries()
