"""Writing files so that nothing is lost, and names that every file system takes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvcheck.errors import BaselineError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LONGEST = 100


def safe_name(text: str) -> str:
    """A file or folder name for any text, the same on every machine; equal names mean equal texts.

    >>> safe_name("snapkv:budget=0.25")
    'snapkv__budget=0.25'
    """
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text.replace(":", "__").replace("/", "--")).lstrip(".") or "_"
    plain = name == text if "__" not in name else (name.replace("__", ":", 1) == text and name.count("__") == 1)
    if plain and "--" not in name and text == text.lower() and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # a folder need not be named in UTF-8
    return f"{name[:_LONGEST]}-{digest[:8]}"


def write_atomically(path: str, text: str) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed over it.

    Raises BaselineError (read-only, full, not permitted) with the old file as it was and nothing left behind.
    """
    folder, temporary = os.path.dirname(path) or ".", ""
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            hint = "the old file is as it was; free or unlock the disk, or name another place"
            raise BaselineError(f"cannot write {path}: {error.strerror or error}", hint) from error
        raise
    with suppress(OSError):
        _sync_folder(folder)


def expect_file(path: str | Path) -> None:
    """Raise BaselineError where no file of this name can be written, see `expect_writable`."""
    if Path(path).is_dir():
        raise BaselineError(f"{path} is a folder", "name a file")
    expect_writable(os.path.dirname(path) or ".")


def expect_writable(folder: str) -> None:
    """Raise BaselineError where no file can be written below a folder, which need not be there yet. Leaves nothing."""
    try:
        at = Path(folder).absolute()
        while not at.exists():
            at = at.parent
        tempfile.TemporaryFile(dir=at).close()
    except OSError as error:
        raise BaselineError(
            f"{folder} cannot be written: {error.strerror or error}", "unlock it, or name another place"
        ) from error


@contextmanager
def one_writer(folder: str) -> Iterator[None]:
    """While one process is here, others that come for the same folder wait. Not on Windows, which has no such lock.

    Raises BaselineError for a folder that cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    except OSError as error:
        raise BaselineError(
            f"cannot write {folder}: {error.strerror or error}", "unlock it, or name another place"
        ) from error
    try:
        if fcntl:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
