"""Save and load: the cache of a prompt goes to disk and comes back. As SCBench's KV cache loading, arXiv 2412.10319."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from kvcheck.cache import disk
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core import env


@dataclass(frozen=True)
class SaveLoad(KeepsAll):
    """The full cache, which after the prompt is written to safetensors files, one per layer, dropped, and read back.

    folder: where the files are written and stay (an existing or new folder); empty: a temporary folder, and each file
    is deleted once it has been read. What comes back is bit-equal: keys, values, positions and the number of tokens.

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache. Errors: KvcheckError for a file that is damaged or of
    another cache.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="writes the cache of the prompt to disk, drops it, and reads it back",
        stage=Stage.LOADING,
        paper="arXiv 2412.10319",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        variant="safetensors, one file per layer and prompt",
        lossless=Lossless.ALWAYS,
        latents="writes and reads them",
    )

    folder: str = ""

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that goes through a file once, after the prompt."""
        return SaveLoadLayer(shape, index, self)


class SaveLoadLayer(CacheLayer):
    """Goes through a file."""

    method: SaveLoad

    def compress(self, queries: torch.Tensor) -> None:
        """Write, drop, read."""
        folder, number, device = self.method.folder, next(_NUMBERS), self.keys.device
        part = f"-part-{env.rank()}" if env.processes() > 1 else ""  # of the heads, which lie in several processes
        name = f"prompt-{number}-layer-{self.index}{part}.safetensors"
        path = (Path(folder).expanduser() if folder else _temporary()) / name
        about = {"layer": str(self.index), "tokens": str(self.seen), "shape": str(tuple(self.keys.shape))}
        disk.write(path, self.keys, self.values, about)
        self.k = self.v = None
        keys, values = disk.read(path, about, device)
        self.k, self.v = GrowableBuffer(keys), GrowableBuffer(values)
        if not folder:
            path.unlink()


_NUMBERS = itertools.count()


@lru_cache(maxsize=1)
def _temporary() -> Path:
    """A folder that goes with the process."""
    _temporary.folder = tempfile.TemporaryDirectory(prefix="kvcheck-")  # type: ignore[attr-defined]
    return Path(_temporary.folder.name)  # type: ignore[attr-defined]


METHOD = SaveLoad
