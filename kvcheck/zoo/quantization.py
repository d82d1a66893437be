"""Bugs of caches that store fewer bits: what is quantized, by which scale, and how it is read back."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.quantize import Packed
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.turned import Turned
from kvcheck.methods.flexgen import FlexGen, FlexGenLayer
from kvcheck.methods.fp8 import FORMAT, FP8, LARGEST, Floats, FP8Layer
from kvcheck.methods.kivi import KIVI, KIVILayer
from kvcheck.methods.turboquant import TurboQuantLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.calibrated import Calibrated, PlainLayer
from kvcheck.zoo.counterparts.turbo import MixTurbo, Turbo, TurnedMadeLayer, TurnedReadLayer


class DefaultGroupPacked(Packed):
    """Spreads what it knows of a group over 64 channels."""

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """By the wrong group's scale from the second group on."""
        at = torch.arange(groups.shape[3] * groups.shape[4], device=groups.device) // FlexGen.group
        at = at.clamp(max=groups.shape[3] - 1).view(groups.shape[3:])
        groups.mul_(scale.squeeze(-1)[..., at]).add_(low.squeeze(-1)[..., at])


class TwoBitPacked(Packed):
    """Knows the mask of two bits."""

    def unpack(self, packed: torch.Tensor, out: torch.Tensor) -> None:
        """The lower two bits of every code."""
        super().unpack(packed, out)
        out.remainder_(4)


class UnscaledFloats(Floats):
    """factor: what rounding and reading use."""

    factor = 1.0

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d), and measure their scales."""
        super().append(values)
        if self.codes is not None:
            plain = (values.float() / self.factor).clamp(-LARGEST, LARGEST).to(FORMAT).view(torch.uint8)
            self.codes.used[:, :, -values.shape[2] :] = plain

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.codes is not None:
            out.copy_(self.codes.used[rows, heads].view(FORMAT)).mul_(self.factor)


class ZeroPointPacked(Packed):
    """Metadata of a group: its scale, and its minimum in units of that."""

    def encode(self, grouped: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, scales and zero points."""
        wide, levels = grouped.float(), 2**self.bits - 1
        low = wide.amin(dim, keepdim=True)
        scale = ((wide.amax(dim, keepdim=True) - low) / levels).half()
        codes = ((wide - low) / scale.float()).round().nan_to_num(0).clamp_(0, levels)
        return codes.to(torch.uint8), scale.squeeze(dim), (low / scale.float()).half().squeeze(dim)

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """(code + zero) · scale."""
        groups.add_(low).mul_(scale)


class ReciprocalPacked(Packed):
    """Metadata of a group: the inverse of its scale, and its minimum in units of the scale."""

    def encode(self, grouped: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, inverse scales and zero points."""
        wide, levels = grouped.float(), 2**self.bits - 1
        low = wide.amin(dim, keepdim=True)
        inverse = (levels / (wide.amax(dim, keepdim=True) - low).clamp(min=1e-4)).half()
        codes = ((wide - low) * inverse.float()).round().nan_to_num(0, levels).clamp_(0, levels)
        return codes.to(torch.uint8), inverse.squeeze(dim), (low * inverse.float()).half().squeeze(dim)

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """(code + zero) / inverse scale."""
        groups.add_(low).div_(scale)


class WholeBlocks(Turned):
    """Stores whole blocks. block: channels of one."""

    block = 0

    def append(self, values: torch.Tensor) -> None:
        """Store the whole blocks of tokens (B, G, t, d)."""
        whole = values.clone()
        whole[..., values.shape[3] // self.block * self.block :] = 0
        super().append(whole)


class Narrow(Turned):
    """Turned, with a codebook that is too narrow."""

    def centroids(self, size: int) -> tuple[float, ...]:
        """Those of a smaller standard deviation."""
        return tuple(0.65 * each for each in super().centroids(size))


@bug("prefill-quantized-despite-residual", "https://github.com/huggingface/transformers/issues/34189")
class PrefillQuantizedDespiteResidual(KIVI):
    """The prompt is quantized to its end, and every later flush empties the tails; the newest tokens that are promised
    in 16 bits are so only between two flushes. Keys of an unfinished group stay, since they have no scale yet.

    Found in the quantized cache of transformers. Shows on every prompt: the newest 128 tokens lose what the residual is
    there to keep, most of all at 2 bits.
    """


@used_by(PrefillQuantizedDespiteResidual)
class FlushedLayer(KIVILayer):
    """Quantizes the whole tails after the prompt, and again whenever they reach the residual."""

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """Everything, or nothing."""
        method, first = self.method, self.seen == self.prompt
        flush_keys, flush_values = (first or size >= method.residual for size in (keys, values))
        return (keys - keys % method.group) * flush_keys, values * flush_values


@bug("keys-quantized-per-vector", "https://github.com/ahb-sjsu/turboquant-pro/pull/98", "bits=4")
class KeysQuantizedPerVector(KIVI):
    """The groups of keys lie along the channels of one token, as those of values, so that a channel with large keys
    sets the scale of its neighbours, whose differences between tokens drown in the rounding.

    Found in a library of rotated quantizers that normalised keys token by token. Shows on models whose keys have
    outlier channels; bytes and mean errors look right.
    """


@used_by(KeysQuantizedPerVector)
class PerVectorLayer(KIVILayer):
    """Keys by token."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = Packed(self.method.bits, self.method.group, "token")


@bug("group-size-hardcoded-in-dequant", "https://github.com/rajveer43/VeloxQuant-MLX/pull/97", "group=32")
class GroupSizeHardcodedInDequant(FlexGen):
    """Codes are made with the group that was asked for, and read back with scales and minima spread over 64 channels
    each, repeated or cropped to the width of a head.

    Found in a library of quantizers for MLX. Shows with any group but the default one, as errors of the size of the
    groups' differences; no shape is ever wrong.
    """


@used_by(GroupSizeHardcodedInDequant)
class DefaultGroupLayer(FlexGenLayer):
    """Reads with the default group."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = (DefaultGroupPacked(self.method.bits, self.method.group, "token") for _ in "kv")


@bug("bit-width-constants-hardcoded", "https://github.com/vllm-project/vllm/pull/38479", "bits=4")
class BitWidthConstantsHardcoded(KIVI):
    """Codes are unpacked with the mask of two bits whatever their width, so of four bits the upper two are lost.

    Found in a draft of a quantized cache for vLLM. Shows at 4 bits only, where it ruins everything; 2 bits are right.
    """


@used_by(BitWidthConstantsHardcoded)
class TwoBitLayer(KIVILayer):
    """Reads the lower two bits."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        bits, group = self.method.bits, self.method.group
        self.kq, self.vq = TwoBitPacked(bits, group, "channel"), TwoBitPacked(bits, group, "token")


@bug("scale-applied-to-unquantized-cache", "https://github.com/sgl-project/sglang/pull/18396", "quantized=false")
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


@bug("scales-fall-back-to-one", "https://github.com/sgl-project/sglang/pull/20705")
class ScalesFallBackToOne(FP8):
    """The scales are measured and kept, in a field that neither rounding nor reading looks at; both use the default of
    another field, 1, so that large numbers saturate at 448 and small ones fall among the subnormal ones.

    Found in sglang's loader of calibrated scales. Shows on models whose keys or values are very large or very small.
    """


@used_by(ScalesFallBackToOne)
class UnscaledLayer(FP8Layer):
    """Rounds without a scale."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = UnscaledFloats(self.method.scale), UnscaledFloats(self.method.scale)


@bug("constant-group-divides-by-zero", "https://github.com/openvinotoolkit/openvino/pull/28326")
class ConstantGroupDividesByZero(KIVI):
    """A group is stored as its scale and its minimum divided by that scale, and nothing keeps the scale of a group of
    equal numbers from being 0; its zero point is then infinite or NaN, and so is what is read.

    Found in OpenVINO's quantized cache. Shows where a channel is dead, or where 32 tokens have the same key in one.
    """


@used_by(ConstantGroupDividesByZero)
class ZeroPointLayer(KIVILayer):
    """Keys and values with zero points."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        bits, group = self.method.bits, self.method.group
        self.kq, self.vq = ZeroPointPacked(bits, group, "channel"), ZeroPointPacked(bits, group, "token")


@bug("reciprocal-scale-overflows-fp16", "https://github.com/openvinotoolkit/openvino/pull/37095", "bits=4")
class ReciprocalScaleOverflowsFp16(KIVI):
    """A group is stored as levels / range in float16, with ranges held above 0.0001: at 4 bits that is 150,000 for a
    group of nearly equal numbers, more than float16 can hold, and what is read of it is not finite.

    Found in OpenVINO's cache with scales per channel. Shows where a channel of the keys is nearly constant over 32
    tokens; it would not with metadata in float32.
    """


@used_by(ReciprocalScaleOverflowsFp16)
class ReciprocalLayer(KIVILayer):
    """Keys, per channel, with reciprocal scales."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = ReciprocalPacked(self.method.bits, self.method.group, "channel")


@bug("half-values-dropped-in-decode", "https://github.com/TheTom/turboquant_plus/issues/99")
class HalfValuesDroppedInDecode(FlexGen):
    """The way that one new token of one row attends takes four of every eight channels of the dequantized values and
    leaves the others at zero; blocks of tokens and batches go another way, which is right.

    Found in a fork of llama.cpp. Shows in generation and not in perplexity, and not where rows are decoded together.
    """


@used_by(HalfValuesDroppedInDecode)
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


@bug("tail-block-truncated", "https://github.com/TheTom/llama-cpp-turboquant/pull/4", "block=24")
@dataclass(frozen=True)
class TailBlockTruncated(Turbo):
    """The number of blocks of a vector is head_dim // block, so that the channels behind the last whole block are never
    stored: their place is there and holds zeros.

    Found in a fork of llama.cpp. Shows where the block does not divide head_dim.
    """


@used_by(TailBlockTruncated)
class WholeBlocksLayer(TurboQuantLayer):
    """Stores whole blocks."""

    method: Turbo

    def store(self, sketch: bool) -> Turned:
        """An empty store."""
        store = WholeBlocks(self.method.bits, self.method.blocks(self.shape.head_dim), self.index, sketch)
        store.block = self.method.block
        return store


@bug("codebook-fitted-to-wrong-variance", "https://github.com/TheTom/llama-cpp-turboquant/pull/197")
class CodebookFittedToWrongVariance(Turbo):
    """The centroids are those of a normal distribution of standard deviation 0.65, while the entries that they are to
    stand for have 1: the outer ones lie too far inside, and large entries are cut.

    Found in a fork of llama.cpp. Shows always, as more error than the bits account for.
    """


@used_by(CodebookFittedToWrongVariance)
class NarrowLayer(TurboQuantLayer):
    """Stores with the narrow codebook."""

    def store(self, sketch: bool) -> Turned:
        """An empty store."""
        return Narrow(self.method.bits, self.method.blocks(self.shape.head_dim), self.index, sketch)


@bug("shared-layer-uses-own-quant-params", "https://github.com/Alberto-Codes/turboquant-vllm/issues/79")
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
