"""Find out how a model carries a text from token to token, by running a few tokens through it.

Nothing is taken from the names of classes: transformers says which cache layers a config has, forward says what it
takes, and the rest is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvcheck.cache import forward
from kvcheck.cache.full import FULL
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import Carried, Place, StateRunner, States, kinds
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.measure.memory import held

if TYPE_CHECKING:
    from kvcheck.models.loading import LoadedModel
    from kvcheck.models.pretrained import Config

TEXT, MORE = 12, 6
"""Tokens of the probe, and of what follows them: more than a short convolution sees."""
SAYS = (
    "The old lighthouse keeper walked down to the harbour every morning, counted the boats and wrote their names into "
    "a small book that nobody else was allowed to read."
)
"""What the probe feeds: special and unused tokens make a model sure of nothing, and 16 bits then round it far apart."""
VARIED = 12
"""Different tokens that a tokenizer must make of that: of fewer, the first ids of the vocabulary say more."""
BROKEN = 0.05
"""Mean difference of logits, in their standard deviation, by which a class does not go on from what it carries.

Of a model that computes in 16 bits, where single tokens round otherwise than a text; a tenth of it in more.
"""
FORGETFUL = 0.02
"""Likewise for a block, which must not be twice as far from the text at once as single tokens are (they round alike).

In doubt a follow-up is fed token by token, which costs time only.
"""
HINT = "a newer transformers may do better; kvcheck runs decoder-only models that generate() can run step by step"


def find(loaded: LoadedModel) -> States | None:
    """How the model carries its text; None where every layer has full attention, which kvcheck's caches hold.

    Raises MethodUnsupported for a class that does not go on from what it carries as if the text were fed at once.
    """
    model, keyed = loaded.model, forward.of(loaded.model).keyed
    if keyed and _plain(model.config):
        return None
    try:
        with torch.no_grad():
            found = set(kinds(model.config)) if keyed else set()
            keyed = bool(found - _linear(found))
            draft = States(_shape(model.config, keyed), keyed)
            windows = bool(found) and found <= {DynamicLayer, DynamicSlidingWindowLayer}
            return _probed(loaded, replace(draft, windows=windows))
    except (MethodUnsupported, SpecError):
        raise
    except KvcheckError as error:  # attention found no cache
        named = ", ".join(forward.NAMES)
        raise _refusal(loaded, f"takes no cache under a name that kvcheck knows ({named})") from error
    except Exception as error:
        raise _refusal(loaded, f"does not run step by step: {type(error).__name__}: {error}") from error


def _plain(config: Config) -> bool:
    """Whether the cache of a config has layers with full attention only, or some that are not known here."""
    try:
        found = set(kinds(config))
    except Exception:  # what DynamicCache cannot read is refused with the interface check's own words
        return True
    return found == {DynamicLayer} or bool(found - _linear(found) - {DynamicLayer, DynamicSlidingWindowLayer})


def _linear(found: set[type]) -> set[type]:
    """Those among cache layers that keep a state and no keys and values."""
    return {kind for kind in found if not issubclass(kind, DynamicLayer) and hasattr(kind, "update_recurrent_state")}


def _shape(config: Config, keyed: bool) -> ModelShape:
    """The shape of the layers with full attention; of none where no keys and values are carried by the cache."""
    if not keyed:
        return ModelShape(0, 1, 1, 1)
    return replace(ModelShape.of(config), layers=kinds(config).count(DynamicLayer), chunk=None)


def _probed(loaded: LoadedModel, draft: States) -> States:
    """The draft with the places in modules, and with what a follow-up of several tokens does."""
    states = replace(draft, places=_places(loaded, draft))
    ids = _text(loaded)
    one = _whole(loaded, states, ids)
    by_steps = _apart(one, _logits(loaded, states, ids, [1] * MORE))
    if not by_steps < (BROKEN if one.dtype.itemsize == 2 else BROKEN / 10):
        raise _refusal(loaded, "does not go on from what it carries: one token after another gives other logits")
    try:
        at_once = _apart(one, _logits(loaded, states, ids, [MORE]))
    except Exception:  # some classes raise where others forget
        return replace(states, blocks=False)
    return replace(states, blocks=at_once < min(2 * by_steps + 1e-4, FORGETFUL))


def _text(loaded: LoadedModel) -> torch.Tensor:
    """(1, TEXT + MORE) token ids: a sentence, begun as prompts are, where the tokenizer knows its words."""
    said = loaded.tokenizer.encode(SAYS)
    begun = [*loaded.tokenizer.bos, *said][: TEXT + MORE]
    if len(begun) == TEXT + MORE and len(set(said[: TEXT + MORE])) >= VARIED:
        return torch.tensor([begun], device=loaded.device)
    vocabulary = int(loaded.model.get_input_embeddings().num_embeddings)
    return torch.arange(1, TEXT + MORE + 1, device=loaded.device).unsqueeze(0) % vocabulary


def _whole(loaded: LoadedModel, states: States, ids: torch.Tensor) -> torch.Tensor:
    """The last logits (1, MORE, V) of the text at once: with nothing carried, or where attention must be kvcheck's."""
    if states.keyed:
        return _logits(loaded, states, ids, [])
    return loaded.model(ids, use_cache=False).logits[:, -MORE:]


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean difference of two sets of logits, in the standard deviation of the first."""
    return float((other - one).abs().mean() / one.float().std().clamp(min=1e-9))


def _places(loaded: LoadedModel, draft: States) -> tuple[Place, ...]:
    """Tensors in modules that running a text leaves behind or changes; the model is left as it was."""
    runner = StateRunner(FULL, replace(loaded, states=draft))
    before = {spot: (value, None if value is None else value.clone()) for spot, value in _attributes(loaded.model)}
    runner.prefill(torch.ones(1, 2, dtype=torch.long, device=loaded.device))
    found = []
    for (module, name), value in list(_attributes(loaded.model)):
        old, fresh = before.get((module, name), (None, None))
        if value is old and (value is None or (fresh is not None and torch.equal(value, fresh))):
            continue
        found.append(Place(module, name, fresh))
        setattr(loaded.model.get_submodule(module), name, fresh)
    return tuple(found)


def _attributes(model: torch.nn.Module) -> Iterator[tuple[tuple[str, str], torch.Tensor | None]]:
    """(module, attribute) and tensor, or None, of all that modules hold beside parameters."""
    for path, module in model.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            if value is None or isinstance(value, torch.Tensor):
                yield (path, name), value


def _logits(loaded: LoadedModel, states: States, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Logits (1, MORE, V) of the last tokens, which follow the text in parts of these sizes; none: in one forward."""
    runner = StateRunner(FULL, replace(loaded, states=states))
    first = ids.shape[1] - sum(sizes)
    cache = runner.build()
    logits = [runner.feed_row(cache, ids[:, :first], MORE)]
    for size in sizes:
        logits.append(runner.feed_row(cache, ids[:, first : first + size], size))
        first += size
    _carries(loaded, cache)
    return torch.cat(logits, dim=1)[:, -MORE:]


def _carries(loaded: LoadedModel, cache: Carried) -> None:
    """Raise MethodUnsupported where nothing is carried, or a layer did not attend through kvcheck."""
    if not held(cache).kv:
        raise _refusal(loaded, "carries nothing from token to token: there is no cache to look at")
    if any(layer.seen != TEXT + MORE or layer.prompt is None for layer in cache.attending):
        raise _refusal(loaded, "has layers that do not use transformers' AttentionInterface")


def _refusal(loaded: LoadedModel, why: str) -> MethodUnsupported:
    """The error for a class that cannot be run."""
    return MethodUnsupported(f"model {loaded.name!r}: {type(loaded.model).__name__} {why}", HINT)
