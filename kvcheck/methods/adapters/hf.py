"""The caches of transformers, by name: `transformers.quanto:nbits=4`. Parameters have transformers' own names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import transformers
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer, QuantizedCache

from kvcheck.cache import checks
from kvcheck.cache.method import Lossless, Method
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.spec import Spec, bind
from kvcheck.methods.adapters import NAMED
from kvcheck.methods.adapters.foreign import ForeignCache, info


class Maker(Protocol):
    """Parameters of a cache, and how it is made for a prompt. frees: it claims to hold less than the full cache."""

    frees: ClassVar[bool]

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A fresh cache for a prompt of so many tokens."""


@dataclass(frozen=True)
class Dynamic:
    """The full cache."""

    frees: ClassVar[bool] = False

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A DynamicCache, whose layers are those that the model's config asks for."""
        return DynamicCache(config=model.config)


@dataclass(frozen=True)
class Static:
    """Room for the prompt and `room` more tokens, allocated at once: more bytes than a full cache that grows."""

    frees: ClassVar[bool] = False
    room: int = 1024

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole("transformers.static", "room", self.room, 1, 1024)

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A StaticCache."""
        return StaticCache(config=model.config, max_cache_len=tokens + self.room)


@dataclass(frozen=True)
class SlidingWindow:
    """The newest `window` tokens of every layer; the prompt itself attends to all before.

    It claims no memory: right after the prompt the window is a view of all of the prompt, which stays alive until the
    next token comes.
    """

    frees: ClassVar[bool] = False
    window: int = 256

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole("transformers.sliding_window", "window", self.window, 2, 256)

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A Cache of DynamicSlidingWindowLayers."""
        layers = model.config.get_text_config().num_hidden_layers
        return Cache(layers=[DynamicSlidingWindowLayer(sliding_window=self.window) for _ in range(layers)])


@dataclass(frozen=True)
class Offloaded:
    """Every layer waits in CPU memory and is fetched before it attends."""

    frees: ClassVar[bool] = False

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A DynamicCache that offloads."""
        if model.device.type == "cpu":
            raise MethodUnsupported(
                "transformers.offloaded moves layers between an accelerator and the CPU; the model is on the CPU",
                f"run it with {option('device')}=cuda",
            )
        return DynamicCache(config=model.config, offloading=True)


@dataclass(frozen=True)
class Quantized:
    """Groups of `q_group_size` numbers in `nbits` bits. The prompt is quantized at once; later tokens wait in 16 bits
    until there are `residual_length` of them, then everything is quantized anew."""

    frees: ClassVar[bool] = True
    backend: ClassVar[str]
    package: ClassVar[str]
    nbits: int = 4
    q_group_size: int = 64
    residual_length: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for a missing package and values out of range."""
        here = {"quanto": "is_optimum_quanto_available", "hqq": "is_hqq_available"}[self.backend]
        if not getattr(transformers.utils, here)():
            raise SpecError(
                f"transformers.{self.backend} needs {self.package}, which is not installed",
                f"pip install {self.package}",
            )
        for name in ("nbits", "q_group_size", "residual_length"):
            checks.whole(f"transformers.{self.backend}", name, getattr(self, name), 1, 64)

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A QuantizedCache."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return QuantizedCache(backend=self.backend, config=model.config, **given)


@dataclass(frozen=True)
class Quanto(Quantized):
    """By optimum-quanto."""

    backend = "quanto"
    package = "optimum-quanto"
    axis_key: int = 0
    axis_value: int = 0


@dataclass(frozen=True)
class Hqq(Quantized):
    """By hqq, along the axis that transformers' documentation recommends for it."""

    backend = "hqq"
    package = "hqq"
    axis_key: int = 1
    axis_value: int = 1


@dataclass(frozen=True)
class Fp8:
    """8-bit floats with one scale per layer, taken from the prompt."""

    frees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError where transformers has none."""
        if not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
            raise SpecError(
                f"transformers {transformers.__version__} has no fp8 cache", f"kvcheck's own is {option('methods')}=fp8"
            )

    def __call__(self, model: PreTrainedModel, tokens: int) -> Cache:
        """A QuantizedCache."""
        return QuantizedCache(backend="fp8", config=model.config)


CACHES: dict[str, type[Maker]] = {
    "transformers.dynamic": Dynamic,
    "transformers.fp8": Fp8,
    "transformers.hqq": Hqq,
    "transformers.offloaded": Offloaded,
    "transformers.quanto": Quanto,
    "transformers.sliding_window": SlidingWindow,
    "transformers.static": Static,
}


def named(spec: Spec) -> Method:
    """The method of a name in NAMED. Raises SpecError."""
    made = bind(spec, CACHES[spec.name])
    ahead = "room is allocated ahead" if isinstance(made, Static) else ""
    whole = Lossless.ALWAYS if isinstance(made, (Dynamic, Static, Offloaded)) else Lossless.NEVER
    about = info(summary=NAMED[spec.name], frees_memory=made.frees, exceeds=ahead, lossless=whole)
    return ForeignCache(spec, info=about, make=lambda home: made(home.model, home.tokens))
