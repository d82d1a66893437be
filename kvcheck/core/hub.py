"""What went wrong at the Hugging Face Hub, by the names of errors in the chain of causes: no client is imported."""

from __future__ import annotations

from collections.abc import Iterator

GATED, OFFLINE, GONE = "gated", "offline", "gone"
_OFFLINE = {
    "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout",
    "ReadTimeout", "Timeout", "TimeoutError", "gaierror", "ClientConnectorError", "ProxyError", "NetworkError",
}  # fmt: skip
_GONE = {
    "RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "DatasetNotFoundError",
    "DataFilesNotFoundError", "FileNotFoundError", "DefunctDatasetError", "DisabledRepoError",
}  # fmt: skip


def trouble(error: BaseException) -> str:
    """GATED, OFFLINE (not reached) or GONE (renamed, private, removed); "" for an error of another kind."""
    found = names(error)
    if "GatedRepoError" in found or any("is a gated dataset" in str(one).lower() for one in _chain(error)):
        return GATED
    if found & _OFFLINE:
        return OFFLINE
    return GONE if found & _GONE else ""


def names(error: BaseException) -> set[str]:
    """The names of an error, of its causes, and of the classes that they are made from."""
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
