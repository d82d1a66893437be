"""What a cache is told: the shape of the model, and what a layer saw of a prompt.

No torch is imported here at run time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvcheck.core.errors import MethodUnsupported

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from kvcheck.cache.kernels import Softmax

_ROPE_TYPES = ("default", "linear", "llama3")  # tables that neither scale cos and sin nor depend on the length
_HALF_SPLIT = frozenset(  # model types that rotate channel c with channel c + d/2, all channels, in every layer
    ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "gemma", "gemma2", "granite")
)
CHUNKED = "chunked_attention"
"""What transformers calls a layer that attends in chunks, in the layer_types of a config."""


class Shared:
    """What is never written to, such as a method: all copies of a layer refer to the same."""


@dataclass(frozen=True)
class ModelShape:
    """What a cache must know of a model: L layers, H query heads, G kv heads, head_dim d, bytes per stored element.

    rope: the d/2 inverse frequencies by which keys and queries are rotated, half-split; None where they are not known,
    depend on the length, come with a scaling of cos and sin, or leave out channels. Not compared. value_dim: dimension
    of stored values, None where it is d. latent: the model caches no keys and values, but what it makes those of all
    heads from whenever it attends (MLA): a latent in the place of keys, G = 1, and the rotated part of the keys in the
    place of values. chunk: tokens of a chunk in which layers of the model attend (Llama 4), so that to a text which
    fits into one they have full attention; None where none does.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int = 2
    rope: tuple[float, ...] | None = field(default=None, repr=False, compare=False)
    value_dim: int | None = None
    latent: bool = False
    chunk: int | None = None

    @property
    def group(self) -> int:
        """Query heads per kv head; query head h reads kv head h // group (block-wise)."""
        return self.heads // self.kv_heads

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers per token and kv head of stored keys, and of values."""
        return self.head_dim, self.head_dim if self.value_dim is None else self.value_dim

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelShape:
        """Read the shape of a transformers config. Raises MethodUnsupported for models without plain KV attention."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
        if not isinstance(layers, int) or not isinstance(heads, int):
            kind = getattr(text, "model_type", type(config).__name__)
            raise MethodUnsupported(
                f"the config of {kind} names no num_hidden_layers and num_attention_heads",
                "kvcheck's caches serve decoder models with softmax attention, such as llama, qwen2 and mistral",
            )
        chunk = getattr(text, "attention_chunk_size", None)
        known = chunk is None or CHUNKED in (getattr(text, "layer_types", None) or ())
        for name in ("use_bidirectional_attention", *("attention_chunk_size",) * (not known)):
            if getattr(text, name, None) not in (None, False, "vision"):
                raise MethodUnsupported(
                    f"the model attends by {name}={getattr(text, name)}; kvcheck's attention is causal over all tokens"
                )
        if isinstance(rank := getattr(text, "kv_lora_rank", None), int):
            return cls(layers, heads, 1, rank, value_dim=int(text.qk_rope_head_dim), latent=True)
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        if heads % kv_heads:
            raise MethodUnsupported(f"{heads} query heads cannot be shared out over {kv_heads} kv heads")
        return cls(layers, heads, kv_heads, head_dim, rope=_rope(text, head_dim), chunk=chunk)

    def part(self, parts: int) -> ModelShape:
        """What one of several processes holds: its share of the heads of every layer."""
        return replace(self, heads=self.heads // parts, kv_heads=self.kv_heads // parts)

    def token_bytes(self, batch: int = 1) -> int:
        """Bytes of one token of one layer in a full cache: keys and values of all kv heads."""
        return batch * self.kv_heads * sum(self.widths) * self.itemsize

    def dense_bytes(self, batch: int, tokens: int) -> int:
        """Bytes of a full cache of all layers."""
        return self.layers * tokens * self.token_bytes(batch)


def _rope(text: PreTrainedConfig, head_dim: int) -> tuple[float, ...] | None:
    """The inverse frequencies of a config, as transformers computes them; None where a rotation cannot be undone."""
    kind = (getattr(text, "rope_parameters", None) or {}).get("rope_type")
    if getattr(text, "model_type", None) not in _HALF_SPLIT or kind not in _ROPE_TYPES:
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = copy.deepcopy(text)
    if kind == "default":  # has no function of its own there; it is linear scaling by 1
        kind, config.rope_parameters = "linear", {**text.rope_parameters, "factor": 1.0}
    table, scaling = ROPE_INIT_FUNCTIONS[kind](config)
    return tuple(table.tolist()) if scaling == 1 and 2 * len(table) == head_dim else None


@dataclass(frozen=True)
class Prefilled:
    """What one layer saw of a prompt of n tokens, after RoPE.

    keys, values: (B, G, n, d) as the full cache stores them; queries: (B, H, n, d), or None where nothing will read
    them; scaling: the factor on the scores, 1/sqrt(d) when None; softmax: the layer's, None where it is plain.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor | None = None
    scaling: float | None = None
    softmax: Softmax | None = None

    def select(self, rows: Sequence[int] | torch.Tensor) -> Prefilled:
        """The same for these rows of the batch (copies; repeats allowed)."""
        import torch

        at = torch.as_tensor(rows, dtype=torch.long, device=self.keys.device)
        queries = None if self.queries is None else self.queries.index_select(0, at)
        keys, values = self.keys.index_select(0, at), self.values.index_select(0, at)
        return replace(self, keys=keys, values=values, queries=queries)
