"""A method at home on a small model, and what the properties ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn, TypeAlias

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.view import FedCache, parts, view
from kvcheck.conformance.draw import Draw
from kvcheck.conformance.models import small
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.methods import make
from kvcheck.methods.adapters.foreign import SMOKE, BatchRunner, CacheRunner, Foreign
from kvcheck.methods.adapters.presses import PressedTogether, PressRunner
from kvcheck.methods.fp16 import Fp16

TOLERANCE = 2e-3
"""Of the spread of the logits: four roundings to 16 bits. Two right ways mostly agree far better: see models.py."""

ROUNDING = 2.0**-24
"""Of a number in float32."""

REFUSALS = (NotImplementedError, ValueError, AssertionError)
"""What code that knows no error of kvcheck's raises for what it does not serve."""

Answer: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
"""Logits of one forward, or of several."""


class Violation(AssertionError):
    """A property does not hold."""


class NotServed(Exception):
    """The method refuses a model or a text, with a clear error: nothing to be held against it."""


class Subject:
    """One method on one small model, in one trial."""

    def __init__(self, spec: str, draw: Draw, model_seed: int = 0) -> None:
        self.spec, self.draw = spec, draw
        self.remarks: list[str] = []  # what is to be said of the method although the property holds
        self.loaded = small(draw.architecture, model_seed)
        self.shape = ModelShape.of(self.loaded.model.config)
        self.runner = self.new_runner()
        self.method = self.runner.method

    def new_runner(self, spec: str | None = None) -> MethodRunner:
        """A fresh method on the model. Raises NotServed where the method refuses the model."""
        try:
            method = make(spec or self.spec)
            method.check(self.shape)
            return method.runner(self.loaded)
        except MethodUnsupported as error:
            raise NotServed(str(error)) from error

    def lossless_runner(self) -> MethodRunner:
        """The method with what holds everything laid over its parameters, as typed: a runner may have chosen others.

        Raises NotServed where there is none.
        """
        spec = make(self.spec).lossless()
        if spec is None:
            raise NotServed("with its parameters not everything is held")
        try:
            return self.new_runner(str(spec))
        except SpecError as error:  # a parameter that was given may not go together with those that hold everything
            raise NotServed(f"{spec} cannot be built: {error.message}") from error

    @cached_property
    def dense(self) -> MethodRunner:
        """The full cache on the same model."""
        return Fp16().runner(self.loaded)

    @cached_property
    def together(self) -> MethodRunner:
        """What feeds several rows in one cache. A method from elsewhere drives that by the verbs of its own cache."""
        return self.runner.together() if isinstance(self.runner, (CacheRunner, PressRunner)) else self.runner

    @property
    def several(self) -> int:
        """Rows of a batch: at least two where it is to be seen whether a cache of another make knows one."""
        return max(2, self.draw.rows) if isinstance(self.method, Foreign) else self.draw.rows

    def expect_served(self) -> None:
        """Raise NotServed where a method from elsewhere refuses the model as soon as it is fed: by its own errors."""
        if not isinstance(self.method, Foreign):
            return
        with torch.inference_mode():
            try:
                cache, _ = self.runner.prefill(self.tokens(SMOKE, rows=1))
                self.runner.feed(cache, self.tokens(1, rows=1))
            except REFUSALS as error:
                raise NotServed(f"it refuses the model: {error}") from error
            except Exception:  # each property says what is at fault
                return

    def tokens(self, length: int, rows: int | None = None, salt: int = 0) -> torch.Tensor:
        """Token ids (rows, length) of this trial; another salt gives others."""
        generator = torch.Generator().manual_seed(1000 * self.draw.seed + salt)
        vocabulary = self.loaded.model.get_input_embeddings().num_embeddings
        return torch.randint(vocabulary, (rows or self.draw.rows, length), generator=generator)

    def prefill(self, ids: torch.Tensor, runner: MethodRunner | None = None) -> tuple[FedCache, torch.Tensor]:
        """The method's own prefill (R, n) -> cache, logits (R, V). Raises NotServed where the text is refused.

        A method from elsewhere knows no error of kvcheck's: it refuses a prompt by those of REFUSALS.
        """
        owner = runner or self.runner
        if isinstance(owner, (BatchRunner, PressedTogether)):
            return batched(owner, ids)
        try:
            return owner.prefill(ids)
        except MethodUnsupported as error:
            raise NotServed(str(error)) from error
        except REFUSALS as error:
            if not isinstance(owner.method, Foreign):
                raise
            raise NotServed(f"it refuses the prompt: {error}") from error

    def feed(self, cache: FedCache, ids: torch.Tensor, runner: MethodRunner | None = None) -> torch.Tensor:
        """Feed (R, q) in one forward -> logits of all of them (R, q, V)."""
        try:
            return (runner or self.runner).feed(cache, ids, keep=ids.shape[1])
        except MethodUnsupported as error:
            raise NotServed(str(error)) from error

    def one_by_one(self, cache: FedCache, ids: torch.Tensor, runner: MethodRunner | None = None) -> torch.Tensor:
        """Feed (R, q) token by token -> logits (R, q, V)."""
        return torch.cat([self.feed(cache, token, runner) for token in ids.split(1, dim=1)], dim=1)

    def life(
        self, ids: torch.Tensor, follow: torch.Tensor, steps: torch.Tensor, *, runner: MethodRunner | None = None
    ) -> list[torch.Tensor]:
        """A prompt, a follow-up block and steps -> the logits of all three."""
        cache, first = self.prefill(ids, runner)
        return [first, self.feed(cache, follow, runner), self.one_by_one(cache, steps, runner)]

    def texts(self, salt: int = 0, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt, follow-up block and steps of this trial."""
        draw = self.draw
        return (
            self.tokens(draw.prompt, rows, salt),
            self.tokens(draw.block, rows, salt + 1),
            self.tokens(draw.steps, rows, salt + 2),
        )

    def shapes(self) -> str:
        """Of the model, in words."""
        shape = self.shape
        heads = f"{shape.kv_heads} kv heads for {shape.heads} query heads of dimension {shape.head_dim}"
        return f"the model has {heads} in each of {shape.layers} layers"

    def native(self, cache: FedCache) -> KVCache:
        """The cache, where it is made of kvcheck's layers. Raises NotServed."""
        native = view(cache).native
        if native is None:
            raise NotServed(f"the cache is a {type(cache).__name__}, not made of kvcheck's layers")
        return native

    @contextmanager
    def appending(self, *caches: FedCache) -> Iterator[None]:
        """Raise NotServed where foreign rows do more meanwhile than append what they are fed.

        What they evict or quantize then follows from how many tokens came at once, and cannot be brought back.
        """
        before = [absent(cache) for cache in caches]
        yield
        acting = self.method.info.evicts_in_decode and any(foreign_rows(cache) for cache in caches)
        if acting or before != [absent(cache) for cache in caches]:
            raise NotServed("its own cache does more with what it is fed than to append it")


def batched(owner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
    """The prefill of several rows in one foreign cache. Raises NotServed where it knows no batch."""
    try:
        return owner.prefill(ids)
    except (MethodUnsupported, *REFUSALS) as error:
        raise NotServed(f"it refuses the prompt: {error}") from error
    except Exception as error:
        if ids.shape[0] == 1:
            raise
        raise NotServed(f"it knows no batch of rows: {type(error).__name__}: {error}") from error


def foreign_rows(cache: FedCache) -> list[Any]:
    """The rows that are not made of kvcheck's layers; their positions are the adapter's."""
    return [row for row in parts(cache) if row.opaque]


def absent(cache: FedCache) -> list[int]:
    """Per layer of every foreign row, the tokens seen for which it has no slot in plain keys."""
    rows = foreign_rows(cache)
    return [max(0, row.seen - _slots(layer)) for row in rows for layer in row.inner.layers or [None]]


def _slots(layer: object) -> int:
    """Slots of the keys of a foreign layer, 0 where it has no plain ones."""
    found = plain(layer)
    return 0 if found is None else found[0].shape[2]


def plain(layer: object) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys and values (R, G, n, d) of a foreign layer that keeps them as they are, None of any other."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor) or keys.dim() != 4:
        return None
    return keys, values


def equal(one: Answer, other: Answer, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise Violation unless two results agree up to `tolerance` times the spread of the second one."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        names = ("the prompt", "the follow-up block", "decoding")
        for at, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            equal(mine, theirs, f"{what}: logits of {names[at]}" if len(one) == 3 else what, tolerance)
        return
    if one.shape != other.shape:
        fail(f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}")
    if not bool(one.isfinite().all()):
        fail(f"{what}: not finite")
    spread = max(float(other.std()) if other.numel() > 1 else 1.0, 1e-9)
    errors = (one - other).abs()
    if errors.numel() and float(errors.max()) > tolerance * spread:
        worst = tuple(int(each) for each in torch.unravel_index(errors.argmax(), errors.shape))
        where = f"row {worst[0]}, " + (f"token {worst[1]} of {one.shape[1]}, " if len(worst) > 2 else "")
        said = f"the logit of {worst[-1]} is {float(one[worst]):.4g} and should be {float(other[worst]):.4g}"
        fail(f"{what}: they differ by {float(errors.max()) / spread:.2g} times their spread ({where}{said})")


def rows_of(results: Sequence[torch.Tensor], rows: Sequence[int]) -> list[torch.Tensor]:
    """These rows of every result."""
    return [each[list(rows)] for each in results]


def fail(message: str) -> NoReturn:
    """Raise Violation."""
    raise Violation(message)
