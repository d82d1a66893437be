"""Reading rows with `datasets`: from the Hub at a pinned revision, or from a local folder, by the same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.core import hub
from kvcheck.core.errors import SpecError
from kvcheck.core.formats import Json
from kvcheck.core.front import option
from kvcheck.tasks.benchmarks.base import DataSet, Row, Source

if TYPE_CHECKING:
    from datasets import Features

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}

_CHANGED = {"CastError", "DatasetGenerationCastError", "ArrowInvalid", "ArrowNotImplementedError", "TypeError"}


class Rows:
    """The rows of one data set, read on demand and kept. Iterating from the start reads nothing twice."""

    def __init__(self, data_set: DataSet, source: Source) -> None:
        self.data_set, self.source = data_set, source
        self._known: list[tuple[int, Row]] = []
        self._stream: Iterator[tuple[int, Row]] | None = None

    def get(self, index: int) -> tuple[int, Row]:
        """(place in the file, row) of the index-th row. Raises SpecError where there are fewer rows, and see `read`."""
        if index < 0 or not self._read(index + 1):
            count, name = len(self._known), self.data_set.name
            raise SpecError(f"{name} has {count} rows, sample {index} was asked for", f"{option('n', count)} at most")
        return self._known[index]

    def all(self) -> list[tuple[int, Row]]:
        """Every row with its place in the file."""
        self._read(None)
        return self._known

    def _read(self, count: int | None) -> bool:
        if self._stream is None:
            self._stream = read(self.data_set, self.source)
        while count is None or len(self._known) < count:
            try:
                found = next(self._stream, None)
            except SpecError:
                self._stream, self._known = None, []  # else the next call would take the broken stream for ended
                raise
            if found is None:
                return False
            self._known.append(found)
        return True


def read(data_set: DataSet, source: Source) -> Iterator[tuple[int, Row]]:
    """(place, row) of every row of a data set, checked. Streams; imports `datasets` when it is called.

    Raises SpecError: no network, gated, renamed or removed, no such local file, a column that is missing or of another
    type, a row without an answer.
    """
    try:
        for place, row in enumerate(_load(data_set, source)):
            if data_set.has(row):
                check(data_set, row, place)
                yield place, row
    except Exception as error:  # one clause: a generator that is open when Python ends no longer finds our classes
        if isinstance(error, SpecError):
            raise
        raise explain(error, data_set, source) from error


def _load(data_set: DataSet, source: Source) -> Iterable[Row]:
    """The streaming data set of `datasets`."""
    from datasets import load_dataset

    path = _local(data_set, source.folder) if source.folder else _remote(data_set)
    if data_set.plain:
        return _plain(path)
    builder = _BUILDERS[Path(path.split("::")[0]).suffix]
    if builder == "text":  # a row is a file
        files = load_dataset(builder, data_files=path, split="train", streaming=True, sample_by="document")
        return files.rename_column("text", "context")
    return load_dataset(builder, data_files=path, split="train", streaming=True, features=_features(data_set))


def _plain(path: str) -> list[Row]:
    """The rows of a JSON list. Raises TypeError for another file."""
    rows = json.loads(Path(path).read_text("utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TypeError("no JSON list of objects")
    return rows


def _features(data_set: DataSet) -> Features | None:
    """Explicit features where a file mixes types; None: `datasets` finds them."""
    if not data_set.strings:
        return None
    from datasets import Features, List, Value

    text = Value("string")
    found = {name.lstrip("*"): List(text) if name[0] == "*" else text for name in data_set.strings}
    return Features({"id": Value("int64"), **found})


def _remote(data_set: DataSet) -> str:
    """The Hub's file as it lies in huggingface_hub's cache, at the pinned revision; fetched where it is not there yet.

    huggingface_hub shows the progress, and goes without a network where it has the file.
    """
    from huggingface_hub import HfApi, snapshot_download

    revision, file = data_set.revision or resolve(data_set.hub), data_set.archive or data_set.file
    folder = Path(snapshot_download(data_set.hub, repo_type="dataset", revision=revision, allow_patterns=[file]))
    if not any(folder.glob(file)):
        HfApi().dataset_info(data_set.hub, revision=revision)  # raises where the Hub cannot be asked
        raise FileNotFoundError(f"{data_set.hub} holds no {file}")
    path = str(folder / file)
    return f"zip://{data_set.file}::{path}" if data_set.archive else path


@cache
def resolve(repository: str) -> str:
    """The sha of a data set's newest revision, the same in one process.

    Where the Hub is not reached, that of the one which was fetched last. Raises what huggingface_hub does.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(repository).sha)
    except Exception as error:
        held = _held(repository) if hub.trouble(error) == hub.OFFLINE else ""
        if held:
            return held
        raise


def _held(repository: str) -> str:
    """The sha of the revision of a data set that was fetched last into huggingface_hub's cache; "" for none."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = [one for one in scan_cache_dir().repos if (one.repo_type, one.repo_id) == ("dataset", repository)]
    except CacheNotFound:
        return ""
    held = [revision for one in found for revision in one.revisions if revision.files]
    return max(held, key=lambda revision: revision.last_modified).commit_hash if held else ""


def local_files(data_set: DataSet) -> tuple[str, ...]:
    """The paths that are looked for in a local folder, relative to it, the first one found is read."""
    names = (*data_set.local, data_set.file)
    plain = [f"{folder}{name}" for folder in (f"{data_set.suite}/", "") for name in names]
    zipped = [f"{folder}{data_set.archive}" for folder in (f"{data_set.suite}/", "") if data_set.archive]
    return tuple(dict.fromkeys([*plain, *zipped]))


def _local(data_set: DataSet, folder: Path) -> str:
    """The local file as `datasets` takes it. Raises SpecError with what was looked for."""
    for name in local_files(data_set):
        found = sorted(folder.glob(name))
        if found:
            path = str(found[0]) if len(found) == 1 else str(folder / name)
            return f"zip://{data_set.file}::{path}" if name.endswith(".zip") else path
    files = " or ".join(local_files(data_set))
    raise SpecError(
        f"{data_set.name}: {folder} holds no {files}", f"put the rows of {data_set.hub} there, or {option('data')} hub"
    )


def revision_of(data_set: DataSet, source: Source) -> str:
    """What identifies the rows: the Hub's sha, or "sha256:" and the digest of the local file. Raises SpecError."""
    if source.folder is None:
        try:
            return data_set.revision or resolve(data_set.hub)
        except Exception as error:
            raise explain(error, data_set, source) from error
    paths = _local(data_set, source.folder).split("::")[-1]
    files = sorted(Path(paths).parent.glob(Path(paths).name))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def check(data_set: DataSet, row: Row, place: int) -> None:
    """Raise SpecError for a row that lacks a column, has one of another type, or has no answer."""
    hint = f"the data set has changed: use the pinned revision, or a local copy of it with {option('data')} PATH"
    for column, kind in data_set.columns.items():
        if column not in row:
            known = ", ".join(row)
            raise SpecError(f"{data_set.name}: row {place} has no column {column!r}; it has {known}", hint)
        value = row[column]
        if value is None and column == data_set.answer:
            raise no_answer(data_set, data_set.row_id(row, place))
        if not isinstance(value, kind):
            found = f"is {type(value).__name__}, not {_words(kind)}"
            raise SpecError(f"{data_set.name}: column {column!r} of row {place} {found}", hint)
    if any(_blank(answer) for answer in _answers(data_set, row)):
        raise no_answer(data_set, data_set.row_id(row, place))


def _blank(answer: Json) -> bool:
    """Whether nothing can be graded against an answer: none, an empty text, or a list of nothing else."""
    if isinstance(answer, (list, tuple)):
        return all(map(_blank, answer))
    return answer is None or (isinstance(answer, str) and not answer.strip())


def no_answer(data_set: DataSet, row: str) -> SpecError:
    """The error of a row without an answer."""
    return SpecError(
        f"{data_set.name}: row {row} has no answer, so nothing can be graded",
        f"remove the row from the local copy, or use the pinned revision with {option('data')} hub",
    )


def _answers(data_set: DataSet, row: Row) -> list[Json]:
    """The answers of a row: of each turn where it has turns."""
    if not data_set.answer:
        return []
    found = row[data_set.answer]
    if data_set.answer != "multi_turns":
        return [found]
    if not found:
        return [None]
    return [turn.get("answer") for turn in found]


def _words(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(one.__name__ for one in kinds)


def explain(error: BaseException, data_set: DataSet, source: Source) -> SpecError:
    """A clear error for what `datasets` and `huggingface_hub` raise, found by the names in the chain of causes."""
    trouble = hub.trouble(error)
    where = f"{data_set.hub} on the Hub" if source.folder is None else f"the local copy of {data_set.hub}"
    last = str(error).strip().splitlines() or [type(error).__name__]
    said = f" ({type(error).__name__}: {last[0][:200]})"
    local = f"or pass a local copy: {option('data')} PATH"
    if trouble == hub.GATED:
        page = f"https://huggingface.co/datasets/{data_set.hub}"
        return SpecError(
            f"{data_set.name}: {where} is gated", f"accept its terms at {page}, then: hf auth login; {local}"
        )
    if trouble == hub.OFFLINE:
        return SpecError(
            f"{data_set.name}: {where} cannot be reached{said}", f"check the network and HF_HUB_OFFLINE, {local}"
        )
    if trouble == hub.GONE:
        return SpecError(
            f"{data_set.name}: {where} was not found at revision {data_set.revision or 'main'}{said}",
            f"it was renamed, moved or removed: look at https://huggingface.co/datasets/{data_set.hub}, {local}",
        )
    if hub.names(error) & _CHANGED:
        return SpecError(
            f"{data_set.name}: the rows of {where} have not the expected columns or are damaged{said}",
            f"expected columns: {', '.join(data_set.columns)}",
        )
    return SpecError(f"{data_set.name}: {where} cannot be read{said}", f"try again, {local}")
