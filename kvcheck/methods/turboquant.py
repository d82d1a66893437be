"""TurboQuant: rotated directions in a codebook made for them, and norms. arXiv 2504.19874."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.quantize import QuantLayer, fills_bytes
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.turned import Turned
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.front import option

DISTORTION = {2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Mean squared error of the best codebook of so many bits for standard normal numbers (Max 1960)."""


@dataclass(frozen=True)
class TurboQuant(KeepsAll):
    """Store every key and value vector as its norm and the codes of its randomly rotated direction.

    bits: 2, 3 or 4 per channel. A vector of d channels is divided by its norm (float16), turned by a random orthogonal
    matrix that is the same for all tokens of a layer, and each of its d entries becomes the nearest of 2^bits
    centroids. They are the Lloyd-Max centroids of the distribution that such an entry has whatever the vector was, that
    of a coordinate of a point on the sphere; so nothing is calibrated and no group has a scale. Codes are packed.
    sketch: keys take one of their bits for the sign of a Gaussian projection (d x d, the same for all tokens of a
    layer) of what the other bits leave over, and store the norm of that (float16); estimated by
    sqrt(pi/2)/d · norm · Sᵀ sign(S r), inner products with a query are then unbiased over projections, and noisier.
    recent: R, the newest tokens, which stay in 16 bits (0: none). A forward attends to its own tokens unquantized, so
    the prompt's logits are those of the full cache; then everything but the newest R is quantized, decoded tokens too.

    Bytes after n tokens, r = min(n, R): L·B·G·[(n - r)·(d·bits/4 + 4 + 2·sketch) + 4·r·d]; rotations and projections
    are drawn from the index of the layer, and are no part of a cache.
    Errors: SpecError for values out of range, MethodUnsupported for a head_dim whose codes do not fill whole bytes.
    Differences from the paper: all channels have the same bits (there, outlier channels get one more, for 2.5 and 3.5
    on average); the residual of the sketch is projected after the rotation, which is the same in distribution. There is
    no official code.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="stores norms, and randomly rotated directions in a codebook made for them",
        stage=Stage.COMPRESSION,
        paper="arXiv 2504.19874",
        formula="L·B·G·[(n - r)·(d·bits/4 + 4 + 2·sketch) + 4·r·d], r = min(n, recent)",
        refuses="models whose codes do not fill whole bytes",
        knob="bits",
        verbatim=False,
        variant="TurboQuant-mse, and with sketch=true TurboQuant-prod for keys; the same bits for all channels (the "
        "paper gives outlier channels one more); no official code",
        lossless=Lossless.at("recent=102400"),
        exempt={
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized",
            "what_was_read_back_is_stored_without_loss": "what is read back has another norm, and other directions",
        },
    )

    bits: int = 4
    sketch: bool = False
    recent: int = 0

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.one_of(self.name(), "bits", self.bits, (4, 2, 3))
        checks.whole(self.name(), "recent", self.recent, 0, 128)

    def check(self, shape: ModelShape) -> None:
        """Codes and signs must fill whole bytes."""
        widths = (self.bits - self.sketch, *(1,) * self.sketch)
        if not all(fills_bytes(width, self.blocks(shape.head_dim)) for width in widths):
            raise MethodUnsupported(
                f"{self.spec}: the {self.bits} bits of each of {shape.head_dim} channels do not fill whole bytes",
                f"a head_dim that is a multiple of 8 will do, or {option('methods')}={self.name()}:bits=4 for an even "
                "one",
            )

    def blocks(self, head_dim: int) -> tuple[int, ...]:
        """Channels of every block of a vector that has a norm of its own: one block."""
        return (head_dim,)

    def rounding(self) -> tuple[float, float]:
        """The error of the codebook, with slack. A large channel of the keys, whose error the rotation spreads over
        all of them, takes the others along, so nothing is promised of keys."""
        return math.inf, 1.3 * DISTORTION[self.bits] ** 0.5

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that stores what is old enough turned."""
        return TurboQuantLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes, a float16 norm per block, another one per block of a sketch; the newest tokens in 16 bits."""
        seen, blocks = prompt + decoded, len(self.blocks(shape.head_dim))
        recent = min(seen, self.recent)
        token = shape.head_dim * self.bits // 4 + 2 * blocks * (2 + self.sketch)
        heads = shape.layers * batch * shape.kv_heads
        return heads * ((seen - recent) * token + 2 * recent * shape.head_dim * shape.itemsize)


class TurboQuantLayer(QuantLayer):
    """Stores turned whatever is older than the newest R."""

    method: TurboQuant

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = self.store(self.method.sketch), self.store(False)

    def store(self, sketch: bool) -> Turned:
        """An empty store of keys or values."""
        return Turned(self.method.bits, self.method.blocks(self.shape.head_dim), self.index, sketch)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All but the newest."""
        return max(0, keys - self.method.recent), max(0, values - self.method.recent)


METHOD = TurboQuant
