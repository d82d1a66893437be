"""Images in the prompt of a vision-language model: slots in the text, and what the model's own tower puts into them.

Slots get ids beyond the vocabulary, one id for every slot of every image, and the input embedding looks them up. So ids
alone say what is fed: a runner may feed rows together or one by one, a prompt at once or in chunks. The same image
always has the same ids. The embeddings of the last images are held, up to HELD bytes; earlier ones are made again when
needed.

Served: LLaVA (1.0 and 1.5) and InternVL (2.5 to 3.5), whose language models read an image as a run of slots, at plain
positions, causally.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.core.front import option
from kvcheck.core.settings import KERNELS as NAMES
from kvcheck.models.fingerprint import IMAGES
from kvcheck.tasks.images import MARK, Image

if TYPE_CHECKING:
    from kvcheck.models.pretrained import Config, Model, Tokenizer

SERVED = ("llava", "internvl")
"""Model types. What is tried in tests/models and tests/backends stands here, nothing else."""
TOWERS = ("clip_vision_model", "siglip_vision_model", "internvl_vision")
"""Towers that take one square of pixels and give a fixed number of slots."""
CLASSED = TOWERS[:1]
"""Of these, those that put a token for the whole image before the patches, which "full" keeps."""
KERNELS = [getattr(SDPBackend, name) for name in NAMES.values()]
HELD = 512 * 1024**2
"""Bytes of embeddings of images, and of one image in any case: 113 of LLaVA-1.5's."""


@dataclass(frozen=True)
class Slots:
    """What an image is in the text: `count` times the token `id`, which is written as `token`, between two others.

    around: what stands before and behind them, as the model's processor writes it; "" where it writes nothing.
    """

    token: str
    id: int
    count: int
    around: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, name: str, config: Config, tokenizer: Tokenizer) -> Slots | None:
        """What the config of a model says that `refuse` lets pass; None for what runs as a text model.

        Raises MethodUnsupported for a tokenizer that does not know the mark.
        """
        if not sees(config):
            return None
        seen, image = config.vision_config, int(config.image_token_id)
        token = tokenizer.convert_ids_to_tokens(image) if image < len(tokenizer) else None
        if token is None or tokenizer.encode(token, add_special_tokens=False) != [image]:
            raise MethodUnsupported(
                f"model {name!r}: its config marks images by token {image}, which its tokenizer does not have",
                "is the tokenizer the one that came with the model?",
            )
        first = int(config.vision_feature_select_strategy == "full" and seen.model_type in CLASSED)
        joined = float(getattr(config, "downsample_ratio", 1.0))  # InternVL makes one slot of several patches
        count = int(side(seen.image_size) // side(seen.patch_size) * joined) ** 2 + first
        before, behind = (getattr(tokenizer, f"{which}_image_token", None) or "" for which in ("start", "end"))
        return cls(token, image, count, (before, behind))

    def written(self, text: str) -> str:
        """The text with the slots of an image in the place of every mark."""
        before, behind = self.around
        return text.replace(MARK, f"{before}{self.token * self.count}{behind}")


def side(size: int | Sequence[int]) -> int:
    """The side of a square that a config gives as a number, or as height and width."""
    return size if isinstance(size, int) else size[0]


def sees(config: Config) -> bool:
    """Whether transformers has no class that runs this config as a decoder of text alone, only one with eyes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return hasattr(config, "vision_config") and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def refuse(name: str, config: Config) -> None:
    """Raise MethodUnsupported for a vision-language model that would be run wrongly."""
    if not sees(config):
        return
    text = config.get_text_config()
    if "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
        raise MethodUnsupported(
            f"model {name!r} ({config.model_type}) gives every token of an image three positions (M-RoPE) and shifts "
            "those of later text; kvcheck's caches hold one position per token",
            _hint(),
        )
    if config.model_type not in SERVED:
        raise MethodUnsupported(f"model {name!r} ({config.model_type}): how it reads images is not served", _hint())
    if config.vision_config.model_type not in TOWERS:
        raise MethodUnsupported(
            f"model {name!r}: the number of slots of an image depends on its size with a tower of type "
            f"{config.vision_config.model_type}",
            f"served are {' and '.join(TOWERS)}",
        )
    for what in (config.vision_config.image_size, config.vision_config.patch_size):
        if not isinstance(what, int) and len(set(what)) != 1:
            raise MethodUnsupported(f"model {name!r}: its tower takes images or patches of {what}, no squares", _hint())


class SlotEmbedding(torch.nn.Module):
    """The input embedding of a model, and behind its vocabulary the slots of the images that were shown.

    count: slots of an image. make: gives what fills them (count, hidden), by the number of the image. held: of the
    images that were used last.
    """

    def __init__(self, words: torch.nn.Module, count: int, make: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.words, self.count, self.make = words, count, make
        self.held: OrderedDict[int, torch.Tensor] = OrderedDict()

    @property
    def weight(self) -> torch.Tensor:
        """The embeddings of the words (V, hidden)."""
        return self.words.weight  # type: ignore[return-value]

    @property
    def num_embeddings(self) -> int:
        """V, without the images."""
        return int(self.weight.shape[0])

    def filling(self, image: int) -> torch.Tensor:
        """What fills the slots (count, hidden) of an image, where the words are, wherever the tower lies."""
        if image not in self.held:
            self.held[image] = self.make(image).to(self.weight.device)
        self.held.move_to_end(image)
        found = self.held[image]
        while len(self.held) > max(1, HELD // found.nbytes):
            self.held.popitem(last=False)
        return found

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, q) -> (B, q, hidden)."""
        ids = ids.to(self.weight.device)  # the first part of a model that is spread may be the tower
        slots = ids >= self.num_embeddings
        if not bool(slots.any()):
            return self.words(ids)
        embedded = self.words(ids.masked_fill(slots, 0))
        places = ids[slots] - self.num_embeddings
        images, at = (places // self.count).unique(return_inverse=True)
        table = torch.stack([self.filling(image) for image in images.tolist()])
        embedded[slots] = table[at, places % self.count].to(embedded.dtype)
        return embedded


class Vision:
    """Eyes of a loaded model: turns the images of a context into ids. Wraps the model's input embedding.

    scale: (mean, standard deviation) of the three colours, as the model's preprocessor has them.
    """

    def __init__(self, name: str, model: Model, slots: Slots, scale: tuple[Sequence[float], Sequence[float]]) -> None:
        self.name, self.model, self.slots, self.scale = name, model, slots, scale
        self.embedding = SlotEmbedding(model.get_input_embeddings(), slots.count, self._features)
        model.set_input_embeddings(self.embedding)
        model.config.vision_config._attn_implementation = "sdpa"  # a tower has no cache to attend through
        self.numbers: dict[Image, int] = {}
        self.images: list[Image] = []

    def shown(self, ids: torch.Tensor) -> torch.Tensor:
        """Which ids are slots of images, as bool."""
        return (ids >= self.embedding.num_embeddings) | (ids == self.slots.id)

    def placed(self, ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """The ids of a context whose slots these images fill, in order. Raises KvcheckError where they do not."""
        found, wanted = sum(token == self.slots.id for token in ids), self.slots.count * len(images)
        if images and found != wanted:
            raise KvcheckError(
                f"{len(images)} images fill {wanted} slots, the context has {found}",
                f"the text of a context has the mark of an image once for each, and no {self.slots.token} of its own",
            )
        filling = (self._first(image) + at for image in images for at in range(self.slots.count))
        return [next(filling) if images and token == self.slots.id else token for token in ids]

    def pixels(self, image: Image) -> torch.Tensor:
        """(1, 3, size, size): the cells enlarged, from 0 to 1, and then scaled by colour."""
        size = side(self.model.config.vision_config.image_size)
        cells = torch.tensor(image.cells, dtype=torch.float32).permute(2, 0, 1) / 255
        at = torch.arange(size) * len(image.cells) // size
        mean, deviation = (torch.tensor(part).view(3, 1, 1) for part in self.scale)
        scaled = (cells[:, at][:, :, at] - mean) / deviation
        return scaled.unsqueeze(0).to(self.model.device, self.model.dtype)

    def _first(self, image: Image) -> int:
        """The id of the first slot of an image. What fills it is made now, outside of any forward."""
        if image not in self.numbers:
            self.numbers[image] = len(self.images)
            self.images.append(image)
        number = self.numbers[image]
        self.embedding.filling(number)
        return self.embedding.num_embeddings + number * self.slots.count

    @torch.no_grad()
    def _features(self, number: int) -> torch.Tensor:
        """(count, hidden): what the model's tower and projector make of an image."""
        with sdpa_kernel(KERNELS):  # --kv-attention is about the cache, which a tower has not
            made = self.model.get_image_features(pixel_values=self.pixels(self.images[number]))
        features = torch.cat(list(made.pooler_output))
        if len(features) != self.slots.count:
            raise MethodUnsupported(
                f"model {self.name!r}: its tower makes {len(features)} slots of an image, its config says "
                f"{self.slots.count}"
            )
        return features


def scale_of(files: Path) -> tuple[list[float], list[float]] | None:
    """(mean, standard deviation) of the colours, from the preprocessor's file; None where there is none."""
    for name in IMAGES:
        if (files / name).is_file():
            found = json.loads((files / name).read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            if "image_mean" in found and "image_std" in found:
                return list(found["image_mean"]), list(found["image_std"])
    return None


def eyes(name: str, model: Model, slots: Slots | None, files: Path) -> Vision | None:
    """The eyes of a model; None for a text model. Raises MethodUnsupported where the preprocessor's file is missing."""
    if slots is None:
        return None
    scale = scale_of(files)
    if scale is None:
        raise MethodUnsupported(
            f"model {name!r} comes without image_mean and image_std, so its images cannot be scaled",
            f"put its {IMAGES[0]} into {files}",
        )
    return Vision(name, model, slots, scale)


def _hint() -> str:
    which = f"{option('model')} with a folder or a hub id such as llava-hf/llava-1.5-7b-hf"
    return f"kvcheck serves text models, LLaVA and InternVL: {which}"
