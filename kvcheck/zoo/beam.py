"""Bugs of beam search: hypotheses read what another one wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.layer import Rows, _rows_of
from kvcheck.cache.quantize import QuantLayer
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.kivi import KIVI
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.paged import Paged, PagedLayer

if TYPE_CHECKING:
    from typing_extensions import Self


@bug("reorder-only-residual", "https://github.com/huggingface/transformers/pull/45510")
class ReorderOnlyResidual(KIVI):
    """Reordering beams reorders the tail in 16 bits and leaves the quantized part where it is, so that a beam goes on
    with the newest tokens of one hypothesis behind the older ones of another.

    From a quantized layer that inherited the operation of a layer with one buffer. Shows in beam search, once something
    has been quantized that differs between beams.
    """


@used_by(ReorderOnlyResidual)
class _TailCache(KVCache):
    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """The tails."""
        for layer in self.layers:
            if isinstance(layer, QuantLayer):
                layer.k, layer.v = _rows_of([layer.k, layer.v], beam_idx)


@bug("beams-write-to-shared-context", "https://github.com/ggml-org/llama.cpp/issues/3802")
class BeamsWriteToSharedContext(Fp16):
    """Beams that descend from the same hypothesis are not copied but point to one and the same row; what they add goes
    to the same place there, the last one wins, and all of them see it.

    From a beam search that evaluated all beams in one context. Shows as soon as two beams have the same parent and go
    on differently.
    """


@used_by(BeamsWriteToSharedContext)
class _SharedCache(KVCache):
    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Point to the parents' rows."""
        self.point(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Point to one row so many times."""
        batch = self.layers[0].positions.shape[0]
        self.point([row for row in range(batch) for _ in range(repeats)])

    def point(self, rows: list[int]) -> None:
        """No copies."""
        for layer in self.layers:
            if isinstance(layer, _SharedLayer):
                layer.owners = [layer.owners[row] if layer.owners else row for row in rows]


@used_by(BeamsWriteToSharedContext)
class _SharedLayer(CacheLayer):
    owners: list[int]  # of every beam, the row that holds its tokens; empty: each its own

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.owners = []

    def _fits(self, keys: torch.Tensor) -> None:
        """Beams are fed, rows are held."""
        super()._fits(keys[: self.k.tensor.shape[0]] if self.owners and self.k is not None else keys)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Every beam writes to its row."""
        if self.owners and self.k is not None:
            blocks = [buffer.tensor.new_zeros(len(buffer.tensor), *keys.shape[1:]) for buffer in self._buffers()]
            for beam, row in enumerate(self.owners):
                blocks[0][row], blocks[1][row] = keys[beam], values[beam]
            keys, values = blocks
        super().write(keys, values)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that these beams point to."""
        if not self.owners:
            return super().read(rows, dtype)
        at = torch.tensor(self.owners[rows], device=self.keys.device)
        return self.keys[at].to(dtype), self.values[at].to(dtype)

    @property
    def positions(self) -> torch.Tensor:
        """One row per beam."""
        found = super().positions
        return found[:1].expand(len(self.owners), -1, -1) if self.owners else found

    def select(self, rows: Rows) -> Self:
        """A layer in which these beams have rows of their own."""
        at = torch.as_tensor(rows).tolist()
        selected = super().select([self.owners[row] for row in at] if self.owners else at)
        selected.owners = []
        return selected


@bug("beam-copy-on-write-missing", "https://github.com/xLLM-AI/xllm/pull/1984")
class BeamCopyOnWriteMissing(Paged):
    """A beam that takes over another hypothesis gets a copy of that one's last page only; its earlier pages hold what
    its own former hypothesis had written there.

    From an engine that allotted blocks to diverging beams without copying into them. Shows in beam search, when
    hypotheses that change rows differ before their last page.
    """


@used_by(BeamCopyOnWriteMissing)
class _LastPage(PagedLayer):
    def take_over(self, pages: torch.Tensor, origins: torch.Tensor) -> None:
        """The last page."""
        super().take_over(pages[:, -1:], origins[:, -1:])
