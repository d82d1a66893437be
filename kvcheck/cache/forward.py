"""What the forward of a model takes for that which it carries from token to token: asked once per class, and only here.

transformers calls it `past_key_values` up to 5.23 and `cache` from 5.24 on, where a decorator still takes the old name;
recurrent models had names of their own; code that comes with a model has any of them. Every forward with a cache goes
through `feed`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

KEYED = ("past_key_values", "cache")
"""Names of a cache that may hold keys and values."""
NAMES = (*KEYED, "cache_params", "state")
"""These, and names of what recurrent models carry."""


@dataclass(frozen=True)
class Forward:
    """takes: the names of its parameters. carries: the one among NAMES, "" where modules hold all that is carried."""

    takes: frozenset[str]
    carries: str

    @property
    def keyed(self) -> bool:
        """Whether keys and values may be in it."""
        return self.carries in KEYED


_asked: WeakKeyDictionary[type, Forward] = WeakKeyDictionary()


def of(model: PreTrainedModel) -> Forward:
    """What the forward of a model takes. One that names no parameter at all is tried."""
    kind = type(model)
    if kind not in _asked:
        found = inspect.signature(kind.forward).parameters  # that of what decorators wrap
        named = [name for name, each in found.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        carries = next((name for name in NAMES if name in named), "") if named != ["self"] else _tried(model)
        _asked[kind] = Forward(frozenset(found), carries)
    return _asked[kind]


def feed(model: PreTrainedModel, ids: torch.Tensor, cache: object, **given: object) -> ModelOutput:
    """The model's output for token ids (R, q) that go into a cache. given: further arguments, such as position_ids."""
    return model(input_ids=ids, **{of(model).carries: cache}, use_cache=True, **given)


def carried(model: PreTrainedModel, out: ModelOutput) -> object:
    """What an output of the model carries on; None where modules hold it."""
    name = of(model).carries
    return getattr(out, name, None) if name else None


def _tried(model: PreTrainedModel) -> str:
    """The name by which two tokens reach a full cache; "" where none does, or where the class has no such cache."""
    for name in KEYED:
        try:
            shape = ModelShape.of(model.config)
            cache = KVCache([CacheLayer(shape, index, None) for index in range(shape.layers)])
            with torch.inference_mode():
                model(torch.zeros(1, 2, dtype=torch.long, device=model.device), **{name: cache}, use_cache=True)
        except Exception:  # not that name; what none of them reaches is refused when the model is loaded
            continue
        if cache.seen == 2:
            return name
    return ""
