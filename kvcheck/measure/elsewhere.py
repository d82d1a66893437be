"""What a prompt leaves behind outside of its cache, and that counts as held: a method may keep it anywhere.

Looked at before and after a prompt is the state that a method's code can reach by name: globals and classes of the
modules that it is written in and of those that they use, its runner, the modules of the model, and shared memory. What
is there once (tables, an import, what is made at first use) is no growth; what every prompt adds or replaces is.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType

import torch

from kvcheck.measure.memory import KNOWN, Key, Piece, parts_of_models, pieces

SHM = Path("/dev/shm")
MAPS = Path("/proc/self/maps")
_DEVICES = ("/dev/nvidia", "/dev/dri")
_INSTALLED = {"site-packages", "dist-packages"}
_IMPORTED = ("__loader__", "__spec__")
"""What the import leaves in a module. The loader of a test file or a conftest.py leads to all that pytest has."""


@dataclass(frozen=True)
class Census:
    """What could be reached at one moment: bytes by what names the memory.

    alive: keeps what was found, so that no name is given out again.
    """

    sizes: dict[Key, int]
    alive: list[object] = field(repr=False)

    def growth(self, before: Census, cache: object) -> int:
        """Bytes that are new or grew since, those left out that the cache itself reaches."""
        counted = {piece.key for piece in pieces(cache)}
        more = {key: size - before.sizes.get(key, 0) for key, size in self.sizes.items() if key not in counted}
        return sum(size for size in more.values() if size > 0)


def census(model: torch.nn.Module, owners: Iterable[object], modules: Iterable[ModuleType]) -> Census:
    """Look at everything once. owners: the runner and its method. modules: see `written_in`."""
    sizes: dict[Key, int] = {}
    alive: list[object] = []
    left_out = parts_of_models()
    for root in _roots(model, owners, modules):
        for piece in _safely(root, left_out):
            sizes[piece.key] = max(piece.size - piece.spare, sizes.get(piece.key, 0))
            alive += [piece.tensor, piece.source]
    return Census(sizes | _shared_files(), alive)


def written_in(objects: Iterable[object]) -> list[ModuleType]:
    """The modules that the classes of these are written in and those that they use; packages of others are left out."""
    todo = [kind.__module__ for one in objects for kind in type(one).__mro__]
    own = {name.partition(".")[0] for name in todo} - KNOWN
    found: dict[str, ModuleType] = {}
    while todo:
        name = todo.pop()
        module, top = sys.modules.get(name), name.partition(".")[0]
        if module is None or name in found or top in KNOWN:
            continue
        if top not in own and _INSTALLED & set(Path(getattr(module, "__file__", None) or "").parts):
            continue
        found[name] = module
        for value in list(vars(module).values()):
            if isinstance(value, ModuleType):
                todo.append(value.__name__)
            elif isinstance(value, (FunctionType, type)):
                todo.append(value.__module__ or "")
    return list(found.values())


def mapped() -> int:
    """Bytes of shared memory that this process may write to, devices left out; 0 where that cannot be told."""
    total = 0
    with suppress(OSError):
        for line in MAPS.read_text().splitlines():
            where, mode, *_, path = [*line.split(maxsplit=5), ""][:6]
            if mode == "rw-s" and not path.startswith(_DEVICES):
                start, end = (int(each, 16) for each in where.split("-"))
                total += end - start
    return total


def _roots(model: torch.nn.Module, owners: Iterable[object], modules: Iterable[ModuleType]) -> Iterator[object]:
    """Where to begin: models, modules and classes as dictionaries, since nobody enters them from a cache."""
    yield from owners
    for part in model.modules():
        yield dict(vars(part))
    for module in modules:
        yield {name: value for name, value in vars(module).items() if name not in _IMPORTED}
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield dict(vars(value))


def _safely(root: object, left_out: set[int]) -> Iterator[Piece]:
    """The pieces of one root, itself left out; of one with parts that cannot be looked at, what came before."""
    with suppress(Exception):
        yield from (piece for piece in pieces(root, left_out) if piece.source is not root)


def _shared_files() -> dict[Key, int]:
    """Files of this user in shared memory, which need not be open any more."""
    found: dict[Key, int] = {}
    with suppress(OSError):
        for entry in os.scandir(SHM):
            with suppress(OSError):
                at = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(at.st_mode) and at.st_uid == os.getuid():
                    found["file", at.st_ino] = at.st_size
    return found
