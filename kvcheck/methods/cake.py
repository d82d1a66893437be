"""Cake: compute the cache from the front while it is loaded from the back. arXiv 2410.03065 (no official code)."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks, disk
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

Layers = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Cake(KeepsAll):
    """A stored prefix is loaded by chunks from its end while its chunks are computed from the start, until they meet.

    Lossless: chunks were stored by the same chunked prefill, so wherever the two workers meet, every bit is the same.
    What is left of the prompt behind the whole chunks is computed over the complete prefix. The prefix is written to a
    temporary folder first, by a prefill of its own, which a run of this method pays for.

    chunk: tokens. computed: "race", the two workers meet where they meet; or a share of the chunks (0.0 to 1.0) that is
    computed, rounded, and the rest loaded.

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache. Errors: SpecError for values out of range,
    KvcheckError for a stored chunk that is damaged.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="computes the cache from the front while loading it from the back",
        stage=Stage.LOADING,
        paper="arXiv 2410.03065",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        shares_prefill=False,
        variant="two workers on one stored prefix in safetensors files; the split does not change a bit",
        lossless=Lossless.ALWAYS,
    )

    chunk: int = 128
    computed: float | str = "race"

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "chunk", self.chunk, 1, 128)
        if isinstance(self.computed, str):
            checks.one_of(self.name(), "computed", self.computed, ("race",))
        else:
            checks.share(self.name(), "computed", self.computed, 0, 1, 0.5)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer."""
        return CacheLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Prefills by both workers."""
        return CakeRunner(self, loaded)

    def cross_head(self) -> str | None:
        """Where the faster of two workers decides, several processes would split a prompt differently."""
        return "what is computed depends on the time that loading takes" if isinstance(self.computed, str) else None


@dataclass
class Split:
    """Hands out chunks from both ends, each once. most: chunks that may be computed, least: that must be."""

    count: int
    least: int
    most: int
    computed: int = 0
    loaded: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def from_front(self) -> int | None:
        """The next chunk to compute, None when they have met."""
        with self.lock:
            if self.computed + self.loaded >= self.count or self.computed >= self.most:
                return None
            self.computed += 1
            return self.computed - 1

    def from_back(self) -> int | None:
        """The next chunk to load, None when they have met."""
        with self.lock:
            if self.computed + self.loaded >= self.count or self.loaded >= self.count - self.least:
                return None
            self.loaded += 1
            return self.count - self.loaded


class CakeRunner(MethodRunner):
    """Stores a prefix, then gets it back by computing and loading.

    split: how the last prefill was shared out. homes: the devices that its layers are on.
    """

    method: Cake
    split: Split | None = None
    homes: Sequence[torch.device] = ()

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Prompts (R, n): whole chunks from both ends, the rest behind them. The last token is always computed."""
        method = self.method
        count = (ids.shape[1] - 1) // method.chunk
        chunks = ids[:, : count * method.chunk].split(method.chunk, dim=1) if count else ()
        given = None if isinstance(method.computed, str) else round(method.computed * count)
        self.split = Split(count, given or 0, count if given is None else given)
        with tempfile.TemporaryDirectory(prefix="kvcheck-cake-") as folder:
            self.homes = self.store(chunks, Path(folder))
            return self.fetch(chunks, ids[:, count * method.chunk :], Path(folder), self.split)

    def store(self, chunks: tuple[torch.Tensor, ...], folder: Path) -> list[torch.device]:
        """Write the chunks of a prefix, computed one after the other -> the device of every layer."""
        cache = self.build()
        with cache.prefilling():
            for number, chunk in enumerate(chunks):
                self.feed(cache, chunk)
                for index, layer in enumerate(cache.layers):
                    new = slice(layer.stored - chunk.shape[1], layer.stored)
                    disk.write(
                        _path(folder, number, index),
                        layer.keys[:, :, new],
                        layer.values[:, :, new],
                        _about(number, index),
                    )
        return [layer.keys.device for layer in cache.layers]

    def fetch(
        self, chunks: tuple[torch.Tensor, ...], rest: torch.Tensor, folder: Path, split: Split
    ) -> tuple[KVCache, torch.Tensor]:
        """Compute from the front and load from the back, then feed what is left of the prompt."""
        cache = self.build()
        with ThreadPoolExecutor(1) as loader, cache.prefilling():
            loading = loader.submit(self._load, folder, split)
            while (number := split.from_front()) is not None:
                self.feed(cache, chunks[number])
                for home in {home for home in self.homes if home.type == "cuda"}:
                    torch.cuda.synchronize(home)  # else the next chunk would be taken before this one is computed
            loaded = loading.result()
            for number in sorted(loaded):
                for layer, (keys, values) in zip(cache.layers, loaded[number], strict=True):
                    layer.store_dtype = keys.dtype
                    layer.write(keys, values)
                    layer.seen += keys.shape[2]
                    layer.is_initialized = True
            logits = self.feed(cache, rest)[:, -1]
        return cache, logits

    def _load(self, folder: Path, split: Split) -> dict[int, Layers]:
        """The chunks that were taken from the back, by number."""
        found = {}
        while (number := split.from_back()) is not None:
            places = enumerate(self.homes)
            found[number] = [disk.read(_path(folder, number, at), _about(number, at), home) for at, home in places]
        return found


def _path(folder: Path, chunk: int, layer: int) -> Path:
    return folder / f"chunk-{chunk}-layer-{layer}.safetensors"


def _about(chunk: int, layer: int) -> dict[str, str]:
    return {"chunk": str(chunk), "layer": str(layer)}


METHOD = Cake
