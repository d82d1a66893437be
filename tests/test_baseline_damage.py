"""Baselines that were damaged or forged, their checksum made to fit again: refused by name, and never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import MODEL, fp16, memory, record

from kvcheck.core.errors import BaselineError
from kvcheck.core.record import CaseRecord, LatencyRecord, Weight
from kvcheck.store.baselines import FileStore, Layered, ModelId

MINI = ModelId("mini", MODEL)
ABOUT = {"kvcheck": "0.1.0", "packages": {"torch": "2.13"}}
RAW = {"LONG": "9" * 400, "HUGE": "1e999", "NOTANUMBER": "NaN", "DEEP": "[" * 50_000 + "]" * 50_000}
"""What JSON cannot be made to write."""
EVIL = (-1, -0.5, "x", None, True, [], {}, [[1]], *RAW)
WORDS = ("", "-1", "x", "1e999", "9" * 400, "nan", "٣", "1,2", "0.5,0.5", "[1]", "01", "-")
HARMLESS = ("kvcheck", "packages", "answers", "stopped", "not_measured", "switches", "subtask")
"""Where any text is as good as another, or is looked at by grading the answers again."""

PLAUSIBLE = (
    "model: (1,)",
    "case at",
    "column",
    "memory: ('memory', 'gone')",
    "memory: ('memory', 'declared', 'gone')",
    "latency: ('latency'",
)
"""What no reader can tell from a measurement: another fingerprint or task, a right number in the place of a right one
(grading again tells scores), a part that need not be there, whether a method has a formula of its bytes.
"""


def weighed(mine: CaseRecord) -> CaseRecord:
    """The record with what each of its contexts held."""
    samples = tuple(replace(one, weight=Weight(500 + 2 * at, 50.5)) for at, one in enumerate(mine.samples))
    held = replace(memory(501, 50.5), declared=False)
    return replace(mine, samples=samples, memory=held)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """fp16, and a method that is written against it, with bytes per context, latency and all that a case can have."""
    found = FileStore(tmp_path / "own")
    mine = weighed(record([1.0, 0.0], nll=0.5))
    mine = replace(
        mine,
        latency=(LatencyRecord("ttft", 1024, 0.1, 0.2, 0.5, 0.4, 0.6, 9),),
        not_measured=(("kl", "no"),),
        switches=(("data", "rev"),),
    )
    for one in (fp16(2), mine, record([[0.5, 1.0], [0.25, 0.0]], task="graded"), fp16(2, task="graded")):
        found.record(MINI, one.method, [one], "all", ABOUT)
    return found


def sealed(lines: list[str]) -> str:
    """The text of a file whose digest fits."""
    body = "\n".join(lines) + "\n"
    return f"{body}sha256 {hashlib.sha256(body.encode()).hexdigest()}\n"


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON text, the whole of it too."""
    yield way
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from leaves(item, (*way, key))


def put(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = put(copy[way[0]], way[1:], new)
    return copy


def written(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def edits_of_json(text: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(what was changed, JSON): every value replaced, every key taken away, doubled, and one added."""
    whole = json.loads(text)
    for way in leaves(whole):
        for evil in EVIL:
            yield way, written(put(whole, way, evil))
        if way and isinstance(way[-1], str):
            inside = whole
            for step in way[:-1]:
                inside = inside[step]
            yield (*way, "gone"), written(put(whole, way[:-1], {k: v for k, v in inside.items() if k != way[-1]}))
    if isinstance(whole, dict):
        yield ("added",), written({**whole, "added": 1})
        key = next(iter(whole), "a")
        yield ("doubled",), text[:-1] + f'{"," if whole else ""}"{key}":1,"{key}":1}}'


def edits(text: str) -> Iterator[tuple[str, str]]:
    """(what was changed, text of the file): each line gone, doubled, swapped with the next, each field replaced."""
    lines = text.split("\n")[:-2]
    for at, line in enumerate(lines):
        yield f"line {at} gone", sealed(lines[:at] + lines[at + 1 :])
        yield f"line {at} doubled", sealed([*lines[:at], line, line, *lines[at + 1 :]])
        if at + 1 < len(lines) and lines[at + 1] != line:
            yield f"line {at} swapped", sealed([*lines[:at], lines[at + 1], line, *lines[at + 2 :]])
        head, mark, rest = line.partition(": ") if at in range(1, 5) else line.partition(" ")
        if at in range(1, 5) or head == "meta":
            for way, new in edits_of_json(rest):
                what = head if head != "meta" else next((str(step) for step in way), "meta")
                yield f"{what}: {way} at line {at}", sealed([*lines[:at], f"{head}{mark}{new}", *lines[at + 1 :]])
        elif head == "case":
            for word in WORDS:
                for key in ("kv", "graded", "v1", "single", "1024", "seed=0", "n=2"):
                    if key in rest:
                        new = rest.replace(key, word if "=" not in key else f"{key[:-1]}{word}")
                        yield f"case at line {at}", sealed([*lines[:at], f"case {new}", *lines[at + 1 :]])
        elif line and at > 4:
            columns, brace, extra = line.partition("{")
            parts = columns.split(" ")
            for column, _ in enumerate(parts):
                for word in WORDS:
                    new = " ".join([*parts[:column], word, *parts[column + 1 :]]) + brace + extra
                    if new != line:
                        yield f"column {column} of line {at}: {word!r}", sealed([*lines[:at], new, *lines[at + 1 :]])
            for way, new in edits_of_json(brace + extra) if brace else ():
                what = next((str(step) for step in way), "JSON")
                yield f"{what}: {way} at line {at}", sealed([*lines[:at], columns + new, *lines[at + 1 :]])


@pytest.mark.parametrize("method", ["fp16", "snapkv"])
def test_a_field_that_was_edited_is_refused_by_name_though_the_digest_fits(store: FileStore, method: str) -> None:
    path, accepted, tried = Path(store.path(MINI, method)), [], 0
    good = path.read_text()
    for what, text in edits(good):
        if text == good:
            continue
        tried += 1
        path.write_text(text)
        found = FileStore(store.root).verify()
        assert all(problem and name.endswith(".txt") for name, problem in found)
        FileStore(store.root).entries()
        if not any(name == str(path) for name, _ in found):
            accepted.append(what)
    assert tried > 1000
    assert [what for what in accepted if not what.startswith((*HARMLESS, *PLAUSIBLE))] == []
    assert len(accepted) < tried / 10


def test_a_file_cut_at_any_line_or_byte_is_refused_by_name(store: FileStore) -> None:
    path = Path(store.path(MINI, "snapkv"))
    whole, chance = path.read_bytes(), random.Random(0)
    at_lines = [at + 1 for at, byte in enumerate(whole[:-1]) if byte == 10]
    for at in [0, *at_lines, *chance.sample(range(len(whole) - 1), 50)]:
        path.write_bytes(whole[:at])
        assert [name for name, _ in FileStore(store.root).verify()] == [str(path)]


def test_a_flipped_byte_is_refused_by_name(store: FileStore) -> None:
    path = Path(store.path(MINI, "snapkv"))
    whole, chance = path.read_bytes(), random.Random(0)
    for at in chance.sample(range(len(whole)), 200):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(flipped))
        assert [name for name, _ in FileStore(store.root).verify()] == [str(path)]


def test_a_case_that_a_store_below_hides_is_checked_too(store: FileStore, tmp_path: Path) -> None:
    path = Path(store.path(MINI, "snapkv"))
    above = FileStore(tmp_path / "above")
    for one in (fp16(2), record([1.0, 0.0])):
        above.record(MINI, one.method, [one], "all", ABOUT)
    path.write_text(sealed(path.read_text().replace('"kv_bytes": 501', '"kv_bytes": "x"').split("\n")[:-2]))
    assert [name for name, _ in Layered(above, store).verify()] == [str(path)]


class TestWhatIsNoFile:
    """A link that leads nowhere, a folder, a pipe: refused by name, and never "no baseline"."""

    @pytest.fixture
    def path(self, store: FileStore) -> Path:
        found = Path(store.path(MINI, "snapkv"))
        found.unlink()
        return found

    def refused(self, store: FileStore, path: Path, words: str) -> None:
        with pytest.raises(BaselineError, match=words) as caught:
            FileStore(store.root).get(MINI, "snapkv", fp16(2).case)
        assert str(path) in caught.value.message
        with pytest.raises(BaselineError, match=words):
            FileStore(store.root).record(MINI, "snapkv", [record([1.0, 0.0])], "all", ABOUT)

    def test_a_link_that_leads_nowhere(self, store: FileStore, path: Path) -> None:
        path.symlink_to(path.with_name("gone.txt"))
        self.refused(store, path, "a link that leads nowhere")
        assert [name for name, _ in store.verify()] == [str(path)]
        assert path.is_symlink()

    def test_a_link_to_a_file_is_read(self, store: FileStore, path: Path, tmp_path: Path) -> None:
        store.record(MINI, "snapkv", [record([1.0, 0.0])], "all", ABOUT)
        path.rename(tmp_path / "elsewhere.txt")
        path.symlink_to(tmp_path / "elsewhere.txt")
        assert FileStore(store.root).get(MINI, "snapkv", fp16(2).case) == record([1.0, 0.0])

    def test_a_link_around_in_a_ring(self, store: FileStore, path: Path) -> None:
        path.symlink_to(path)
        self.refused(store, path, "cannot be read|leads nowhere")

    def test_a_folder(self, store: FileStore, path: Path) -> None:
        path.mkdir()
        self.refused(store, path, "a folder is in the place of the file")
        assert [name for name, _ in store.verify()] == [str(path)]

    def test_a_pipe_is_not_waited_for(self, store: FileStore, path: Path) -> None:
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes here")
        os.mkfifo(path)
        self.refused(store, path, "a pipe or a device is in the place of the file")
        assert [name for name, _ in store.verify()] == [str(path)]

    def test_a_file_that_may_not_be_read(self, store: FileStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text("")

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(FileStore, "_read", staticmethod(denied))
        self.refused(store, path, "cannot be read: .*Permission denied")

    def test_the_folder_of_a_model_that_leads_nowhere(self, store: FileStore, path: Path) -> None:
        folder = path.parent.rename(path.parent.with_name("moved"))
        path.parent.symlink_to(path.parent.with_name("gone"))
        with pytest.raises(BaselineError, match="a link that leads nowhere"):
            FileStore(store.root).get(MINI, "snapkv", fp16(2).case)
        with pytest.raises(BaselineError, match=r"leads nowhere|cannot be listed"):
            FileStore(store.root).verify()
        assert folder.is_dir()

    def test_a_file_in_the_place_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("")
        with pytest.raises(BaselineError, match="no folder"):
            FileStore(tmp_path / "own").get(MINI, "snapkv", fp16(2).case)
        with pytest.raises(BaselineError, match="cannot be listed"):
            FileStore(tmp_path / "own").verify()

    def test_a_folder_that_may_not_be_listed(self, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "listdir", denied)
        with pytest.raises(BaselineError, match="cannot be listed"):
            store.verify()
