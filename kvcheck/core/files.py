"""Writing files so that nothing is lost, and names that every file system takes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvcheck.core.errors import BaselineError

LOCK = ".recording.lock"
WAIT = 60.0
"""Seconds that a writer waits for others."""

_LONGEST = 100
PROOF = 1 << 16
"""Bytes that a folder must take to be called writable: a full disk makes files, and puts nothing into them."""


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


def write_atomically(path: str, content: str | bytes, last: Callable[[], None] = lambda: None) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed over it.

    content: text is written in UTF-8, its line breaks as they are. last: called right before it is renamed; what it
    raises is raised, with the old file as it was. Raises BaselineError (read-only, full, not permitted) with the old
    file as it was and nothing left behind.
    """
    folder, temporary = os.path.dirname(path) or ".", ""
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        last()
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, UnicodeEncodeError):
            raise BaselineError(
                f"cannot write {path}: half a character: {error}", "the old file is as it was"
            ) from error
        if isinstance(error, OSError):
            hint = "the old file is as it was; free or unlock the disk, or name another place"
            raise BaselineError(f"cannot write {path}: {error.strerror or error}", hint) from error
        raise
    with suppress(OSError):
        _sync_folder(folder)


def expect_file(path: str | Path) -> None:
    """Raise BaselineError where no file of this name can be written, see `expect_writable`."""
    try:
        found = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        found = stat.S_IFREG
    except (OSError, ValueError) as error:  # a name that is too long, or no name
        raise BaselineError(f"{path} cannot be written: {error}", "name another place") from error
    if stat.S_ISDIR(found):
        raise BaselineError(f"{path} is a folder", "name a file")
    if not stat.S_ISREG(found):
        raise BaselineError(f"{path} is no plain file", "name a file that can be replaced")
    expect_writable(os.path.dirname(path) or ".", str(path))


def expect_writable(folder: str, named: str = "") -> None:
    """Raise BaselineError where no file can be written below a folder, which need not be there yet. Leaves nothing.

    named: what the message names, in place of the folder.
    """
    try:
        at = Path(folder).absolute()
        while not at.exists():
            at = at.parent
        with tempfile.TemporaryFile(dir=at) as file:
            file.write(b"\0" * PROOF)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BaselineError(
            f"{named or folder} cannot be written: {error.strerror or error}", "unlock it, or name another place"
        ) from error


def expect_plain(path: str | Path) -> os.stat_result:
    """The stat of a plain file. Raises OSError where there is none, or a folder, a pipe or a device in its place."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise OSError(errno.EINVAL, f"{kind} is in the place of the file", str(path))
    return found


@contextmanager
def one_writer(folder: str, wait: float | None = None) -> Iterator[None]:
    """While one process or thread is here, others that come for the same folder wait, WAIT seconds at most, or `wait`.

    The lock is a file of its own that only one can create, so that it holds on file systems without flock, too; one
    that a killed process of this machine has left is taken over. Raises BaselineError where it cannot be had.
    """
    from filelock import SoftFileLock, Timeout

    lock, wait = os.path.join(folder, LOCK), WAIT if wait is None else wait
    try:
        os.makedirs(folder, exist_ok=True)
        held = SoftFileLock(lock, timeout=wait)
        held.acquire()
    except Timeout as error:
        raise BaselineError(
            f"nothing was written to {folder}: another process has held {lock} for {wait:g} s",
            "wait for it and try again; where nobody records there any more, remove that file",
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BaselineError(f"cannot write {folder}: {reason}", "unlock it, or name another place") from error
    try:
        yield
    finally:
        held.release()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While one process or thread is here, no other one comes here for the same file, on file systems that know locks.

    Who dies lets go of it. Raises BaselineError where somebody has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BaselineError(
            f"another process writes {path} now", "wait for it or end it, or name another file"
        ) from error
    except NotImplementedError:  # no locks here
        yield
        return
    except OSError as error:
        raise BaselineError(
            f"{path} cannot be written: {error.strerror or error}", "unlock it, or name another place"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)  # while it is held: nobody else's is removed
        lock.release()


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
