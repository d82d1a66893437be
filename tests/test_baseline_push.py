"""Publishing: records of one store are merged into another, and what is there is not lost by accident."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from building import MODEL, fp16, record

from kvcheck.cli.commands import main
from kvcheck.core.errors import BaselineError
from kvcheck.core.record import CaseRecord
from kvcheck.store import publish
from kvcheck.store.baselines import FileStore, ModelId, RemoteStore
from kvcheck.store.reader import Reader

THEIRS = ModelId("theirs", MODEL)
METHOD = record([1.0, 0.0])


@pytest.fixture
def own(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "own")


@pytest.fixture(params=["folder", "memory"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    """The store that a team shares."""
    return FileStore(tmp_path / "shared") if request.param == "folder" else RemoteStore(f"memory://{uuid.uuid4().hex}")


def keep(store: FileStore, *records: CaseRecord) -> None:
    for one in records:
        store.record(THEIRS, one.method, [one], "all", {"kvcheck": "0.1.0", "packages": {}})


def push(own: FileStore, shared: Reader, *options: str) -> int:
    """Through the command line."""
    return main(["baselines", "push", "--from", own.root, "--to", shared.root, *options])


def scores(store: Reader, method: str, task: str = "kv") -> float:
    """The accuracy that a new reader of that place finds."""
    fresh = RemoteStore(store.root) if isinstance(store, RemoteStore) else FileStore(store.root)
    found = fresh.get(THEIRS, method, record([0.0], task=task).case)
    return -1.0 if found is None else found.accuracy


def test_all_that_is_recorded_is_published_and_verifies(own: FileStore, shared: Reader) -> None:
    keep(own, fp16(2), METHOD)
    assert push(own, shared) == 0
    assert (scores(shared, "fp16"), scores(shared, "snapkv")) == (1.0, 0.5)
    assert main(["baselines", "verify", "--baselines", shared.root]) == 0


def test_a_second_push_writes_nothing(own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    keep(own, fp16(2))
    push(own, shared)
    assert push(own, shared) == 0
    assert "is up to date" in capsys.readouterr().out


def test_cases_that_only_the_shared_store_has_stay(own: FileStore, shared: Reader, tmp_path: Path) -> None:
    colleague = FileStore(tmp_path / "colleague")
    keep(colleague, fp16(2, task="needle"))
    push(colleague, shared)
    keep(own, fp16(2))
    assert push(own, shared) == 0
    assert (scores(shared, "fp16"), scores(shared, "fp16", "needle")) == (1.0, 1.0)


def test_other_numbers_are_shown_and_not_overwritten(
    own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(own, METHOD)
    push(own, shared)
    keep(own, record([0.0, 0.0]), fp16(2, task="needle"))
    assert push(own, shared) == 1
    said = capsys.readouterr()
    assert "context 0" in said.out
    assert "nothing was written" in said.err
    assert (scores(shared, "snapkv"), scores(shared, "fp16", "needle")) == (0.5, -1.0)


def test_other_numbers_are_replaced_where_that_is_asked_for(own: FileStore, shared: Reader) -> None:
    keep(own, METHOD)
    push(own, shared)
    keep(own, record([0.0, 0.0]))
    assert push(own, shared, "--replace") == 0
    assert scores(shared, "snapkv") == 0.0


def test_a_dry_run_writes_nothing(own: FileStore, shared: Reader) -> None:
    keep(own, METHOD)
    assert push(own, shared, "--dry-run") == 0
    assert scores(shared, "snapkv") == -1.0


def test_a_damaged_store_is_not_published(own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    keep(own, fp16(2), METHOD)
    path = Path(own.path(THEIRS, "snapkv"))
    path.write_text(path.read_text()[:-80])
    assert push(own, shared) == 2
    assert "snapkv.txt is not published" in capsys.readouterr().err
    assert scores(shared, "fp16") == -1.0


def test_a_method_is_not_published_without_the_fp16_record_that_it_was_written_against(
    own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(own, fp16(2), METHOD)
    assert push(own, shared, "--method", "snapkv") == 2
    assert "fp16 record that would not be there" in capsys.readouterr().err
    assert push(own, shared, "--method", "snapkv", "--method", "fp16") == 0


def test_a_method_recorded_above_the_shared_fp16_is_published_alone(own: FileStore, tmp_path: Path) -> None:
    shared = FileStore(tmp_path / "shared")
    keep(shared, fp16(2))
    about = {"kvcheck": "0.1.0", "packages": {}}
    own.record(THEIRS, "snapkv", [METHOD], "new", about, lambda case: shared.get(THEIRS, "fp16", case))
    assert push(own, shared) == 0
    assert scores(shared, "snapkv") == 0.5


def test_a_new_fp16_names_the_shared_records_that_became_stale(
    own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(own, fp16(2), METHOD)
    push(own, shared)
    Path(own.path(THEIRS, "snapkv")).unlink()
    keep(own, record([0.0, 1.0], "fp16"))
    assert push(own, shared, "--replace") == 0
    assert f"stale now: 1 cases in {shared.root}" in capsys.readouterr().out


def test_a_model_of_another_fingerprint_is_not_merged(own: FileStore, shared: Reader) -> None:
    keep(own, METHOD)
    push(own, shared)
    other = FileStore(f"{own.root}-other")
    foreign = record([1.0, 0.0], model="beef")
    other.record(ModelId("theirs", "beef"), "snapkv", [foreign], "new", {})
    with pytest.raises(BaselineError, match="is of another model"):
        publish.plan(other, shared)


@pytest.mark.parametrize(("option", "words"), [("--method=snapkw", "did you mean snapkv"), ("--model=their", "theirs")])
def test_a_choice_that_is_not_there_is_refused(
    option: str, words: str, own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(own, METHOD)
    assert push(own, shared, option) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("written", ["own/", "./own", "."])
def test_a_folder_is_the_same_however_it_is_written(
    own: FileStore, shared: Reader, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(own, fp16(2), METHOD)
    monkeypatch.chdir(own.root if written == "." else tmp_path)
    assert main(["baselines", "verify", "--baselines", written]) == 0
    assert main(["baselines", "push", "--from", written, "--to", shared.root]) == 0
    assert scores(shared, "snapkv") == 0.5


def test_a_folder_may_lie_at_home(own: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FileStore("~/own").root == own.root


def test_a_folder_beside_another_of_a_longer_name_holds_nothing_of_it(
    own: FileStore, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(own, fp16(2))
    short = own.root[:-1]
    Path(short).mkdir()
    assert main(["baselines", "verify", "--baselines", f"{own.root},{short}"]) == 1
    assert f"{short}: there are no baselines" in capsys.readouterr().err


def test_an_empty_store_is_not_published(own: FileStore, shared: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(own, shared) == 2
    assert f"no baselines to publish in {own.root}" in capsys.readouterr().err


def test_a_write_that_fails_names_what_was_written_before(
    own: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(own, fp16(2), METHOD)
    shared = FileStore(tmp_path / "shared")
    merges = publish.plan(own, shared)
    write = FileStore.write

    def full(store: FileStore, path: str, text: str) -> None:
        if "snapkv" in path:
            raise BaselineError(f"cannot write {path}: full")
        write(store, path, text)

    monkeypatch.setattr(FileStore, "write", full)
    with pytest.raises(BaselineError, match=r"snapkv\.txt: full; written before it: .*fp16\.txt"):
        publish.write(shared, merges)
    assert shared.verify() == []
