"""kvcheck's attention function: finds the cache layer that has just taken in keys and lets it attend.

Registered with transformers under the name "kvcheck" when this module is imported:

    from kvcheck.methods import attention
    model = attention.use(AutoModelForCausalLM.from_pretrained(path))
    model.generate(**inputs, past_key_values=method.build(ModelShape.of(model.config)))

The function itself gets no cache. A KVCache leaves the layer it has just updated in the thread-local `pending`; the
function takes it only if the key tensor that it is called with is the one that this layer returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from kvcheck.cache import checks
from kvcheck.cache.kernels import Softmax
from kvcheck.cache.layer import pending
from kvcheck.core.errors import KvcheckError, MethodUnsupported

NAME = "kvcheck"
_REFUSED = {
    "position_bias": "a position bias",
}


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers: query (B, H, q, d), post-RoPE -> (B, q, H, d), and no weights.

    Raises KvcheckError when no kvcheck cache is in use, MethodUnsupported for what it would otherwise get wrong:
    a mask of the caller's own, a sliding window or a chunk of the model shorter than the text, a layer that leaves out
    soft caps or sinks.
    dropout comes before scaling, as in transformers' sdpa: kvpress wraps every registered function and passes it so.
    """
    layer, expected = pending.layer, pending.key
    pending.layer = pending.key = None
    latent = layer is not None and layer.shape.latent  # then the model has made other tensors of what it was given
    if layer is None or not (latent or expected is key):
        raise KvcheckError(
            "the model attends through kvcheck, but no kvcheck cache is in use",
            "pass past_key_values=method.build(ModelShape.of(model.config)), or load the model with another "
            "attn_implementation",
        )
    if attention_mask is not None:
        raise MethodUnsupported("kvcheck builds its own causal mask and cannot combine it with one that is passed in")
    looked_after = layer.window is not None and layer.window == kwargs.get("sliding_window")
    refuse({**kwargs, "sliding_window": None} if looked_after else kwargs, layer.index, layer.seen)
    chunk = layer.shape.chunk
    if chunk is not None and layer.window is None and layer.seen > chunk:
        raise MethodUnsupported(
            f"the model attends in chunks of {chunk} tokens; the text has {layer.seen}",
            "shorten the text; methods that are a cache only act on its layers with full attention",
        )
    batch, heads, tokens, _ = query.shape
    out = layer.attend_by(Softmax.of(kwargs), query, scaling, (key, value) if latent else None)
    return checks.tensor(out, "attend", (batch, tokens, heads, value.shape[3])), None


def refuse(given: Mapping[str, object], index: int, seen: int) -> None:
    """Raise MethodUnsupported for what a layer asks of attention that would be left out. seen: tokens of the text."""
    window = given.get("sliding_window")
    if isinstance(window, int) and seen > window:
        raise MethodUnsupported(
            f"layer {index} of the model sees a sliding window of {window} tokens; the text has {seen}",
            "shorten the text, or set sliding_window=None in the model's config where the model allows that",
        )
    for name, what in _REFUSED.items():
        if given.get(name) is not None:
            raise MethodUnsupported(f"the model uses {what} in layer {index}, which kvcheck's attention does not have")


Model = TypeVar("Model", bound=PreTrainedModel)


def use(model: Model) -> Model:
    """Let a transformers model attend through kvcheck, in place; it then needs a kvcheck cache. Returns the model."""
    model.set_attn_implementation(NAME)
    return model


def no_mask(*args: object, attention_mask: torch.Tensor | None = None, **kwargs: object) -> None:
    """Mask function for transformers: none is built, and padding is refused, since it would be ignored."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise MethodUnsupported(
            "the batch is padded; kvcheck's caches serve sequences of one length",
            "group the prompts by length, or run them one by one",
        )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, no_mask)
