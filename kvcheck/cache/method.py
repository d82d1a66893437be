"""What a method is: a frozen dataclass of hyper-parameters that builds a cache for a model.

A method of your own is one class in one file:

    @dataclass(frozen=True)
    class Newest(Method):
        info: ClassVar[MethodInfo] = MethodInfo(summary="keeps the newest tokens", stage="compression", knob="tokens")
        tokens: int = 256

        def layer(self, shape: ModelShape, index: int) -> CacheLayer:
            return NewestLayer(shape, index, self)

    class NewestLayer(CacheLayer):
        def compress(self, queries: torch.Tensor) -> None:
            first = max(0, self.stored - self.method.tokens)
            self.keep(self.every_head(torch.arange(first, self.stored)))

No torch is imported here at run time; `build` imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from kvcheck.cache.shape import ModelShape, Shared
from kvcheck.core.errors import MethodUnsupported, SpecError, did_you_mean
from kvcheck.core.record import CLAIMS, EXCEEDS, FREES, LOSSLESS, NEARLY

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from kvcheck.cache.kv_cache import CacheLayer, KVCache
    from kvcheck.cache.method_runner import MethodRunner
    from kvcheck.core.spec import Spec
    from kvcheck.models import LoadedModel

_LAYER = "write def layer(self, shape, index): return MyLayer(shape, index, self), where MyLayer is a CacheLayer"
_RENAMED = {"whole": "lossless", "joint": "cross_head"}


class Stage(str, Enum):
    """Where in the life of keys and values a method acts."""

    PROMPT = "prompt"
    GENERATION = "generation"
    COMPRESSION = "compression"
    RETRIEVAL = "retrieval"
    LOADING = "loading"
    ARCHITECTURE = "architecture"

    def __str__(self) -> str:
        """As it is written."""
        return self.value


@dataclass(frozen=True)
class Lossless:
    """When a method holds everything, and every answer is that of the full cache: NEVER, ALWAYS or at("budget=1.0").

    parameters: with which it does, as in a spec; None: with none.
    """

    parameters: str | None

    NEVER: ClassVar[Lossless]
    ALWAYS: ClassVar[Lossless]

    @classmethod
    def at(cls, parameters: str) -> Lossless:
        """With these parameters, "budget=1.0"."""
        return cls(parameters)


Lossless.NEVER, Lossless.ALWAYS = Lossless(None), Lossless("")


@dataclass(frozen=True)
class MethodInfo:
    """What a method declares about itself.

    stage: a Stage or its text, where in the KV life cycle it acts. knob: the parameter that trades memory for accuracy;
    more of it is more memory. frees_memory: it claims to hold less than the full cache. exceeds: why it holds more than
    that, host memory counted in; "" where it does not, and then more is a failure. verbatim: stored keys and
    values equal the prefilled ones bit for bit. evicts_in_decode: tokens may leave after the prompt too. needs:
    "queries" when `compress` reads the queries of the prompt. shares_prefill: the prompt's own forward is that of the
    full cache, so one serves all methods; False for sparse attention while prefilling. variant: which official form it
    is, and what differs from that. formula: the bytes that `kv_bytes` computes, with L layers, B rows, H query heads, G
    kv heads of dimension d, and n tokens of which p were the prompt. refuses: the models that `check` refuses, "" where
    none. latents: what it does where a model caches a latent in place of keys and values (MLA, see ModelShape.latent),
    "" where it cannot serve that. lossless: when every answer is that of the full cache. nearly: when it is nearly so,
    by rounding alone: KL from fp16 is then held to a limit of the model (kvcheck/judging/limits.py). cross_head: why
    what it does to one kv head depends on the others of the model, None where it does not, so that the heads may lie in
    several processes. exempt: properties of kvcheck.conformance that do not hold by design, and why. foreign: it is not
    made of kvcheck's layers; where it declares nothing, what its cache holds is looked at.
    Errors: SpecError for a name or a form that was taken before.
    """

    summary: str
    stage: str
    paper: str = ""
    knob: str = ""
    frees_memory: bool = True
    verbatim: bool = True
    evicts_in_decode: bool = False
    needs: tuple[str, ...] = ()
    shares_prefill: bool = True
    variant: str = ""
    formula: str = ""
    refuses: str = ""
    latents: str = ""
    lossless: Lossless = Lossless.NEVER
    nearly: Lossless = Lossless.NEVER
    cross_head: str | None = None
    exempt: Mapping[str, str] = field(default_factory=dict)
    exceeds: str = ""
    foreign: bool = False

    def __new__(cls, *args: object, **given: object) -> Self:
        """Refuse a field by its former name. Raises SpecError."""
        for old in _RENAMED.keys() & given:
            raise SpecError(f"MethodInfo({old}=…) is {_RENAMED[old]} now", "rename it")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Take the text of a stage. Raises SpecError for the former forms of lossless and exempt."""
        for name in ("lossless", "nearly"):
            if not isinstance(value := getattr(self, name), Lossless):
                raise SpecError(f"{name}={value!r} is no Lossless", "write Lossless.ALWAYS, or Lossless.at(…)")
        if not isinstance(self.exempt, Mapping):
            raise SpecError(f"exempt={self.exempt!r} is no mapping", "write exempt={property: why it does not hold}")
        if self.stage in tuple(Stage):
            object.__setattr__(self, "stage", Stage(self.stage))


@dataclass(frozen=True)
class Method(Shared):
    """Base of every method. Subclasses are frozen dataclasses that define `layer`, and `slots` or `kv_bytes`."""

    info: ClassVar[MethodInfo]

    @classmethod
    def name(cls) -> str:
        """The registry name of a built-in method (its file's stem), the import path of any other."""
        package, _, stem = cls.__module__.rpartition(".")
        return stem if package == "kvcheck.methods" else f"{cls.__module__}.{cls.__qualname__}"

    @property
    def spec(self) -> Spec:
        """The text form: the name and the parameters that are not at their default."""
        from kvcheck.core.spec import Spec

        changed = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return Spec(self.name(), tuple(changed))

    def expect_served(self, shape: ModelShape) -> None:
        """Raise MethodUnsupported for a model that caches latents, where the method does not say that it serves them.

        Not part of `check`, which methods override.
        """
        if shape.latent and not self.serves_latents:
            raise MethodUnsupported(
                f"{self.spec} acts on keys and values; the model caches a latent (MLA), from which it makes those of "
                "all heads anew whenever it attends",
                "methods that act on whatever is stored, such as streaming_llm, kivi or flexgen, serve it",
            )

    @property
    def serves_latents(self) -> bool:
        """Whether it can act on a cache of latents."""
        return bool(self.info.latents)

    def check(self, shape: ModelShape) -> None:
        """Raise MethodUnsupported when a model of this shape cannot be served."""

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A fresh, empty cache layer for layer `index` of the model."""
        raise NotImplementedError(f"{type(self).__name__} must define layer(shape, index)")

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """A fresh, empty cache. store_dtype: see KVCache; only tests keep float32."""
        import kvcheck.cache.attention  # noqa: F401  registers the attention function
        from kvcheck.cache.kv_cache import KVCache

        self.expect_served(shape)
        self.check(shape)
        return KVCache([self.layer(shape, index) for index in range(shape.layers)], store_dtype)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """The method at home on a model. Override it to act on the prompt, on prefilling, or on the model."""
        if loaded.states is not None and loaded.states.serves(self):
            return loaded.states.runner(self, loaded)
        from kvcheck.cache.method_runner import MethodRunner

        return MethodRunner(self, loaded)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """Slots per layer and kv head after a prompt and `decoded` more tokens, fed one by one. None: not declared."""
        return None

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Bytes of keys, values, codes and scales at that point, exactly. None: not declared."""
        slots = self.slots(shape, prompt, decoded)
        return None if slots is None else sum(slots) * shape.token_bytes(batch)

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Bytes in host memory at that point, exactly: what layers declare in `host`. None: not declared."""
        return 0

    def reads(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """Tokens per layer whose keys and values a query head reads, the last of `decoded` ones behind a prompt.

        At least 1 decoded. For methods that read less than they hold; a property counts. None: not declared.
        """
        return None

    def protected(self, prompt: int) -> frozenset[int] | None:
        """Positions that every kv head must still hold when the prompt has been compressed. None: none promised."""
        return None

    def lossless(self) -> Spec | None:
        """The spec that holds everything: this method's, with those parameters laid over it (see MethodInfo.lossless).

        None where there is none.
        """
        return self._laid(self.info.lossless)

    def _laid(self, when: Lossless) -> Spec | None:
        """This method's spec with those parameters laid over it, None where there are none."""
        from kvcheck.core.spec import Spec

        if when.parameters is None:
            return None
        laid = Spec.parse(f"{self.name()}:{when.parameters}".rstrip(":")).params
        return replace(self.spec, params=tuple((dict(self.spec.params) | dict(laid)).items()))

    def claims(self) -> tuple[str, ...]:
        """What it declares of its bytes and answers, of kvcheck.core.record.CLAIMS."""
        info = self.info
        said = {FREES: info.frees_memory, EXCEEDS: bool(info.exceeds)}
        said |= {LOSSLESS: self._is(info.lossless, self.lossless), NEARLY: self._is(info.nearly, self._nearly)}
        return tuple(claim for claim in CLAIMS if said[claim])

    def _nearly(self) -> Spec | None:
        return self._laid(self.info.nearly)

    def _is(self, when: Lossless, spec: Callable[[], Spec | None]) -> bool:
        """Whether it has the parameters with which it is that."""
        if when.parameters:
            with suppress(SpecError):  # a class that no spec can name has only its defaults
                return spec() == self.spec
        return when == Lossless.ALWAYS

    def cross_head(self) -> str | None:
        """Why its heads cannot lie in several processes (see MethodInfo.cross_head), None where they can."""
        return self.info.cross_head

    def rounding(self) -> tuple[float, float] | None:
        """Promised error of what is read back: of keys and of values, per channel, as a share of what varies in it.

        It holds for normal numbers, and for keys also where other channels are much larger. None: nothing is promised.
        """
        return None


def expect_method(kind: type[Method], name: str) -> None:
    """Refuse a class that cannot be a method, before anything is built of it. Raises SpecError that says what lacks."""
    info = getattr(kind, "info", None)
    if not isinstance(info, (MethodInfo, property)):  # a property, where it depends on parameters
        raise SpecError(
            f"{name} does not say what it is: it needs a class attribute `info`, a MethodInfo",
            'write info: ClassVar[MethodInfo] = MethodInfo(summary="what it does", stage="compression")',
        )
    if isinstance(info, MethodInfo) and not isinstance(info.stage, Stage):
        raise SpecError(
            f"{name}: unknown stage {info.stage!r} in its info", did_you_mean(str(info.stage), map(str, Stage))
        )
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise SpecError(f"{name} is abstract: it lacks {', '.join(lacking)}", "name a class that defines them")
    for old, new in {"host": "runner", **_RENAMED}.items():
        if callable(getattr(kind, old, None)):
            of = "loaded" if old == "host" else ""
            raise SpecError(f"{name} defines {old}({of}), which no run calls: it is {new}({of}) now", "rename it")
    if kind.layer is Method.layer and kind.build is Method.build and kind.runner is Method.runner:
        raise SpecError(f"{name} does not define layer(shape, index), which builds the cache of a layer", _LAYER)
    own = {} if "__dataclass_fields__" in vars(kind) else inspect.get_annotations(kind)
    if loose := sorted(key for key, value in own.items() if "ClassVar" not in str(value)):
        raise SpecError(
            f"{name} is no dataclass of its own: {', '.join(loose)} cannot be given as a parameter",
            f"write @dataclass(frozen=True) above class {kind.__name__}",
        )
