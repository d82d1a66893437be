"""What methods that look tokens up while decoding share: attention over chosen slots, and a store in host memory.

Scores, softmax and sums are in float32. GQA is block-wise: query head h reads kv head h // group.
"""

from __future__ import annotations

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.scoring import WEIGHTS
from kvcheck.core.errors import KvcheckError


class LookupLayer(CacheLayer):
    """A layer whose tokens attend by `look`, which reads the keys and values that it chooses, not all."""

    @property
    def dense(self) -> bool:
        """Whether the tokens that have just come in attend as in the full cache: those of the prompt."""
        return self.prompt is None

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Attention of the tokens that `update` took in: query (B, H, q, d) -> (B, q, H, d). Then compress or step."""
        if self.dense:
            return super().attend(query, scaling)
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._waiting = False
        out = self.look(query).to(query.dtype)
        self._settle(query)
        return out.transpose(1, 2).contiguous()

    def look(self, query: torch.Tensor) -> torch.Tensor:
        """Attention of the newest q tokens over what each of them chooses: (B, H, q, d) -> (B, H, q, d)."""
        raise NotImplementedError(f"{type(self).__name__} must define look(query)")

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Refused: what is looked up is found by its place."""
        raise KvcheckError(f"a layer of {self.method.name()} cannot evict tokens")


class OffloadLayer(LookupLayer):
    """Keeps the first tokens and the newest where the model is, in k and v; what lies between in host memory.

    hk, hv: GrowableBuffers (B, G, m, d) on the CPU, in the order of positions; None while there is nothing between.
    """

    host = ("hk", "hv")
    hk: GrowableBuffer | None
    hv: GrowableBuffer | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.hk = self.hv = None

    @property
    def first(self) -> int:
        """Tokens at the start that never leave the device."""
        raise NotImplementedError(f"{type(self).__name__} must define first")

    @property
    def away(self) -> int:
        """Tokens in host memory, per kv head."""
        return 0 if self.hk is None else self.hk.length

    @property
    def stored(self) -> int:
        """Every token has a slot."""
        return super().stored + self.away

    def copy_out(self, count: int, dtype: torch.dtype) -> None:
        """Append the `count` oldest tokens behind the first ones to the host; keys are kept there in `dtype`."""
        if not count:
            return
        span = slice(self.first, self.first + count)
        keys, values = self.keys[:, :, span].to("cpu", dtype), self.values[:, :, span].to("cpu")
        if self.hk is None or self.hv is None:
            self.hk, self.hv = (
                GrowableBuffer(each.clone(memory_format=torch.contiguous_format)) for each in (keys, values)
            )
        else:
            self.hk.append(keys)
            self.hv.append(values)

    def drop(self, count: int, spare: int) -> None:
        """Let go of the `count` oldest tokens behind the first ones, with room for `spare` more."""
        if count:
            slots = torch.arange(self.keys.shape[2], device=self.keys.device)
            left = self.every_head(torch.cat([slots[: self.first], slots[self.first + count :]]))
            for buffer in self._buffers():
                buffer.keep(left, spare)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of these rows, in the order of positions. Nothing attends by it after the prompt."""
        near = super().read(rows, dtype)
        if self.hk is None or self.hv is None:
            return near
        far = (buffer.used[rows].to(near[0].device, dtype) for buffer in (self.hk, self.hv))
        keys, values = (
            torch.cat([one[:, :, : self.first], two, one[:, :, self.first :]], dim=2)
            for one, two in zip(near, far, strict=True)
        )
        return keys, values


def scores(query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """query (B, H, q, d) · keys (B, G, n, d) -> (B, H, q, n)."""
    batch, heads, rows, dim = query.shape
    grouped = query.float().reshape(batch, keys.shape[1], -1, dim) * scaling
    return torch.matmul(grouped, keys.float().transpose(2, 3)).view(batch, heads, rows, keys.shape[2])


def weigh(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weights (B, H, q, n) · values (B, G, n, d) -> (B, H, q, d)."""
    batch, heads, rows, columns = weights.shape
    grouped = weights.reshape(batch, values.shape[1], heads // values.shape[1] * rows, columns)
    return torch.matmul(grouped, values.float()).view(batch, heads, rows, values.shape[3])


def gather(states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The states (B, G, n, d) at the slots (B, H, q, m) that each query head and row chose -> (B, H, q, m, d)."""
    batch, heads = slots.shape[:2]
    row = torch.arange(batch, device=slots.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=slots.device).view(1, -1, 1, 1) // (heads // states.shape[1])
    return states[row, head, slots]


def soften(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax weights (..., n), and the log of the sum (..., 1). Scores of -inf get nothing, even where all are."""
    log_sum = scores.logsumexp(dim=-1, keepdim=True)
    return (scores - log_sum.clamp(min=torch.finfo(scores.dtype).min)).exp(), log_sum


def merge(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint sets of tokens as one: (outputs (..., d), log-sums (..., 1)) of each -> of both.

    Nothing overflows, since the larger log-sum is subtracted; one of the sets may be empty (a log-sum of -inf).
    """
    both = torch.maximum(one[1], other[1])
    mine, theirs = (one[1] - both).exp(), (other[1] - both).exp()
    return (mine * one[0] + theirs * other[0]) / (mine + theirs), both + (mine + theirs).log()


def row_chunks(query: torch.Tensor, elements: int) -> list[slice]:
    """Slices of the q rows of a query (B, H, q, d), so few at a time that gathering `elements` for each stays small."""
    most = WEIGHTS.get(query.device.type, WEIGHTS["cuda"])
    rows = max(1, most // (query.shape[0] * query.shape[1] * elements))
    return [slice(start, start + rows) for start in range(0, query.shape[2], rows)]
