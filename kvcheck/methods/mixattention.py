"""MixAttention: sliding windows, and keys and values shared between layers. arXiv 2409.15012 (no official code)."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from safetensors.torch import load_file

from kvcheck.cache import kernels
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.paths import bundle

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

WEIGHTS = "model.safetensors"
SHIPPED = {"mini": "mini_mix"}
FILE = "mix.json"


@dataclass(frozen=True)
class Layout:
    """kinds: per layer the producer whose keys and values it reads, "s" behind it for a sliding window: "0s", "1", "1",
    "0s". window: W, tokens that a sliding layer sees, the newest one among them.
    """

    kinds: tuple[str, ...]
    window: int

    def __post_init__(self) -> None:
        """Raise SpecError where a layer reads a later layer, one that makes nothing, or one of the other kind."""
        for index in range(len(self.kinds)):
            producer = self.producer(index)
            if producer > index or self.producer(producer) != producer or self.slides(producer) != self.slides(index):
                raise SpecError(
                    f"layer {index} cannot read layer {producer} in the layout {' '.join(self.kinds)}",
                    "a layer reads itself or an earlier one that reads itself, of the same kind: 0s 1 1 0s",
                )
        if self.window < 1:
            raise SpecError(f"a window of {self.window} tokens", "give 1 or more")

    def producer(self, index: int) -> int:
        """The layer whose keys and values layer `index` reads."""
        return int(self.kinds[index].rstrip("s"))

    def slides(self, index: int) -> bool:
        """Whether layer `index` sees a window only."""
        return self.kinds[index].endswith("s")

    def makes(self, index: int) -> bool:
        """Whether layer `index` makes keys and values of its own."""
        return self.producer(index) == index

    def last_reader(self, index: int) -> int:
        """The last layer that reads what layer `index` reads."""
        return max(at for at in range(len(self.kinds)) if self.producer(at) == self.producer(index))

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """From mix.json in a folder of weights. Raises SpecError."""
        try:
            found = json.loads((folder / FILE).read_text("utf-8"))
            return cls(tuple(str(kind) for kind in found["layers"]), int(found["window"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"no layout of MixAttention in {folder / FILE}: {error}", "give the folder of its weights"
            ) from error

    def write(self, folder: Path) -> None:
        """As mix.json."""
        text = json.dumps({"layers": list(self.kinds), "window": self.window}, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class MixAttention(Method):
    """A model of another architecture: some layers see a window, some read the keys and values of an earlier layer.

    It is trained, not switched on: weights is a folder with model.safetensors (the weights of the model under test,
    trained on in this architecture) and mix.json (the layout). Empty: those shipped for the embedded model, where
    layers 0 and 3 see a window of 128 tokens and share the keys and values of layer 0, and layers 1 and 2 see
    everything and share those of layer 1.

    A layer that reads another one's keys and values makes none: it stores nothing, and adds nothing. A sliding layer
    holds the newest W tokens; the newest one sees itself and W - 1 before it. Keys are shared post-RoPE, at their
    positions, so nothing is rotated again.

    Bytes: 2·B·G·d·2·(F·n + S·min(n, W)) after n tokens, for F and S layers that make keys and values and see
    everything, or a window. Errors: SpecError for a folder without weights or layout, MethodUnsupported for a model
    that the weights are not of.
    Differences from the paper: trained on from the weights of the full model, with the projections of layers that make
    no keys and values left in the file, unused; the layout is ours, for four layers.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="a variant of the model with sliding windows, and keys and values shared between layers",
        stage=Stage.ARCHITECTURE,
        paper="arXiv 2409.15012",
        formula="2·B·G·d·2·(F·n + S·min(n, W))",
        refuses="any model but the one that its weights were trained from",
        verbatim=False,  # the keys and values of other weights
        evicts_in_decode=True,  # what leaves the window
        shares_prefill=False,
        variant="trained on from the embedded model; layout 0s 1 1 0s, window 128",
        cross_head="it is a model of its own, which is not shared out",
    )

    weights: str = ""

    @property
    def folder(self) -> Path:
        """Where weights and layout lie."""
        return Path(self.weights).expanduser() if self.weights else bundle("fixtures") / SHIPPED["mini"]

    @property
    def layout(self) -> Layout:
        """Read once per folder. Raises SpecError."""
        return _layout(self.folder)

    def check(self, shape: ModelShape) -> None:
        """The layout must be of as many layers."""
        if len(self.layout.kinds) != shape.layers:
            raise MethodUnsupported(
                f"mixattention: the weights in {self.folder} are of {len(self.layout.kinds)} layers, the model has "
                f"{shape.layers}",
                f"give weights trained from this model: {option('methods')}=mixattention:weights=FOLDER",
            )

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """A copy of the model with the weights of its own."""
        if not self.weights and loaded.name not in SHIPPED:
            raise MethodUnsupported(
                f"mixattention is another architecture; no weights trained for it are known for {loaded.name}",
                f"give them: {option('methods')}=mixattention:weights=FOLDER",
            )
        return MixRunner(self, loaded)

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> MixCache:
        """A cache whose layers know whom they read."""
        cache = MixCache(list(super().build(shape, store_dtype).layers), store_dtype)
        cache.link()
        return cache

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that makes keys and values, or one that reads another's."""
        kind = MadeLayer if self.layout.makes(index) else ReadLayer
        return kind(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Slots that a layer reads; those of a layer that makes none are its producer's."""
        seen, layout = prompt + decoded, self.layout
        return tuple(min(seen, layout.window) if layout.slides(at) else seen for at in range(shape.layers))

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Those of the layers that make keys and values."""
        slots = self.slots(shape, prompt, decoded)
        return sum(slots[at] for at in range(shape.layers) if self.layout.makes(at)) * shape.token_bytes(batch)

    def protected(self, prompt: int) -> frozenset[int]:
        """The window."""
        return frozenset(range(max(0, prompt - self.layout.window), prompt))


@lru_cache(maxsize=4)
def _layout(folder: Path) -> Layout:
    return Layout.read(folder)


class MixLayer(CacheLayer):
    """Attends in the layout; the last layer that reads a window trims it."""

    method: MixAttention

    @property
    def source(self) -> CacheLayer:
        """The layer that holds what this one reads."""
        raise NotImplementedError

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """A sliding layer sees its window. What another layer made may lie on its device."""
        keys, values = keys.to(query.device), values.to(query.device)
        if not self.method.layout.slides(self.index):
            return super().attention(query, keys, values, rows)
        mask = kernels.visible(query.shape[2], keys.shape[2], self.method.layout.window, query.device)
        return kernels.attend_masked(query, keys, values, mask, self.scaling, self.softmax)

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt is in: keep the window."""
        if self.over:
            self.source.without(0, self.over)

    def step(self, query: torch.Tensor) -> None:
        """More has come: the window moves on."""
        if self.over:
            self.source.slide(0, self.over)

    @property
    def over(self) -> int:
        """Slots that have left the window, once all its readers have read; 0 before."""
        layout = self.method.layout
        last = layout.slides(self.index) and layout.last_reader(self.index) == self.index
        return max(0, self.source.stored - layout.window) if last else 0


class MadeLayer(MixLayer):
    """Makes keys and values, as any layer."""

    @property
    def source(self) -> CacheLayer:
        """Itself."""
        return self


class ReadLayer(MixLayer):
    """Makes none and reads another layer's."""

    producer: CacheLayer

    @property
    def source(self) -> CacheLayer:
        """The layer that it reads."""
        return self.producer

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Nothing: what it would make is not used."""

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The producer's."""
        return self.producer.read(rows, dtype)

    @property
    def stored(self) -> int:
        """The producer's slots."""
        return self.producer.stored

    @property
    def positions(self) -> torch.Tensor:
        """The producer's."""
        return self.producer.positions


class MixCache(KVCache):
    """Layers that read each other."""

    def link(self) -> None:
        """Tell every layer whom it reads; after every copy."""
        for layer in self.layers:
            if isinstance(layer, ReadLayer):
                layer.producer = self.layers[layer.method.layout.producer(layer.index)]

    def select(self, rows: Sequence[int] | torch.Tensor) -> MixCache:
        """Copies of these rows, that read the copies."""
        for layer in self.layers:
            layer.__dict__.pop("producer", None)
        clone = cast(MixCache, super().select(rows))
        self.link()
        clone.link()
        return clone


class MixRunner(MethodRunner):
    """The model under test with other weights."""

    def __init__(self, method: MixAttention, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        method.check(self.shape)
        file = method.folder / WEIGHTS
        if not file.is_file():
            raise SpecError(f"no weights of MixAttention: {file} is missing", "give the folder: weights=FOLDER")
        self.model = copy.deepcopy(loaded.model)
        state = load_file(file)
        own = self.model.state_dict()
        wrong = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
        if wrong:
            raise MethodUnsupported(
                f"mixattention: the weights in {file} are of another model ({wrong[0]} does not fit)",
                "give weights trained from this model: weights=FOLDER",
            )
        self.model.load_state_dict(state, strict=False)


METHOD = MixAttention
