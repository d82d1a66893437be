"""Small faulty methods: the full cache with one thing wrong."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from kvcheck.cache import kernels, scoring
from kvcheck.cache.full import FullCache
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Lossless, Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rotary import rotate
from kvcheck.cache.rows import RowCache
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import Carried, StateRunner
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.kivi import KIVI, KIVILayer
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.methods.snapkv import SnapKV, SnapLayer
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM

COUNTER = itertools.count()
SEEN: dict[int, int] = {}
PILE: list[torch.Tensor] = []


@dataclass(frozen=True)
class Full(Method):
    """The full cache, by whatever layer a subclass names."""

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache", stage="compression", frees_memory=False, lossless=Lossless.ALWAYS
    )
    made: ClassVar[type[CacheLayer]] = CacheLayer

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        return self.made(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        return (prompt + decoded,) * shape.layers


def unmasked(layer, query, keys, values):
    return scaled_dot_product_attention(query, keys, values, scale=layer.scaling, enable_gqa=True)


class LosesFirstLayer(CacheLayer):
    def compress(self, queries):
        self.keep(self.every_head(torch.arange(min(1, self.stored - 1), self.stored)))


class RaisesLayer(CacheLayer):
    def compress(self, queries):
        self.share = 1 / 0


class SeesHalfLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        half = keys.shape[2] // 2 if self.prompt is None else 0
        values = torch.cat([torch.zeros_like(values[:, :, :half]), values[:, :, half:]], dim=2)
        return super().attention(query, keys, values, rows)


class LastChunkLayer(CacheLayer):
    def update(self, key_states, value_states, *args, **kwargs):
        if self._held is not None and self.seen:
            value_states = torch.zeros_like(value_states)
        return super().update(key_states, value_states, *args, **kwargs)


class AbsorbsZerosLayer(CacheLayer):
    def absorb(self, prefilled):
        super().absorb(prefilled)
        self.values[:, :, -1:] = 0


class BlindBlockLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        new = query.shape[2]
        if self.prompt is not None and new > 1:
            keys, values = keys[:, :, -new:], values[:, :, -new:]
        return super().attention(query, keys, values, rows)


class NonCausalBlockLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        if self.prompt is not None:
            return unmasked(self, query, keys, values)
        return super().attention(query, keys, values, rows)


class NonCausalPromptLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        return (
            unmasked(self, query, keys, values) if self.prompt is None else super().attention(query, keys, values, rows)
        )


class WrongSlotsLayer(CacheLayer):
    def write(self, keys, values):
        super().write(keys, values.roll(1, 1) if self.prompt is not None else values)


class StoredLengthLayer(LosesFirstLayer):
    def get_seq_length(self, *args):
        return self.stored


class HeavyForkLayer(CacheLayer):
    def select(self, rows):
        counterpart = super().select(rows)
        counterpart.old = self.values.clone()
        return counterpart


class PilingLayer(CacheLayer):
    def compress(self, queries):
        PILE.append(self.keys.clone())


class PilingRowLayer(CacheLayer):
    def compress(self, queries):
        if not self.index:
            PILE.append(self.keys[:1, :1].clone())


class LateHoardLayer(CacheLayer):
    def step(self, query):
        if self.seen > self.prompt + 100:
            self.old = self.keys.clone()


class MeanLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        return super().attention(query, keys, values - values.mean(dim=0, keepdim=True), rows)


class RowNumberLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        scale = 1 + 0.1 * torch.arange(values.shape[0], dtype=values.dtype).view(-1, 1, 1, 1)
        return super().attention(query, keys, values * scale, rows)


class ShrinkingLayer(CacheLayer):
    def reset(self):
        super().reset()
        self.rows = 0

    def step(self, query):
        self.rows = max(self.rows, query.shape[0])

    def attention(self, query, keys, values, rows):
        return super().attention(query, keys, values * (0.5 if self.rows > query.shape[0] else 1), rows)


class SharedForkLayer(CacheLayer):
    def select(self, rows):
        return self


class InPlaceOnlyLayer(CacheLayer):
    def step(self, query):
        self.values[:, :, :1] *= 0.9


class AliasedForkLayer(InPlaceOnlyLayer):
    def select(self, rows):
        counterpart = super().select(rows)
        if list(rows) == list(range(self.values.shape[0])):
            counterpart.k, counterpart.v = self.k, self.v
        return counterpart


class CountingLayer(CacheLayer):
    def compress(self, queries):
        SEEN[self.index] = SEEN.get(self.index, 0) + self.seen
        self.values[:, :, :1] *= 1 / SEEN[self.index]


class RandomLayer(CacheLayer):
    def compress(self, queries):
        self.values[:, :, :1] *= 1 + 0.1 * (next(COUNTER) % 7)


class LastPromptLayer(CacheLayer):
    def compress(self, queries):
        SEEN[-1 - self.index] = int(1000 * self.values.float().abs().mean())

    def attention(self, query, keys, values, rows):
        share = SEEN.get(-1 - self.index, 0) % 10 / 10 if self.prompt is not None else 0
        return super().attention(query, keys, values * (1 + share), rows)


class SpreadLayer(CacheLayer):
    def compress(self, queries):
        spread = self.values.amax(dim=2, keepdim=True) - self.values.amin(dim=2, keepdim=True)
        self.values.div_(spread)  # of one token: no number


class PlainCopiesCache(KVCache):
    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        for layer in self.layers:
            layer.values[1:] = 0


class ScaledLayer(CacheLayer):
    def attention(self, query, keys, values, rows):
        return super().attention(query, keys, values * SEEN.get(100, 1), rows)


class StaleResetLayer(CacheLayer):
    def reset(self):
        old = getattr(self, "v", None)
        super().reset()
        self.stale = None if old is None else float(old.used.float().mean())

    def attention(self, query, keys, values, rows):
        return super().attention(query, keys, values + (self.stale or 0.0) * 10, rows)


class UnsavedLayer(CacheLayer):
    def __getstate__(self):
        state = dict(self.__dict__)
        state["seen"] = state["prompt"]
        return state


class CroppedLayer(CacheLayer):
    is_croppable = True

    def crop(self, tokens):
        self.v.used[:, :, tokens:] = 0
        self.seen += tokens


class FirstHeadLayer(CacheLayer):
    def compress(self, queries):
        self.values[:, 1:] *= 0.5


class AbsoluteLayer(CacheLayer):
    def compress(self, queries):
        half = (self.stored + 1) // 2
        self.keep(self.keys[..., 0].float().topk(half, dim=2).indices.sort(dim=2).values)


class FadingRunner(MethodRunner):
    def prefill(self, ids):
        self.loaded.model.config.rope_theta = 1.0 + ids.shape[1]
        return super().prefill(ids)


@dataclass(frozen=True)
class TouchesConfig(Full):
    def runner(self, loaded):
        return FadingRunner(self, loaded)


@dataclass(frozen=True)
class PlainCopies(Full):
    def build(self, shape, store_dtype=None):
        return PlainCopiesCache(super().build(shape, store_dtype).layers, store_dtype)


@dataclass(frozen=True)
class LastModel(Full):
    made = ScaledLayer

    def runner(self, loaded):
        SEEN[100] = float(next(loaded.model.parameters()).double().sum())
        return MethodRunner(self, loaded)


@dataclass(frozen=True)
class Absolute(Full):
    info: ClassVar[MethodInfo] = MethodInfo(summary="half, by one channel", stage="compression")

    made = AbsoluteLayer

    def slots(self, shape, prompt, decoded):
        return ((prompt + 1) // 2 + decoded,) * shape.layers


@dataclass(frozen=True)
class BlindArchitecture(Full):
    info: ClassVar[MethodInfo] = MethodInfo(summary="a model of its own", stage="architecture", frees_memory=False)
    made = BlindBlockLayer


class NewestPagesLayer(QuestLayer):
    def choose(self, query, own):
        chosen = super().choose(query, own)
        count = chosen.shape[-1]
        return (own.clamp(min=count - 1).unsqueeze(-1) - torch.arange(count - 1, -1, -1)).expand_as(chosen)


@dataclass(frozen=True)
class AlwaysTwoBits(KIVI):
    def layer(self, shape, index):
        return KIVI(bits=2).layer(shape, index)


class FadingLayer(KIVILayer):
    def read(self, rows, dtype, heads=slice(None)):
        keys, values = super().read(rows, dtype, heads)
        return keys * 0.9, values * 0.9


class LosesFoldedLayer(KIVILayer):
    def step(self, query):
        for buffer, count in zip((self.k, self.v), self.due(self.k.length, self.v.length), strict=True):
            buffer.used[:, :, :count] = 0
        super().step(query)


class SeesAllLayer(QuestLayer):
    dense = True


class UncountedLayer(H2OLayer):
    """What decoded tokens receive is not counted."""

    def step(self, query):
        for received in self._received:
            received[:, :, self.prompt - self.seen :] = 0
        super().step(query)


class WinnerLayer(H2OLayer):
    """What a forward pays counts for the slot that gets most of it alone."""

    def step(self, query):
        for received in self._received:
            received *= received == received.amax(dim=2, keepdim=True)
        super().step(query)


class EmptyPageLayer(CacheLayer):
    """Where a page of 16 has just been filled, the next one is counted."""

    def attention(self, query, keys, values, rows):
        if self.prompt is not None and query.shape[2] == 1 and self.seen % 16 == 0:
            keys, values = (torch.cat([torch.zeros_like(each[:, :, :16]), each], dim=2) for each in (keys, values))
        return super().attention(query, keys, values, rows)


class WholeBufferLayer(CacheLayer):
    """A scale is taken over the whole buffer, not over what of it is used."""

    def attention(self, query, keys, values, rows):
        return super().attention(query, keys, values, rows) * (1 + 1e-3 * self.v.tensor.nan_to_num().abs().amax())


class SlotQueryLayer(SnapLayer):
    """The query stands at its slot, keys at their positions."""

    def attention(self, query, keys, values, rows):
        shift = torch.tensor(self.stored - self.seen)
        return super().attention(rotate(query, shift, self.shape.rope), keys, values, rows)


class LosesSinksLayer(StreamingLayer):
    """The window moves over the first tokens in later turns."""

    def evict(self):
        over = self.stored - self.method.sink - self.method.width(self.prompt or self.seen)
        if over > 0 and self.seen != self.prompt:
            return self.slide(0, over)
        return super().evict()


class RaisedWindowLayer(SnapLayer):
    """The window is kept by giving it the largest score, which others may have, too."""

    def compress(self, queries):
        method, prompt = self.method, self.stored
        if prompt <= method.cap(prompt):
            return
        scores = scoring.window_scores(queries[:, :, -method.window :], self.keys, self.scaling)
        scores[:, :, -method.window :] = scores.amax(dim=2, keepdim=True)
        self.keep(scoring.top(scores, method.cap(prompt)))


class CeilLayer(StreamingLayer):
    """The window is rounded up where it moves on, and down when the prompt is in."""

    def evict(self):
        over = self.stored - self.method.sink - (self.prompt + 1) // 2
        if self.seen == self.prompt:
            super().evict()
        elif over > 0:
            self.slide(self.method.sink, over)


class KeepsHalfLayer(SnapLayer):
    """Half of the prompt, whatever the budget."""

    def __init__(self, shape, index, method):
        super().__init__(shape, index, SnapKV())


class UnreadLayer(CacheLayer):
    """Holds its values twice."""

    def compress(self, queries):
        self.again = self.values.clone()


class FirstTokensRunner(MethodRunner):
    """Takes a prompt for one that was read before when their first tokens are the same."""

    def __init__(self, method, loaded):
        super().__init__(method, loaded)
        self.store = {}

    def prefill(self, ids):
        key = str(ids[:, :8].tolist())
        if key not in self.store:
            self.store[key] = super().prefill(ids)
        cache, logits = self.store[key]
        return cache.select(range(len(ids))), logits


@dataclass(frozen=True)
class FirstTokens(Full):
    def runner(self, loaded):
        return FirstTokensRunner(self, loaded)


class LazyLayer(SnapLayer):
    def compress(self, queries):
        if self.index:
            super().compress(queries)


@dataclass(frozen=True)
class Lazy(SnapKV):
    def layer(self, shape, index):
        return LazyLayer(shape, index, self)

    def slots(self, shape, prompt, decoded):
        return None


@dataclass(frozen=True)
class Hoarding(Full):
    """It claims to evict, and declares that it keeps everything."""

    info: ClassVar[MethodInfo] = replace(Full.info, evicts_in_decode=True, frees_memory=True)


def layer(self, shape, index):
    return self.made(shape, index, self)


OTHERS = {KIVILayer: KIVI, QuestLayer: Quest, H2OLayer: H2O, SnapLayer: SnapKV, StreamingLayer: StreamingLLM}
"""By what a layer is made of, its method; the full cache for all others."""
WRITTEN = ("AbsoluteLayer", "LazyLayer")
"""Layers whose methods are written out above, since they declare more."""


def faulty(name: str, made: type[CacheLayer]) -> None:
    """A method that is the one of its layer's base with this layer."""
    base = next((method for kind, method in OTHERS.items() if issubclass(made, kind)), Full)
    own = {"made": made, "layer": layer, "__module__": __name__, "__doc__": f"{base.__name__} with a fault."}
    globals()[name] = dataclass(frozen=True)(type(name, (base,), own))


for _layer in [each for each in list(globals().values()) if isinstance(each, type) and issubclass(each, CacheLayer)]:
    if _layer.__module__ == __name__ and _layer.__name__ not in WRITTEN:
        faulty(_layer.__name__.removesuffix("Layer"), _layer)


class SinklessLayer(CacheLayer):
    """A block behind the prompt attends without the sinks of the model."""

    def attention(self, query, keys, values, rows):
        if self.prompt is None or query.shape[2] == 1:
            return super().attention(query, keys, values, rows)
        return kernels.attend_block(query, keys, values, self.scaling, replace(self.softmax, sinks=None))


@dataclass(frozen=True)
class NoSinkInABlock(Full):
    made = SinklessLayer


class MaskedBeforeLayer(CacheLayer):
    """Scores of hidden tokens are masked before the cap, which lets them back in."""

    def attention(self, query, keys, values, rows):
        softmax, size = self.softmax, keys.shape[2]
        if softmax.plain:
            return super().attention(query, keys, values, rows)
        keys, values = (each.repeat_interleave(self.shape.group, dim=1) for each in (keys, values))
        hidden = ~torch.ones(query.shape[2], size, dtype=torch.bool).tril(size - query.shape[2])
        scores = (query @ keys.mT * self.scaling).masked_fill(hidden, -torch.inf)
        return softmax.weights(softmax.capped(scores)) @ values


@dataclass(frozen=True)
class CapsMaskedScores(Full):
    made = MaskedBeforeLayer


@dataclass(frozen=True)
class OnStates(FullCache):
    """The full cache; on a model with states, by whatever runner a subclass names."""

    made: ClassVar[type[StateRunner]] = StateRunner

    def runner(self, loaded):
        return super().runner(loaded) if loaded.states is None else self.made(self, loaded)


def states_of(row: Carried):
    """The layers that keep a state."""
    return [layer for layer in row.cache.layers if hasattr(layer, "recurrent_states")]


class ForgetfulRunner(StateRunner):
    """A block begins with an empty convolution."""

    def feed_row(self, cache, ids, keep):
        if cache.seen and ids.shape[1] > 1:
            for layer in states_of(cache):
                for state in (
                    dict(layer.conv_states).values() if isinstance(layer.conv_states, dict) else layer.conv_states
                ):
                    state.zero_()
        return super().feed_row(cache, ids, keep)


@dataclass(frozen=True)
class ForgetsAtABlock(OnStates):
    made = ForgetfulRunner


class FirstRowRunner(StateRunner):
    """All rows go on from the state of the first."""

    def prefill(self, ids):
        cache, logits = super().prefill(ids)
        return RowCache([cache.rows[0].select([0]) for _ in cache.rows]), logits


@dataclass(frozen=True)
class StateOfTheFirstRow(OnStates):
    made = FirstRowRunner


class SharedCarried(Carried):
    """A fork goes on in the very cache."""

    def select(self, rows):
        clone = super().select(rows)
        clone.cache = self.cache
        return clone


class PartlyCarried(Carried):
    """A fork has the recurrent states of what it was made from, by reference."""

    def select(self, rows):
        clone = super().select(rows)
        for mine, theirs in zip(states_of(clone), states_of(self), strict=True):
            mine.recurrent_states = theirs.recurrent_states
        return clone


class SharedRunner(StateRunner):
    kind: ClassVar[type[Carried]] = SharedCarried

    def build(self):
        made = super().build()
        made.__class__ = self.kind
        return made


class PartlyRunner(SharedRunner):
    kind = PartlyCarried


@dataclass(frozen=True)
class SharedState(OnStates):
    made = SharedRunner


@dataclass(frozen=True)
class StateCopiedInPart(OnStates):
    made = PartlyRunner


@dataclass(frozen=True)
class TwiceThePages(Quest):
    """The budget is turned into pages of 16 tokens, whatever they are."""

    page: int = 32

    def pages(self, prompt: int) -> int:
        return 2 * super().pages(prompt)


class StaleStepsLayer(CacheLayer):
    """After a reset, single steps do not see the oldest token."""

    resets = -1

    def reset(self):
        super().reset()
        self.resets += 1

    def attention(self, query, keys, values, rows):
        if self.resets and self.prompt is not None and query.shape[2] == 1:
            keys, values = keys[:, :, 1:], values[:, :, 1:]
        return super().attention(query, keys, values, rows)


class StaleSteps(Full):
    made = StaleStepsLayer


class CountsSlots(DynamicLayer):
    """A layer of transformers that evicts, and says that its slots are the tokens seen."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        self.keys, self.values = keys[:, :, -8:].clone(), values[:, :, -8:].clone()
        return keys, values


class CropsTooFew(DynamicLayer):
    """One that leaves a token of what is taken back."""

    def crop(self, tokens_to_remove):
        super().crop(tokens_to_remove + 1)


class MasksShifted(DynamicLayer):
    """One whose masks begin at the second token."""

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 1
