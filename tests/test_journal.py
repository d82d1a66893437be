"""What a journal holds comes back, whatever moment the process was killed at."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from building import header, record

from kvcheck.core.errors import BaselineError
from kvcheck.core.record import HOLDS, CaseRecord, PropertyRecord, Verdict
from kvcheck.store import journal
from kvcheck.store.journal import Ended, Item, Journal, Kept

PASS = Verdict("budget", "pass", 0.0, 0.0, 0.0, 2.0, 8)


def case(method: str = "snapkv", n: int = 8) -> CaseRecord:
    return record([1.0] * n, method)


def item(one: CaseRecord, kind: str = "kv_case") -> Item:
    return Item(f"t.py::t[{one.case}-{one.method}]", kind, str(one.case), one.method)


def filled(folder: Path) -> CaseRecord:
    """A journal with one case that ended and one of which the first block of contexts is there."""
    done, begun = case(), case("h2o")
    writer = Journal(folder, "main")
    writer.header(header())
    writer.item([item(done), item(begun)])
    writer.start(item(done))
    writer.block(replace(done, samples=done.samples[:4]), done.samples[:4])
    writer.block(done, done.samples[4:])
    writer.end(Ended(str(done.case), "snapkv", {"name": "mini", "fingerprint": "f"}, done, (PASS,)))
    writer.start(item(begun))
    writer.block(replace(begun, samples=begun.samples[:4]), begun.samples[:4])
    writer.close()
    return begun


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    begun = filled(tmp_path)
    kept = journal.read(tmp_path)
    assert kept.header == header()
    assert len(kept.items) == 2
    assert kept.ended[str(begun.case), "snapkv"].verdicts == (PASS,)
    assert kept.records[str(begun.case), "snapkv"] == case()
    assert kept.records[str(begun.case), "h2o"].samples == begun.samples[:4]
    assert list(kept.running) == [(str(begun.case), "h2o")]


def test_a_kill_at_any_byte_loses_only_the_line_that_was_being_written(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "main.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[: at + 1])) for at in range(len(lines))]
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        kept = journal.read(tmp_path)
        blocks = sum(line.startswith(b"block") and end <= cut for line, end in zip(lines, ends, strict=True))
        assert sum(len(one.samples) for one in kept.records.values()) == 4 * blocks


def test_a_damaged_line_is_refused_by_file_and_line(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "main.jsonl"
    path.write_text(path.read_text().replace('"score":1.0', '"score":"x"', 1))
    with pytest.raises(BaselineError, match=r"main\.jsonl, line 5 is damaged"):
        journal.read(tmp_path)


def test_files_of_several_workers_are_one_run(tmp_path: Path) -> None:
    for at, name in enumerate(("gw0", "gw1")):
        one = case(f"m{at}")
        Journal(tmp_path, name).block(one, one.samples)
    assert {name for _, name in journal.read(tmp_path).records} == {"m0", "m1"}


def test_a_new_run_takes_over_what_an_earlier_one_has(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    filled(journal.folder_of(path))
    before = journal.found(path)
    journal.begin(journal.folder_of(path), before)
    assert journal.found(path) == replace(before, items={}, running={}) if before is not None else False


def test_a_run_that_got_nowhere_does_not_hide_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    begun = filled(journal.folder_of(path))
    journal.begin(journal.folder_of(path), None)
    Journal(journal.folder_of(path), "main").item([item(begun)])
    journal.begin(journal.folder_of(path), None)
    kept = journal.found(path)
    assert kept is not None
    assert kept.records[str(begun.case), "h2o"].samples == begun.samples[:4]
    journal.drop(journal.folder_of(path))
    assert journal.found(path) is None
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Journal(tmp_path, "main")
    writer.header(header())
    before = writer.path.read_bytes()
    real = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) > 10:
            return real(handle, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(BaselineError, match="No space left"):
        writer.block(case(), case().samples)
    monkeypatch.undo()
    assert writer.path.read_bytes() == before
    writer.block(case(), case().samples)
    assert len(journal.read(tmp_path).records) == 1


def test_a_run_and_what_a_journal_keeps_are_two_forms_of_one_thing(tmp_path: Path) -> None:
    begun = filled(tmp_path)
    kept = journal.read(tmp_path)
    kept.properties["p", "snapkv"] = PropertyRecord("p", "snapkv", HOLDS, 3)
    run = kept.run(header())
    assert [one.method for one in run.cases] == ["snapkv"]
    assert [(one.method, len(one.samples)) for one in run.partial] == [("h2o", 4)]
    back = Kept.of_run(run)
    assert back.records == kept.records
    assert set(back.ended) == set(kept.ended)
    assert back.properties == kept.properties
    assert back.without(["h2o"]).records.keys() == {(str(begun.case), "snapkv")}
