"""InfLLM: a local window, and blocks of memory that are looked up as a whole. arXiv 2402.04617, thunlp/InfLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, retrieve, scoring
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer, appended
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.front import option


@dataclass(frozen=True)
class InfLLM(KeepsAll):
    """Attend to a local window, to the first tokens and to the few blocks of the past that fit best.

    init: I, tokens at the start that are always seen (16; the paper 128). local: W, a share of the prompt (0.25,
    rounded down, at least 1; fixed when the prompt is in) or a number of tokens (4096). block: tokens per block (32;
    128). retrieved: tokens of the blocks that are looked up, a share of the prompt (0.25) or a number (2048);
    K = max(1, retrieved // block) blocks. representatives: r per block (4). exc: tokens that look blocks up together
    (64; 512); a decoded token does so alone.

    The prompt and every follow-up are taken in by `exc` tokens at a time. Each token sees the W newest tokens, itself
    included, as they are; and without order, as if all were W - 1 tokens away, the first I, the K chosen blocks and
    what is too old for the window but in no block yet: their keys are un-rotated, its query is rotated to W - 1. One
    softmax over both parts. Then a block is cut from the oldest tokens behind the first I for as long as W tokens are
    left. Its vector is, per query head, the mean of its r un-rotated keys that received most attention while in the
    window (summed over queries; ties go to the older). Choice: the mean query of the exc tokens, rotated to W - 1, dot
    the block's vector, summed over all query heads; the K highest (ties go to the older), for all heads of a layer; all
    blocks where there are no more than K.

    A prompt in chunks of multiples of exc gives the answers and the cache of one pass. At the end of any other chunk
    an incomplete group is answered from what is known of it, and taken in only when it is complete: the cache is
    still that of its keys and queries, but those answers differ. W and K must then be numbers of tokens.

    Keys are stored once, as they come, post-RoPE, and un-rotated when they are looked at; no copy of the window, no
    cache of blocks. After n tokens, b = max(0, n - W - I) // block blocks. Bytes on the device:
    2·L·B·G·(n - b·block)·d·2 + L·B·H·b·d·2; in host memory (`host_bytes`): 2·L·B·G·b·block·d·2. The attention that
    tokens on the device received, 4·L·B·H·(n - b·block), is bookkeeping.
    Errors: SpecError for values out of range; MethodUnsupported for models whose rotation cannot be undone;
    KvcheckError for a prompt in chunks with a share of it as size.
    Differences from the official code: minimal storage instead of two copies of the window, a cache of blocks and a
    buffer; a token at a boundary is seen exactly once (there, rows of a multi-block forward may see it twice); exc may
    exceed W; blocks per row of the batch; the un-rotated key comes from the rounded post-RoPE key.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="attends to a window and to the blocks of the past that fit best, in prompt and decoding",
        stage=Stage.RETRIEVAL,
        paper="arXiv 2402.04617",
        formula="2·L·B·G·(n - b·block)·d·2 + L·B·H·b·d·2 on the device, 2·L·B·G·b·block·d·2 in host memory",
        refuses="models whose rotation of keys cannot be undone",
        knob="local",
        evicts_in_decode=True,  # blocks leave the device; and tokens see what is fed in one group with them
        needs=("queries",),
        shares_prefill=False,
        variant="sparse decoding (official; SCBench decodes densely); blocks shared over heads; minimal storage",
        lossless=Lossless.at("local=100000"),
        exceeds="a vector per block and query head, beside all keys and values",
        exempt={
            "a_block_is_its_tokens_one_by_one": "the tokens of a group choose their blocks together",
            "a_block_begins_as_its_first_token": "the tokens of a group choose their blocks together",
            "a_later_token_never_changes_earlier_logits": "the tokens of a group choose their blocks together",
            "a_later_token_of_the_prompt_never_changes_earlier_logits": (
                "the tokens of a group choose their blocks together"
            ),
        },
        cross_head="all heads of a layer look up the same blocks",
    )

    init: int = 16
    local: float | int = 0.25
    block: int = 32
    retrieved: float | int = 0.25
    representatives: int = 4
    exc: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.whole(name, "init", self.init, 0, 16)
        checks.budget(name, "local", self.local)
        checks.whole(name, "block", self.block, 1, 32)
        checks.budget(name, "retrieved", self.retrieved)
        checks.whole(name, "representatives", self.representatives, 1, 4)
        checks.whole(name, "exc", self.exc, 1, 64)
        if self.representatives > self.block:
            raise SpecError(
                f"{name}: a block of {self.block} tokens has no {self.representatives} representatives",
                f"type {option('methods')}={name}:block={self.block},representatives={max(1, self.block // 8)}",
            )

    def check(self, shape: ModelShape) -> None:
        """Keys must be un-rotatable."""
        checks.rotation(self.name(), "needs keys without their rotation", shape.rope)

    def width(self, prompt: int) -> int:
        """W for a prompt of this length."""
        return checks.tokens(self.local, prompt, least=1)

    def most(self, prompt: int) -> int:
        """K for a prompt of this length."""
        return max(1, checks.tokens(self.retrieved, prompt, least=1) // self.block)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with blocks."""
        return InfLayer(shape, index, self)

    def blocks(self, prompt: int, decoded: int) -> int:
        """b: blocks at that point."""
        return max(0, prompt + decoded - self.width(prompt) - self.init) // self.block

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """On the device: what is in no block, and the vectors of the blocks."""
        blocks = self.blocks(prompt, decoded)
        vectors = shape.layers * batch * shape.heads * blocks * shape.head_dim * shape.itemsize
        return shape.dense_bytes(batch, prompt + decoded - blocks * self.block) + vectors

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """In host memory: the blocks."""
        return shape.dense_bytes(batch, self.blocks(prompt, decoded) * self.block)

    def reads(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """All that is in no block before the token is taken in, and K blocks."""
        blocks = self.blocks(prompt, decoded - 1)
        return (prompt + decoded - (blocks - min(blocks, self.most(prompt))) * self.block,) * shape.layers


class InfLayer(retrieve.OffloadLayer):
    """First tokens and window in k and v, blocks in hk and hv.

    taken: tokens taken in; those behind wait for their exc group to be complete. vectors (B, H, b, d): of the blocks.
    received (B, H, slots in k) float32: attention that tokens got while in the window.
    """

    meta = ("kept", "received")
    method: InfLLM
    taken: int
    vectors: GrowableBuffer | None
    received: torch.Tensor | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.taken, self.vectors, self.received = 0, None, None

    @property
    def first(self) -> int:
        """I."""
        return self.method.init

    @property
    def dense(self) -> bool:
        """Never: the prompt attends sparsely, too."""
        return False

    @property
    def width(self) -> int:
        """W."""
        return self.method.width(self.prompt or self.seen)

    @property
    def most(self) -> int:
        """K."""
        return self.method.most(self.prompt or self.seen)

    def look(self, query: torch.Tensor) -> torch.Tensor:
        """Take new tokens in; of a prompt, also those that still wait, whose answers are out already."""
        if self.prompt is not None:
            return self.take(query, last=True)
        held = self._held or []
        if held and isinstance(self.method.local + self.method.retrieved, float):
            raise KvcheckError(
                "inf_llm: the prompt is fed in chunks, and a share of it is not known before its end",
                "feed it in one forward, or give local and retrieved as numbers of tokens: local=1024,retrieved=1024",
            )
        waiting = torch.cat([*(each.to(query.dtype) for each in held), query], dim=2)[:, :, self.taken :]
        return self.take(waiting, last=False)[:, :, -query.shape[2] :]

    def compress(self, queries: torch.Tensor) -> None:
        """Take in what still waits: the last exc group; all of a prompt that is absorbed."""
        if self.taken < self.seen:
            self.take(queries[:, :, self.taken :], last=True)

    def take(self, queries: torch.Tensor, last: bool) -> torch.Tensor:
        """Attention of the tokens from `taken` on, exc at a time, each group then taken in: (B, H, q, d).

        last: an incomplete group at the end is taken in, too.
        """
        outs = []
        for group in queries.split(self.method.exc, dim=2):
            out, received = self.group(group)
            outs.append(out)
            if last or group.shape[2] == self.method.exc:
                self.note(received, group.shape[2])
                self.cut()
        return torch.cat(outs, dim=2)

    def place(self, position: int) -> int:
        """How many slots of k hold earlier positions than this one."""
        return max(0, min(position, self.first)) if position < self.first + self.away else position - self.away

    def group(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of the tokens behind those taken in, which look blocks up together.

        (B, H, q, d) -> (B, H, q, d), and what the newest tokens on the device received from them, (B, H, m).
        """
        start, stop, width = self.taken, self.taken + query.shape[2], self.width
        rows = torch.arange(start, stop, device=query.device)
        slots = torch.arange(stop - self.away, device=query.device)
        age = rows.unsqueeze(1) - torch.where(slots < self.first, slots, slots + self.away)
        near = slice(self.place(start - width + 1), len(slots))
        hidden = (age[:, near] < 0) | (age[:, near] >= width)
        window = self.softmax.capped(retrieve.scores(query, self.keys[:, :, near], self.scaling))
        window = window.masked_fill(hidden, -torch.inf)

        distant = rotate(query.float(), width - 1 - rows, self.rope)
        keys, values = self.past(distant, self.place(stop - width))
        blocks = keys.shape[2] - self.place(stop - width)
        hidden = pad(age[:, : keys.shape[2] - blocks] < width, (blocks, 0))
        beyond = self.softmax.capped(retrieve.scores(distant, keys, self.scaling)).masked_fill(hidden, -torch.inf)

        weights = self.softmax.weights(torch.cat([window, beyond], dim=3))
        mine, others = weights.split([window.shape[3], beyond.shape[3]], dim=3)
        out = retrieve.weigh(mine, self.values[:, :, near]) + retrieve.weigh(others, values)
        return out, mine.sum(dim=2)

    def past(self, query: torch.Tensor, old: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen blocks, then the `old` first slots of k: keys un-rotated, and values, (B, G, m, d) float32.

        query: (B, H, q, d), rotated to W - 1.
        """
        keys, values = self.keys[:, :, :old].float(), self.values[:, :, :old].float()
        positions = torch.arange(old, device=keys.device)
        keys = unrotate(keys, torch.where(positions < self.first, positions, positions + self.away), self.rope)
        if self.hk is None or self.hv is None or self.vectors is None:
            return keys, values
        block = self.method.block
        fit = torch.einsum("bhd,bhnd->bn", query.mean(dim=2), self.vectors.used.float())
        chosen = scoring.top(fit, min(self.most, self.vectors.length))
        tokens = (chosen.unsqueeze(2) * block + torch.arange(block, device=chosen.device)).flatten(1)
        index = tokens.cpu()[:, None, :, None].expand(-1, self.shape.kv_heads, -1, self.shape.head_dim)
        found, theirs = (buffer.used.gather(2, index).to(keys.device).float() for buffer in (self.hk, self.hv))
        found = unrotate(found, self.first + tokens.unsqueeze(1), self.rope)
        return torch.cat([found, keys], dim=2), torch.cat([theirs, values], dim=2)

    def note(self, received: torch.Tensor, count: int) -> None:
        """`count` more tokens are taken in; the newest on the device received this from them, (B, H, m)."""
        self.taken += count
        old = received[:, :, :0] if self.received is None else self.received
        self.received = pad(old, (0, self.taken - self.away - old.shape[2]))
        self.received[:, :, self.received.shape[2] - received.shape[2] :] += received

    def cut(self) -> None:
        """Move whole blocks behind the first tokens to the host, for as long as W tokens are left."""
        size = self.method.block
        blocks = (self.taken - self.away - self.first - self.width) // size
        if blocks <= 0 or self.received is None:
            return
        end = self.first + blocks * size
        votes = self.received[:, :, self.first : end].unflatten(2, (blocks, size))
        best = scoring.top(votes, self.method.representatives)
        best = best + torch.arange(0, blocks * size, size, device=best.device).unsqueeze(1)
        positions = torch.arange(self.first, end, device=best.device) + self.away
        keys = unrotate(self.keys[:, :, self.first : end].float(), positions, self.rope)
        vectors = retrieve.gather(keys, best).mean(dim=3).to(self.dtype)
        self.vectors = appended(self.vectors, vectors)
        self.received = torch.cat([self.received[:, :, : self.first], self.received[:, :, end:]], dim=2)
        self.copy_out(blocks * size, self.dtype)
        self.drop(blocks * size, spare=size)

    @property
    def rope(self) -> tuple[float, ...]:
        """Inverse frequencies; `check` has seen to it that they are there."""
        return self.shape.rope or ()


METHOD = InfLLM
