"""Bugs of positions: at which angle keys and queries meet."""

from __future__ import annotations

import torch

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.cake import Cake
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.mixattention import MadeLayer, MixAttention, ReadLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.padded import PaddedRunner, PaddedSnapKV
from kvcheck.zoo.counterparts.shifted import Shifted, ShiftedLayer


@bug("offset-is-retained-rows", "https://github.com/rajveer43/VeloxQuant-MLX/issues/389")
class OffsetIsRetainedRows(H2O):
    """The length that the model asks for, to number the next token, is the number of slots that are left: the token is
    rotated to a position that the text has long passed, while the stored keys stay where they were.

    From VeloxQuant-MLX, where it was repaired cache by cache. Shows once something has been evicted, and more with
    every token that leaves.
    """


@used_by(OffsetIsRetainedRows)
class SlotCountLayer(H2OLayer):
    """Takes slots for tokens."""

    def get_seq_length(self, *args: object) -> int:
        """The slots that are stored."""
        return self.stored


@bug("rerotation-uses-unscaled-rope", "https://github.com/rajveer43/VeloxQuant-MLX/issues/148")
class RerotationUsesUnscaledRope(Shifted):
    """Keys that move to new positions are turned by the textbook frequencies base^(-2i/d), also on a model whose
    frequencies are scaled: they arrive at angles that the model gives to no position.

    From VeloxQuant-MLX; kvpress had the like with YaRN. Shows on models with scaled rotary embeddings (linear, llama3),
    once tokens have been discarded. Where the model's frequencies are the textbook's, nothing is wrong.
    """


@used_by(RerotationUsesUnscaledRope)
class TextbookLayer(ShiftedLayer):
    """Takes the base from the two fastest channels, which the usual scalings leave in their ratio."""

    @property
    def rope(self) -> tuple[float, ...]:
        """base^(-2i/d)."""
        own = self.shape.rope or ()
        return tuple((own[1] / own[0]) ** at for at in range(len(own))) if len(own) > 1 else own


@bug("left-pad-shared-positions", "https://github.com/unslothai/unsloth/pull/3795")
class LeftPadSharedPositions(PaddedSnapKV):
    """All rows of a padded batch share one numbering from 0, in which the pads count: the keys of a prompt are rotated
    by as many positions too far as it has pads, and the tokens that follow it are numbered without them.

    From unsloth's fast generation, which passed the cache position on as the position of every row. Shows on prompts
    that are padded; one that fills its row is right.
    """


@used_by(LeftPadSharedPositions)
class SharedPositionsRunner(PaddedRunner):
    """Numbers the columns of a batch, not the tokens of a row."""

    def positions(self, pads: int, ids: torch.Tensor) -> torch.Tensor:
        """0, 1, 2, … for every row."""
        return torch.arange(pads + ids.shape[1], device=ids.device).expand(len(ids), -1)


@bug("shared-layer-query-offset-after-update", "https://github.com/ml-explore/mlx-lm/pull/1702")
class SharedLayerQueryOffsetAfterUpdate(MixAttention):
    """A layer that reads another layer's keys asks that layer for the position of its queries, after it has taken in
    the new tokens: its queries are rotated too far by the length of the forward.

    From mlx-lm, on models whose layers share keys. Shows in every forward, by one position while decoding and by the
    whole prompt when it comes at once, so that the two disagree.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that makes keys and values, or one that asks too late."""
        kind = MadeLayer if self.layout.makes(index) else LateOffsetLayer
        return kind(shape, index, self)


class LateOffsetLayer(ReadLayer):
    """Reads the donor's length after its update."""

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Attend with queries that begin where the donor ends."""
        late = torch.tensor(query.shape[2], device=query.device)
        return super().attend(rotate(query, late, self.shape.rope or ()), scaling)


@bug("pending-shift-overwritten", "https://github.com/ggml-org/llama.cpp/pull/3835")
class PendingShiftOverwritten(Shifted):
    """A shift that is asked for replaces the one that waits at the same slots, when it should be added to it: of
    several groups that leave before the next forward, only the last one moves the keys.

    From llama.cpp's cells, whose delta was assigned. Shows when two groups are discarded at a time (a prompt far above
    the window, a long second turn); one group at a time is right.
    """


@used_by(PendingShiftOverwritten)
class LastShiftLayer(ShiftedLayer):
    """Assigns shifts."""

    def ask(self, first: int, shift: int) -> None:
        """Forget what was asked for before."""
        if self.asked is not None:
            self.asked[:, first:] = shift


RATE = 1 / 64
_RACE = torch.Generator()
_RACE.seed()


@bug("racy-partial-rotation", "https://github.com/1CatAI/1Cat-vLLM/pull/162")
class RacyPartialRotation(Cake):
    """Two stores write the same channels of a key in no order, one before and one after the rotation: now and then the
    first comes last, and a token keeps a quarter of its channels as they were before.

    From a fork of vLLM, whose kernel rotates and stores in one go. Shows at random tokens, here one in 64 per row and
    kv head, so that no two runs agree.
    """


@used_by(RacyPartialRotation)
class RacyLayer(CacheLayer):
    """Leaves some channels of some keys as they were before their rotation."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in keys, of which some have lost the race."""
        rope = self.shape.rope
        if rope is not None:
            positions = torch.arange(self.seen, self.seen + key_states.shape[2], device=key_states.device)
            raw = unrotate(key_states, positions, rope)
            lost = (torch.rand(key_states.shape[:3], generator=_RACE) < RATE).to(key_states.device)
            channel = torch.arange(key_states.shape[3], device=key_states.device) % len(rope)
            key_states = torch.where(lost.unsqueeze(-1) & (channel < len(rope) // 4), raw, key_states)
        return super().update(key_states, value_states, *args, **kwargs)
