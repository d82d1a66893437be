"""Bugs of caches that store fewer bits: what is quantized, by which scale, and how it is read back."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.quantize import Packed
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.flexgen import FlexGen, FlexGenLayer
from kvcheck.methods.fp8 import FP8, FP8Layer
from kvcheck.methods.kivi import KIVI, KIVILayer
from kvcheck.zoo._packed import (
    DefaultGroupPacked,
    Narrow,
    ReciprocalPacked,
    TwoBitPacked,
    UnscaledFloats,
    WholeBlocks,
    ZeroPointPacked,
)
from kvcheck.zoo.base import bug
from kvcheck.zoo.twins.calibrated import Calibrated, PlainLayer
from kvcheck.zoo.twins.mix_turbo import MixTurbo, TurnedMadeLayer, TurnedReadLayer
from kvcheck.zoo.twins.turbo import Turbo, TurboLayer, Turned


@bug("prefill-quantized-despite-residual", "https://github.com/huggingface/transformers/issues/34189", twin="kivi")
@dataclass(frozen=True)
class PrefillQuantizedDespiteResidual(KIVI):
    """The prompt is quantized to its end, and every later flush empties the tails; the newest tokens that are promised
    in 16 bits are so only between two flushes. Keys of an unfinished group stay, since they have no scale yet.

    Found in the quantized cache of transformers. Shows on every prompt: the newest 128 tokens lose what the residual is
    there to keep, most of all at 2 bits.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer without a residual behind the prompt."""
        return FlushedLayer(shape, index, self)


class FlushedLayer(KIVILayer):
    """Quantizes the whole tails after the prompt, and again whenever they reach the residual."""

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """Everything, or nothing."""
        method, first = self.method, self.seen == self.prompt
        flush_keys, flush_values = (first or size >= method.residual for size in (keys, values))
        return (keys - keys % method.group) * flush_keys, values * flush_values


@bug("keys-quantized-per-vector", "https://github.com/ahb-sjsu/turboquant-pro/pull/98", twin="kivi:bits=4")
@dataclass(frozen=True)
class KeysQuantizedPerVector(KIVI):
    """The groups of keys lie along the channels of one token, as those of values, so that a channel with large keys
    sets the scale of its neighbours, whose differences between tokens drown in the rounding.

    Found in a library of rotated quantizers that normalised keys token by token. Shows on models whose keys have
    outlier channels; bytes and mean errors look right.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that groups keys as values."""
        return PerVectorLayer(shape, index, self)


class PerVectorLayer(KIVILayer):
    """Keys by token."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = Packed(self.method.bits, self.method.group, "token")


@bug(
    "group-size-hardcoded-in-dequant",
    "https://github.com/rajveer43/VeloxQuant-MLX/pull/97",
    twin="flexgen:group=32",
)
@dataclass(frozen=True)
class GroupSizeHardcodedInDequant(FlexGen):
    """Codes are made with the group that was asked for, and read back with scales and minima spread over 64 channels
    each, repeated or cropped to the width of a head.

    Found in a library of quantizers for MLX. Shows with any group but the default one, as errors of the size of the
    groups' differences; no shape is ever wrong.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that reads with the default group."""
        return DefaultGroupLayer(shape, index, self)


class DefaultGroupLayer(FlexGenLayer):
    """Reads with the default group."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = (DefaultGroupPacked(self.method.bits, self.method.group, "token") for _ in "kv")


@bug("bit-width-constants-hardcoded", "https://github.com/vllm-project/vllm/pull/38479", twin="kivi:bits=4")
@dataclass(frozen=True)
class BitWidthConstantsHardcoded(KIVI):
    """Codes are unpacked with the mask of two bits whatever their width, so of four bits the upper two are lost.

    Found in a draft of a quantized cache for vLLM. Shows at 4 bits only, where it ruins everything; 2 bits are right.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that reads two bits."""
        return TwoBitLayer(shape, index, self)


class TwoBitLayer(KIVILayer):
    """Reads the lower two bits."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        bits, group = self.method.bits, self.method.group
        self.kq, self.vq = TwoBitPacked(bits, group, "channel"), TwoBitPacked(bits, group, "token")


@bug(
    "scale-applied-to-unquantized-cache",
    "https://github.com/sgl-project/sglang/pull/18396",
    twin="kvcheck.zoo.twins.calibrated.Calibrated:quantized=false",
)
@dataclass(frozen=True)
class ScaleAppliedToUnquantizedCache(Calibrated):
    """The scale of the keys that comes with the model is multiplied into the scores whenever there is one, also where
    keys are stored in 16 bits and nothing was divided by it; the scores shrink and attention becomes flat.

    Found in sglang, with calibrated checkpoints. Shows when quantization is switched off.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A 16-bit layer that uses its scale."""
        return super().layer(shape, index) if self.quantized else ShrunkLayer(shape, index, self)


class ShrunkLayer(PlainLayer):
    """Folds the scale of the keys into the scores."""

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """With the scores times the scale."""
        return super().attend(query, (query.shape[-1] ** -0.5 if scaling is None else scaling) * self.scales[0])


@bug("scales-fall-back-to-one", "https://github.com/sgl-project/sglang/pull/20705", twin="fp8")
@dataclass(frozen=True)
class ScalesFallBackToOne(FP8):
    """The scales are measured and kept, in a field that neither rounding nor reading looks at; both use the default of
    another field, 1, so that large numbers saturate at 448 and small ones fall among the subnormal ones.

    Found in sglang's loader of calibrated scales. Shows on models whose keys or values are very large or very small.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer whose scales are not used."""
        return UnscaledLayer(shape, index, self)


class UnscaledLayer(FP8Layer):
    """Rounds without a scale."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = UnscaledFloats(self.method.scale), UnscaledFloats(self.method.scale)


@bug("constant-group-divides-by-zero", "https://github.com/openvinotoolkit/openvino/pull/28326", twin="kivi")
@dataclass(frozen=True)
class ConstantGroupDividesByZero(KIVI):
    """A group is stored as its scale and its minimum divided by that scale, and nothing keeps the scale of a group of
    equal numbers from being 0; its zero point is then infinite or NaN, and so is what is read.

    Found in OpenVINO's quantized cache. Shows where a channel is dead, or where 32 tokens have the same key in one.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with zero points."""
        return ZeroPointLayer(shape, index, self)


class ZeroPointLayer(KIVILayer):
    """Keys and values with zero points."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        bits, group = self.method.bits, self.method.group
        self.kq, self.vq = ZeroPointPacked(bits, group, "channel"), ZeroPointPacked(bits, group, "token")


@bug("reciprocal-scale-overflows-fp16", "https://github.com/openvinotoolkit/openvino/pull/37095", twin="kivi:bits=4")
@dataclass(frozen=True)
class ReciprocalScaleOverflowsFp16(KIVI):
    """A group is stored as levels / range in float16, with ranges held above 0.0001: at 4 bits that is 150,000 for a
    group of nearly equal numbers, more than float16 can hold, and what is read of it is not finite.

    Found in OpenVINO's cache with scales per channel. Shows where a channel of the keys is nearly constant over 32
    tokens; it would not with metadata in float32.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with reciprocal scales of keys."""
        return ReciprocalLayer(shape, index, self)


class ReciprocalLayer(KIVILayer):
    """Keys, per channel, with reciprocal scales."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = ReciprocalPacked(self.method.bits, self.method.group, "channel")


@bug("half-values-dropped-in-decode", "https://github.com/TheTom/turboquant_plus/issues/99", twin="flexgen")
@dataclass(frozen=True)
class HalfValuesDroppedInDecode(FlexGen):
    """The way that one new token of one row attends takes four of every eight channels of the dequantized values and
    leaves the others at zero; blocks of tokens and batches go another way, which is right.

    Found in a fork of llama.cpp. Shows in generation and not in perplexity, and not where rows are decoded together.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with a way of its own for one token."""
        return OneQueryLayer(shape, index, self)


class OneQueryLayer(FlexGenLayer):
    """Loses half of the values where one token attends."""

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attention of some rows; one token of one row goes its own way."""
        if query.shape[0] > 1 or query.shape[2] > 1 or not self.vq.length:
            return super().answer(query, rows)
        keys, values = self.read(rows, query.dtype)
        eights = values.unflatten(3, (-1, 8))
        eights[:, :, : self.vq.length, :, 4:] = 0
        return self.attention(query, keys, values, rows)


@bug(
    "tail-block-truncated",
    "https://github.com/TheTom/llama-cpp-turboquant/pull/4",
    twin="kvcheck.zoo.twins.turbo.Turbo:block=24",
)
@dataclass(frozen=True)
class TailBlockTruncated(Turbo):
    """The number of blocks of a vector is head_dim // block, so that the channels behind the last whole block are never
    stored: their place is there and holds zeros.

    Found in a fork of llama.cpp. Shows where the block does not divide head_dim.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that stores whole blocks."""
        return WholeBlocksLayer(shape, index, self)


class WholeBlocksLayer(TurboLayer):
    """Stores whole blocks."""

    def store(self) -> Turned:
        """An empty store."""
        store = WholeBlocks(self.method.bits, self.method.blocks(self.shape.head_dim), self.index)
        store.block = self.method.block
        return store


@bug(
    "codebook-fitted-to-wrong-variance",
    "https://github.com/TheTom/llama-cpp-turboquant/pull/197",
    twin="kvcheck.zoo.twins.turbo.Turbo",
)
@dataclass(frozen=True)
class CodebookFittedToWrongVariance(Turbo):
    """The centroids are those of a normal distribution of standard deviation 0.65, while the entries that they are to
    stand for have 1: the outer ones lie too far inside, and large entries are cut.

    Found in a fork of llama.cpp. Shows always, as more error than the bits account for.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with a narrow codebook."""
        return NarrowLayer(shape, index, self)


class NarrowLayer(TurboLayer):
    """Stores with the narrow codebook."""

    def store(self) -> Turned:
        """An empty store."""
        return Narrow(self.method.bits, self.method.blocks(self.shape.head_dim), self.index)


@bug(
    "shared-layer-uses-own-quant-params",
    "https://github.com/Alberto-Codes/turboquant-vllm/issues/79",
    twin="kvcheck.zoo.twins.mix_turbo.MixTurbo",
)
@dataclass(frozen=True)
class SharedLayerUsesOwnQuantParams(MixTurbo):
    """A layer that reads another one's keys and values turns them back by the rotation of its own index, not by that of
    the layer that has stored them.

    Found in a TurboQuant plug-in for vLLM. Shows in models whose layers share keys and values, from the first layer on
    that reads another one's.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that makes keys and values, or one that misreads another's."""
        kind = TurnedMadeLayer if self.layout.makes(index) else OwnRotationLayer
        return kind(shape, index, self)


class OwnRotationLayer(TurnedReadLayer):
    """Reads by its own rotation."""

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The producer's codes, turned back wrongly."""
        source, read = self.producer, []
        for store, tail in ((source.kq, source.keys), (source.vq, source.values)):
            mine = copy.copy(store)
            mine.seed = self.index
            read.append(source._join(mine, tail[rows], rows, slice(None)).to(dtype))
        return read[0], read[1]
