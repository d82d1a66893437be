"""Baselines at an address that fsspec knows (s3://, gs://, hf://, https://, memory://, …): read, and published to."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from kvcheck.core.errors import BaselineError, did_you_mean
from kvcheck.store.reader import Reader

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of kvcheck that brings the driver of a protocol."""

WHOLE = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf", "memory"))
"""Protocols whose files appear when their upload (hf: its commit) is complete, and whose folders are only names."""


class RemoteStore(Reader):
    """A store at an address. Recording is refused: `kvcheck baselines push` writes there, through `write`.

    Each file is read once. fsspec is imported on first use. Raises BaselineError for an address that nobody opens.
    """

    def __init__(self, uri: str) -> None:
        self._fs, self._inner = _open(uri)
        self._absent: set[str] = set()
        super().__init__(uri.rstrip("/"))

    def _at(self, path: str) -> str:
        """A path of this store as the file system calls it."""
        return f"{self._inner}{path.removeprefix(self.root)}"

    def _text(self, path: str) -> tuple[object, str] | None:
        if path in self._cache:
            return self._cache[path][0], ""
        if path in self._absent:
            return None
        try:
            return "read once", self._fs.cat_file(self._at(path)).decode("utf-8")
        except FileNotFoundError:
            self._absent.add(path)
            return None
        except Exception as error:  # drivers raise what they like
            raise _failed(f"{path} cannot be read", error) from error

    def _paths(self) -> list[str]:
        try:
            found = self._fs.glob(f"{self._inner}/*/*.txt")
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _failed(f"{self.root} cannot be listed", error) from error
        return sorted("/".join([self.root, *str(name).rsplit("/", 2)[1:]]) for name in found)

    def write(self, path: str, text: str) -> None:
        """Put a whole file there, or leave what was. Raises BaselineError.

        Where files do not appear whole of themselves, it is written under another name, read back and moved. In any
        case it is read back at the end. A file system that can do neither is refused.
        """
        at, data = self._at(path), text.encode("utf-8")
        temporary = "" if self._appears_whole() else f"{at.rpartition('/')[0]}/.writing-{uuid.uuid4().hex}.tmp"
        try:
            if temporary:
                self._fs.makedirs(at.rpartition("/")[0], exist_ok=True)
                self._put(temporary, data)
                self._fs.mv(temporary, at)
                self._check(at, data)
            else:
                self._put(at, data)
        except BaseException as error:
            if temporary:
                with suppress(Exception):
                    self._fs.rm_file(temporary)
            if isinstance(error, Exception):
                raise _failed(f"{path} cannot be written", error) from error
            raise
        finally:
            self.forget(path)

    def forget(self, path: str) -> None:
        """Read a file anew when it is asked for again."""
        super().forget(path)
        self._absent.discard(path)
        self._fs.invalidate_cache()

    def _put(self, at: str, data: bytes) -> None:
        self._fs.pipe_file(at, data)
        self._check(at, data)

    def _check(self, at: str, data: bytes) -> None:
        """Raise OSError where the file does not read back as it was written."""
        self._fs.invalidate_cache()
        if self._fs.cat_file(at) != data:
            raise OSError(f"{at} reads back otherwise than it was written")

    def _appears_whole(self) -> bool:
        """Whether a file needs no move to be seen whole or not at all. Raises BaselineError where neither is there."""
        from fsspec import AbstractFileSystem

        names = self._fs.protocol
        if WHOLE.intersection([names] if isinstance(names, str) else names):
            return True
        if type(self._fs).mv is AbstractFileSystem.mv:  # that one copies and deletes: a copy can be seen half-done
            raise BaselineError(
                f"{self.root} cannot be written safely: its file system has no move, so that half a file could be seen",
                "publish to a folder, s3://, gs:// or hf://datasets/OWNER/NAME",
            )
        return False


def _open(uri: str) -> tuple[AbstractFileSystem, str]:
    """(file system, path in it). Raises BaselineError: unknown protocol, missing driver."""
    import fsspec

    protocol = uri.partition("://")[0].rpartition("::")[2]
    try:
        system, inner = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        command = f"pip install 'kvcheck[{extra}]'" if extra else "install the driver that it names"
        raise BaselineError(f"{uri} cannot be opened: {error}", command) from error
    except ValueError as error:
        known = did_you_mean(protocol, fsspec.available_protocols())
        hint = f"give a folder, or a URL that fsspec knows; {known}"
        raise BaselineError(f"{uri} cannot be opened: {error}", hint) from error
    return system, str(inner).rstrip("/")


def _failed(what: str, error: Exception) -> BaselineError:
    if isinstance(error, BaselineError):
        return error
    return BaselineError(f"{what}: {type(error).__name__}: {error}", "check the address, the network and your access")
