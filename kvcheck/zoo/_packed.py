"""The stores of quantized tokens that the bugs of `quantization` write to, each wrong in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.quantize import Packed, pack, quantize, unpack
from kvcheck.methods.flexgen import FlexGen
from kvcheck.methods.fp8 import FORMAT, LARGEST, Floats
from kvcheck.zoo.twins.turbo import Turned, centroids


class OpenPacked(Packed):
    """As Packed, and right, in three parts that can be replaced.

    `encode` makes codes, scales and lows; `lanes` unpacks codes; `decode` turns them into values.
    """

    def encode(self, grouped: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes of groups that lie along `dim`, and two float16 numbers per group (`dim` removed)."""
        return quantize(grouped, self.bits, dim)

    def lanes(self, packed: torch.Tensor, out: torch.Tensor) -> None:
        """Write the codes of packed bytes into out (b, g, T, d)."""
        unpack(packed, self.bits, out)

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """Turn codes into values, in place; scale and low broadcast against the groups."""
        groups.mul_(scale).add_(low)

    def append(self, values: torch.Tensor) -> None:
        """Quantize and store tokens (B, G, t, d); per channel, t must be a multiple of the group."""
        batch, heads, tokens, dim = values.shape
        lanes, inner = 8 // self.bits, -1 if self.along == "token" else -2
        codes, scale, low = self.encode(self._grouped(values), inner)
        codes = codes.reshape(batch, heads, tokens, dim)
        split = codes.unflatten(3, (lanes, -1)) if self.along == "token" else codes.unflatten(2, (-1, lanes))
        parts = (pack(split, self.bits), scale, low)
        if self.codes is None or self.scale is None or self.low is None:
            self.codes, self.scale, self.low = (GrowableBuffer(part) for part in parts)
        else:
            for buffer, part in zip((self.codes, self.scale, self.low), parts, strict=True):
                buffer.append(part)

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.codes is None or self.scale is None or self.low is None:
            return
        self.lanes(self.codes.used[rows, heads], out)
        inner = -1 if self.along == "token" else -2
        scale, low = (buffer.used[rows, heads].float().unsqueeze(inner) for buffer in (self.scale, self.low))
        self.decode(self._grouped(out), scale, low)

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        """Values (b, g, T, d) with the groups as a dimension of their own: the last, or the second last."""
        return values.unflatten(3 if self.along == "token" else 2, (-1, self.group))

    def select(self, rows: Sequence[int] | torch.Tensor) -> OpenPacked:
        """Copies of these rows of the batch."""
        twin = type(self)(self.bits, self.group, self.along)
        if self.codes is not None and self.scale is not None and self.low is not None:
            twin.codes, twin.scale, twin.low = (each.select(rows) for each in (self.codes, self.scale, self.low))
        return twin


class DefaultGroupPacked(OpenPacked):
    """Spreads what it knows of a group over 64 channels."""

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """By the wrong group's scale from the second group on."""
        at = torch.arange(groups.shape[3] * groups.shape[4], device=groups.device) // FlexGen.group
        at = at.clamp(max=groups.shape[3] - 1).view(groups.shape[3:])
        groups.mul_(scale.squeeze(-1)[..., at]).add_(low.squeeze(-1)[..., at])


class TwoBitPacked(OpenPacked):
    """Knows the mask of two bits."""

    def lanes(self, packed: torch.Tensor, out: torch.Tensor) -> None:
        """The lower two bits of every code."""
        super().lanes(packed, out)
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

    def select(self, rows: Sequence[int] | torch.Tensor) -> UnscaledFloats:
        """Copies of these rows of the batch."""
        twin = UnscaledFloats(self.per)
        if self.codes is not None and self.scale is not None:
            twin.codes, twin.scale = self.codes.select(rows), self.scale.select(rows)
        return twin


class ZeroPointPacked(OpenPacked):
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


class ReciprocalPacked(OpenPacked):
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

    def select(self, rows: Sequence[int] | torch.Tensor) -> Turned:
        """Copies of these rows of the batch."""
        twin = super().select(rows)
        twin.block = self.block  # type: ignore[attr-defined]
        return twin


class Narrow(Turned):
    """Turned, with a codebook that is too narrow."""

    def centroids(self) -> tuple[float, ...]:
        """Those of a smaller standard deviation."""
        return tuple(0.65 * each for each in centroids(self.bits))
