"""Stores of baselines: where recorded runs lie, how they are read, and how recording touches them.

    <root>/<model name>/<method>.txt        one file per method and model; fp16.txt is the full cache

What a store is stands in reader.py; folders are in file_store.py, addresses in remote.py, publishing in publish.py; the
text of a file is described in text.py, all of it in docs/reference/baselines.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from kvcheck.core.errors import BaselineError
from kvcheck.core.paths import bundle, user_baselines
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.store.file_store import FileStore
from kvcheck.store.reader import VERBS, Base, Changes, Entry, Reader, Reading, Recording, Store
from kvcheck.store.remote import RemoteStore
from kvcheck.store.text import ModelId, StoredCase, base_digest, encode

__all__ = [
    "VERBS",
    "Changes",
    "Entry",
    "FileStore",
    "Layered",
    "ModelId",
    "RemoteStore",
    "Store",
    "open_place",
    "open_store",
    "places",
    "stored_fp16",
]


class Layered(Store):
    """Several stores, the first one that has a case wins; recording goes to the first."""

    def __init__(self, *stores: Store) -> None:
        if not stores:
            raise ValueError("no stores")
        self.stores = stores
        self.writable, self.root = stores[0].writable, stores[0].root

    def path(self, model: ModelId, method: str) -> str:
        """The file that recording writes."""
        return self.stores[0].path(model, method)

    def expect_room(self) -> None:
        """Raise BaselineError where the first store takes no records."""
        self.stores[0].expect_room()

    def source(self, model: ModelId, method: str, case: CaseId) -> str:
        """The file that `get` reads this case from; "" when no store has it."""
        return next(filter(None, (store.source(model, method, case) for store in self.stores)), "")

    def raw(self, model: ModelId, method: str, case: CaseId) -> StoredCase | None:
        """The case as it stands in the first file that has it."""
        found = (store.raw(model, method, case) for store in self.stores)
        return next((one for one in found if one is not None), None)

    def base(self, model: ModelId, case: CaseId, digest: str) -> CaseRecord | None:
        """The fp16 record of a case with this digest from any of the stores, or the first that there is."""
        known = [one for store in self.stores if (one := store.get(model, "fp16", case)) is not None]
        fitting = [one for one in known if base_digest(one) == digest]
        return next(iter(fitting or known), None)

    def _record(self, recording: Recording) -> Changes:
        """Into the first store's file. What a later store holds is not "new" nor, if equal, "changed"."""
        wanted = [record for record in recording.records if self._is_wanted(record, recording)]
        return self.stores[0].record(*recording._replace(records=wanted))

    def _is_wanted(self, record: CaseRecord, recording: Recording) -> bool:
        model, method, _, verb, _, lookup = recording
        if verb == "all" or self.stores[0].raw(model, method, record.case) is not None:
            return True
        below = self.raw(model, method, record.case)
        return below is None or (verb == "changed" and not below.same_as(encode(record, lookup(record.case))))

    def entries(self) -> list[Entry]:
        """The files of every store."""
        return [entry for store in self.stores for entry in store.entries()]

    def readings(self, base: Base | None = None) -> Iterator[Reading]:
        """The cases of every file, those too that an earlier store hides; a base record is looked for in all stores."""
        for store in self.stores:
            yield from store.readings(base or self.base)


def open_store(uri: str | Path | None = None, rootdir: Path | None = None) -> Store:
    """Where a session reads and records: the places that `uri` names, in order, and below them what ships with kvcheck.

    uri: see `places`; the first place is recorded into, the others are read-only. Without it, recording goes to
    `.kvcheck/baselines` under rootdir; in kvcheck's own checkout, to the shipped folder itself.
    """
    shipped = bundle("baselines")
    if uri is None and rootdir is not None and shipped == rootdir.resolve() / "baselines":
        return FileStore(shipped)
    first, *others = map(open_place, places(uri) if uri is not None else [user_baselines(rootdir or Path.cwd())])
    if isinstance(first, FileStore) and Path(first.root).resolve() == shipped and not others:
        return first
    return Layered(first, *others, FileStore(shipped))


def stored_fp16(store: Store, model: ModelId, records: Iterable[CaseRecord]) -> dict[str, CaseRecord]:
    """The stored fp16 records of these cases, by case key; those that hold fewer contexts were not judged by."""
    cases = {record.case.key: record.case for record in records if record.samples}
    found = {key: store.get(model, "fp16", case) for key, case in cases.items()}
    return {key: one for key, one in found.items() if one is not None and len(one.samples) >= cases[key].n}


def places(uri: str | Path) -> list[str | Path]:
    """The places that a text names, separated by commas, the first one first. A Path is one place."""
    found: list[str | Path] = [uri] if isinstance(uri, Path) else [part.strip() for part in uri.split(",")]
    if "" in found:
        raise BaselineError(f"a place of baselines is empty in {uri!r}", "name a folder or a URL: own,s3://team/kv")
    return found


def open_place(uri: str | Path) -> Reader:
    """The store at a plain path, at file://, or at anything that fsspec reads (that one takes no records)."""
    text = str(uri)
    if "://" not in text:
        return FileStore(text)
    parsed = urlparse(text)
    if parsed.scheme == "file":
        return FileStore(unquote(parsed.path))
    return RemoteStore(text)
