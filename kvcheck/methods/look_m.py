"""LOOK-M: text before images; what leaves is merged into what stays. arXiv 2406.18139, SUSTechBruce/LOOK-M."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import normalize

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.front import option

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

SINKS = 4


@dataclass(frozen=True)
class LookM(Method):
    """Once, after the prompt: keep recent tokens, all text, and the image slots with most attention; merge the rest.

    Scores are the attention that a slot receives from the whole prompt. Kept are the `recent` newest tokens, and of the
    others the `heavy` best; with `text_prior` every text token ranks before any image slot, and all text stays even
    beyond that number. Each slot that leaves goes to the kept one whose key has the largest cosine with its own. With
    merge="pivot" it contributes the mean of the two, with "average" itself; key and value of the kept slot become the
    mean of its own and all contributions.

    image_token: the id that marks image slots in the prompt; -1 takes the slots of the model's own images (LLaVA).
    text_prior=false is for prompts without images (PivotKV of the same code): nothing is text or image, and the first
    4 tokens stay. With the text prior the runner must prefill: a prompt that the full cache has read does not tell its
    images. What the prior keeps, and what it costs, is asked by the tasks image_needle/text and image_needle/image.
    heavy, recent: shares of the prompt, or numbers of tokens (official 0.1 and 0.1).

    Bytes: 2·d·2·Σ slots over layers, rows and kv heads; text is never dropped, so no budget bounds it.
    Errors: SpecError for values out of range; MethodUnsupported for a text-only model, or a prompt without image
    slots, with the values that would do.
    Differences from the official code: kv heads of GQA models by the group's attention (there: MHA only); rows of a
    batch may have different numbers of image slots; text is ranked first (there: by an offset that float16 overflows).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps text before image slots and merges what leaves into what stays",
        stage=Stage.COMPRESSION,
        paper="arXiv 2406.18139",
        formula="2·d·2·Σ slots over layers, rows and kv heads (at least the text)",
        refuses="text-only models, unless text_prior=false",
        knob="heavy",
        verbatim=False,
        needs=("queries",),
        variant="merges once after the prompt, by pivot (official default) or average",
    )

    heavy: float | int = 0.25
    recent: float | int = 0.25
    merge: str = "pivot"
    text_prior: bool = True
    image_token: int = -1

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "heavy", self.heavy)
        checks.budget(self.name(), "recent", self.recent)
        checks.one_of(self.name(), "merge", self.merge, ("pivot", "average"))
        checks.whole(self.name(), "image_token", self.image_token, -1, 32000)
        if self.text_prior:  # what others prefilled comes without its ids, and does not tell which slots are images
            object.__setattr__(self, "info", replace(self.info, shares_prefill=False))

    def sizes(self, prompt: int) -> tuple[int, int]:
        """(heavy, recent) for a prompt of this length."""
        heavy, recent = (checks.tokens(size, prompt, least=1) for size in (self.heavy, self.recent))
        return heavy, recent

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that merges once, after the prompt."""
        return LookMLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Tells the cache which slots are images."""
        return LookMRunner(self, loaded) if self.text_prior else super().runner(loaded)

    def protected(self, prompt: int) -> frozenset[int]:
        """The newest tokens, and the first ones where there is no text prior."""
        first = 0 if self.text_prior else min(SINKS, prompt)
        return frozenset(range(first)) | frozenset(range(max(0, prompt - self.sizes(prompt)[1]), prompt))


class LookMLayer(RaggedLayer):
    """Keeps and merges. images: (B, n) bool, the slots of images; None without a text prior."""

    meta = (*RaggedLayer.meta, "images")
    method: LookM

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.images: torch.Tensor | None = None

    def compress(self, queries: torch.Tensor) -> None:
        """Choose what stays, and merge the rest into it."""
        stays = self._choose(scoring.column_sums(queries, self.keys, self.scaling))
        if bool(stays.all()):
            return
        keys, values = self._merged(stays)
        self.store(keys, values, self.positions, stays)

    def _choose(self, received: torch.Tensor) -> torch.Tensor:
        """(B, G, n): recent, text or sinks, and the best of the others up to the number of heavy hitters."""
        heavy, recent = self.method.sizes(self.stored)
        old = max(0, self.stored - recent)
        first = torch.zeros_like(received, dtype=torch.bool)
        if self.images is not None:
            first |= ~self.images.to(first.device).unsqueeze(1)
        elif self.method.text_prior:
            raise MethodUnsupported("look_m was not told which slots are images", "prefill by method.runner(loaded)")
        else:
            first[:, :, :SINKS] = True
        order = torch.where(first, received + received.sum(dim=2, keepdim=True) + 1, received)[:, :, :old]
        stays = first.clone()
        stays.scatter_(2, scoring.top(order, min(heavy, old)), True)
        stays[:, :, old:] = True
        return stays

    def _merged(self, stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, G, n, d) in which every slot that stays has taken in those that go to it."""
        keys, values = self.keys.float(), self.values.float()
        near = self._nearest(keys, stays).unsqueeze(-1).expand_as(keys)
        gone = (~stays).unsqueeze(-1)
        counts = torch.ones_like(keys).scatter_add_(2, near, gone.to(keys.dtype).expand_as(keys))
        out = []
        for each in (keys, values):
            part = each if self.method.merge == "average" else (each + each.gather(2, near)) / 2
            out.append((each.scatter_add(2, near, part * gone) / counts).to(self.dtype))
        return out[0], out[1]

    @staticmethod
    def _nearest(keys: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
        """(B, G, n): for every slot the one that stays and whose key has the largest cosine."""
        unit, found = normalize(keys, dim=3), []
        for block in unit.split(256, dim=2):
            alike = torch.matmul(block, unit.transpose(2, 3)).masked_fill(~stays.unsqueeze(2), float("-inf"))
            found.append(alike.argmax(dim=3))
        return torch.cat(found, dim=2)


class LookMRunner(MethodRunner):
    """Looks for image slots in the prompt."""

    def __init__(self, method: LookM, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.named = method.image_token
        self.vision = loaded.vision
        if self.vision is None and self.named < 0:
            raise MethodUnsupported(
                f"look_m keeps text before image slots, and {loaded.name} is a text-only model",
                f"without images: {option('methods')}=look_m:text_prior=false; or name the token of image slots: "
                "image_token=ID",
            )

    def slots(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, n) bool: which of these are slots of images; a token of the user's own counts for those of the model."""
        if self.vision is None or self.named not in (-1, self.vision.slots.id):
            return ids == self.named
        return self.vision.shown(ids)

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill. Raises MethodUnsupported for a prompt without images."""
        images = self.slots(ids)
        if not bool(images.any(dim=1).all()):
            raise MethodUnsupported("look_m: a prompt has no image slot", "without images: look_m:text_prior=false")
        cache = self.build()
        for layer in cache.layers:
            layer.images = images
        logits = self.feed(cache, ids)[:, -1]
        for layer in cache.layers:
            layer.images = None
        return cache, logits


METHOD = LookM
