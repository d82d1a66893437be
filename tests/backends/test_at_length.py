"""Llama 3.1 8B behind 131,072 tokens, on a device that has no memory: what a round of `kvcheck speed` allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kvcheck.backends.transformers import bench
from kvcheck.cache import attention
from kvcheck.core.settings import BATCH
from kvcheck.measure import latency
from kvcheck.methods import make
from kvcheck.models import LoadedModel, synthetic

TOKENS = 131_072
CARD = 79.1 * 2**30
"""What torch says of an H100 of 80 GB."""
METHODS = ("fp16", "snapkv", "streaming_llm", "tova", "kivi:bits=4", "flexgen", "think", "quest")
"""Those that need not look at numbers, which a device without memory does not have, and do not loop over the prompt."""


class Allocated(TorchDispatchMode):
    """The most bytes of tensors that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.total = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._note(StorageWeakRef(storage), storage.nbytes())
        return result

    def _note(self, storage: StorageWeakRef, size: int) -> None:
        """`total` still counts what has died since the last time that it mattered."""
        if storage not in self.alive:
            self.alive[storage] = size
            self.total += size
        if self.total > self.most:
            self.alive = {each: bytes_ for each, bytes_ in self.alive.items() if not each.expired()}
            self.total = sum(self.alive.values())
            self.most = max(self.most, self.total)


class Fused(TorchFunctionMode):
    """Attention by a kernel that holds no scores: its result, and of a mask a copy in the dtype of the query."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, mask = args[0], (kwargs or {}).get("attn_mask", args[3] if len(args) > 3 else None)
        _ = None if mask is None else torch.empty_like(mask, dtype=query.dtype)
        return torch.empty_like(query)


@pytest.fixture(scope="module")
def nowhere() -> LoadedModel:
    """The shape, without memory."""
    model = synthetic.build("random:llama-3.1-8b", torch.device("meta"), torch.bfloat16, attention.NAME)
    encoder: Any = None
    return LoadedModel(model.eval().requires_grad_(False), encoder, "random:llama-3.1-8b", "", None)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_fits_on_a_card_of_80_gb(
    nowhere: LoadedModel, method: str, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """A prompt in one forward, steps, copies of the cache, steps of those; a tenth is left for pieces."""
    monkeypatch.setattr(latency, "STEPS", 1)
    weights = sum(part.nbytes for part in nowhere.model.parameters())
    monkeypatch.setattr(bench, "_room", lambda loaded: (CARD - weights) * 4 // 5)
    rows = bench.rows(nowhere, TOKENS, BATCH)
    assert rows > 1
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    with torch.inference_mode(), Fused(), Allocated() as allocated:
        bench.side(make(method).runner(nowhere), ids, rows)()
    record_property("bytes beside the weights", allocated.most)
    assert weights + allocated.most < 0.9 * CARD
