"""A batch with a longer neighbour: rows are padded at the left, and the neighbour leaves once its prompt is in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcheck.cache import checks, forward
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.layer import Rows
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class Neighbour(Fp16):
    """The full cache of rows that share their batch with a prompt that is `longer` by that many tokens (32).

    The neighbour is row 0 of the batch. The others are padded at the left to its length; their padding is hidden from
    them, and their positions start behind it. When the prompt is in, the neighbour leaves; the padding of the rest
    stays where it is.

    Bytes: 2·L·B·G·(n + longer)·d·2 after n tokens.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info,
        summary="the full cache in a padded batch",
        stage="loading",
        formula="2·L·B·G·(n + longer)·d·2",
        exceeds="the padding stays",
        shares_prefill=False,
    )

    longer: int = 32

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "longer", self.longer, 0, 32)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Pads, and adds the neighbour."""
        return NeighbourRunner(self, loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The padding, too."""
        return shape.dense_bytes(batch, prompt + decoded + self.longer)


@dataclass(frozen=True)
class NeighbourQuest(Quest):
    """Quest in a padded batch; `longer` as in Neighbour. Pages are counted from the first token that is no padding."""

    info: ClassVar[MethodInfo] = replace(
        Quest.info,
        summary="Quest in a padded batch",
        formula="2·L·B·G·(n + longer + ceil(n/S))·d·2",
        shares_prefill=False,
    )

    longer: int = 32

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The padding, too."""
        return super().kv_bytes(shape, batch, prompt, decoded) + shape.dense_bytes(batch, self.longer)


@used_by(NeighbourQuest)
class NeighbourRunner(MethodRunner):
    """Prefills in a padded batch, and tells the model where every row is."""

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Prompts (R, n), beside a neighbour that leaves behind its prompt."""
        longer: int = self.method.longer  # type: ignore[attr-defined]
        repeats = -(-longer // ids.shape[1])
        before = ids[:1].repeat(1, repeats)[:, :longer]
        neighbour = torch.cat([before, ids[:1]], dim=1)
        filler = getattr(self.model.config, "pad_token_id", None) or 0
        padded = torch.nn.functional.pad(ids, (longer, 0), value=filler)
        cache = self.build()
        self.announce(cache, torch.tensor([0] + [longer] * len(ids), device=ids.device))
        logits = self.feed(cache, torch.cat([neighbour, padded]))[:, -1]
        cache.batch_select_indices(torch.arange(1, len(ids) + 1, device=ids.device))
        return cache, logits[1:]

    def announce(self, cache: KVCache, pads: torch.Tensor) -> None:
        """Tell a cache how much of every row is padding."""
        for layer in cache.layers:
            if isinstance(layer, PadLayer):
                layer.pads, layer.offsets = pads, -pads

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed, with the position of every token."""
        layer = cache.layers[0]
        here = torch.arange(ids.shape[1], device=ids.device)
        before = layer.offsets.unsqueeze(1) if len(layer.offsets) else layer.columns
        positions = (here + before).clamp(min=0).expand(len(ids), -1)
        return forward.feed(self.model, ids, cache, position_ids=positions, logits_to_keep=keep).logits


@used_by(Neighbour)
class PadLayer(CacheLayer):
    """The full cache whose rows start with padding. pads (B,): how many columns of every row that is; offsets (B,): the
    position of every row's next token, below zero within its padding.

    `seen` and slots are those of the longest row; once rows differ no more, those of all of them.
    """

    meta = ("kept", "pads", "offsets")
    pads: torch.Tensor
    offsets: torch.Tensor

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.pads = self.offsets = torch.empty(0, dtype=torch.long)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens, behind those of all rows."""
        self.settle(keys)
        super().write(keys, values)
        self.offsets = self.offsets + keys.shape[2]

    def settle(self, keys: torch.Tensor) -> None:
        """Rows of which nothing was announced have no padding. keys (B, ...): as many rows, on the same device."""
        if not len(self.pads):
            self.pads = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
            self.offsets = torch.full_like(self.pads, self.seen)

    @property
    def columns(self) -> int:
        """Columns that are written, padding included."""
        return 0 if self.k is None else self.k.length

    @property
    def stored(self) -> int:
        """Slots per kv head."""
        return int(self.offsets.max()) if len(self.offsets) else self.columns

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (b, G, slots, d) of these rows."""
        return self.from_column(self.columns - self.stored, rows, dtype)

    def from_column(self, first: int, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (b, G, columns - first, d) of these rows."""
        keys, values = (buffer.used[rows, :, first:].to(dtype) for buffer in self._buffers())
        return keys, values

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attention in which every row sees its own tokens; a row of padding sees itself."""
        pads = self.pads[rows][: len(query)]
        first = int(pads.min())
        keys, values = self.from_column(first, rows, query.dtype)
        if bool((pads == first).all()):
            return self.attention(query, keys, values, rows)
        count, columns = query.shape[2], keys.shape[2]
        here = torch.arange(columns, device=keys.device)
        newest = here[columns - count :].unsqueeze(1)
        own = here >= (pads - first).unsqueeze(1)
        mask = ((here <= newest) & own.unsqueeze(1)) | (here == newest)
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask.unsqueeze(1), scale=self.scaling, enable_gqa=True
        )

    def select(self, rows: Rows) -> Self:
        """Copies of these rows. What the rows that have left were longer by does not count any more."""
        if self.k is not None:
            self.settle(self.k.tensor)
        selected = super().select(rows)
        selected.seen = int(selected.offsets.max())
        selected.prompt = selected.seen if self.seen == self.prompt else self.prompt
        return selected


@used_by(NeighbourQuest)
class PadQuestLayer(QuestLayer, PadLayer):
    """Bounds are those of tokens; rows that are shorter than the longest have fewer pages, filled up behind."""

    @property
    def keys(self) -> torch.Tensor:
        """The keys of rows that are equally long."""
        return PadLayer.read(self, slice(None), self.dtype)[0]

    @property
    def values(self) -> torch.Tensor:
        """The values of rows that are equally long."""
        return PadLayer.read(self, slice(None), self.dtype)[1]

    def compress(self, queries: torch.Tensor) -> None:
        """Bound the pages of every row from its first token on."""
        if self.k is None:
            raise KvcheckError("nothing to bound: the prompt is not in")
        parts = [self.bounds(self.aligned(row)) for row in range(self.k.tensor.shape[0])]
        self.low, self.high = (GrowableBuffer(torch.cat([part[at] for part in parts])) for at in (0, 1))

    def aligned(self, row: int) -> torch.Tensor:
        """The keys of a row (1, G, n, d) from its first token on, filled up behind by its last one."""
        keys = self._buffers()[0].used[row : row + 1]
        pad = int(self.pads[row]) if len(self.pads) else 0
        return torch.cat([keys[:, :, pad:], keys[:, :, -1:].expand(-1, -1, pad, -1)], dim=2)

    def select(self, rows: Rows) -> Self:
        """Copies of these rows, with as many pages as they have."""
        selected = super().select(rows)
        if selected.low is not None and selected.high is not None:
            pages = -(-selected.stored // self.method.page)
            selected.low, selected.high = (
                GrowableBuffer(buffer.used[:, :, :pages].clone()) for buffer in (selected.low, selected.high)
            )
        return selected
