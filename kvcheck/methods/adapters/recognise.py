"""Recognise what an import path leads to: a cache, a cache layer, a press, or a function of the model."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.registry import load_dotted
from kvcheck.core.spec import Spec, Value, accepts, arguments, parameter_types
from kvcheck.methods.adapters import kvpress
from kvcheck.methods.adapters.foreign import CacheRunner, Foreign, ForeignCache, unsupported
from kvcheck.methods.adapters.presses import ForeignPress, Press, PressRunner

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

T = TypeVar("T")
Given: TypeAlias = dict[str, Value]
WOULD_DO = (
    "give a kvcheck Method, a transformers Cache or cache layer class, a press (`with press(model):`), "
    "or a function (model) -> Cache"
)
SUPPLIED = ("config", "model", "layer_idx")  # parameters of a cache or layer class that kvcheck fills in


def adapt(spec: Spec, found: object) -> Method:
    """A method made of what the name of a spec leads to. Raises SpecError for what cannot be recognised."""
    if isinstance(found, type):
        if issubclass(found, CacheLayerMixin) and not inspect.isabstract(found):
            return ForeignCache(spec, make=partial(_layered, spec, found, _given(spec, found)))
        if issubclass(found, Cache):
            return ForeignCache(spec, make=partial(_cached, spec, found, _given(spec, found)))
        if "__call__" in _names(found):
            press = build(spec, found)
            return ForeignPress(spec, info=kvpress.info(spec, press), press=press)
        if not hasattr(found, "__enter__"):
            raise SpecError(f"{spec.name} is not a method: the class is {_lacks(found)}", WOULD_DO)
    if inspect.ismodule(found):
        raise SpecError(f"{spec.name} is a module", f"name the class or function in it: {spec.name}.NAME")
    if not callable(found):
        raise SpecError(f"{spec.name} is not a method: {found!r} ({type(found).__name__}) cannot be called", WOULD_DO)
    return ForeignCall(spec, call=partial(found, **_called(spec, found)))


@dataclass(frozen=True)
class ForeignCall(Foreign):
    """A function of the model: what it gives, a Cache or a context manager, decides what it is."""

    call: Callable[[PreTrainedModel], object] = field(default=lambda model: None, compare=False)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Calls it once to see."""
        try:
            made = self.call(loaded.model)
        except KvcheckError:
            raise
        except Exception as error:
            raise unsupported(self.given, error) from error
        if isinstance(made, Cache):
            return CacheRunner(ForeignCache(self.given, make=lambda model, tokens: self.call(model)), loaded)
        if isinstance(made, AbstractContextManager):
            press = cast("Press", self.call)  # it has just given a context manager
            return PressRunner(ForeignPress(self.given, press=press), loaded)
        raise SpecError(f"{self.given.name}(model) gives a {type(made).__name__}: {made!r}", WOULD_DO)


def build(spec: Spec, factory: Callable[..., T]) -> T:
    """An object of a class, from a spec whose texts may be specs themselves where an object is wanted."""
    types = parameter_types(factory)
    nested = {
        key: _nested(value, types[key], spec)
        for key, value in spec.params
        if isinstance(value, str) and key in types and not accepts(types[key], value)
    }
    try:
        return factory(**arguments(spec, factory, nested))
    except (KvcheckError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an assert of the press, as kvpress has them
        raise SpecError(f"{spec}: {error or type(error).__name__}") from error


def _nested(text: str, wanted: object, spec: Spec) -> object:
    """The object, or for a list the objects separated by a semicolon, that a text names. Raises SpecError."""
    if typing.get_origin(wanted) is list:
        return [_nested(part.strip(), typing.get_args(wanted)[0], spec) for part in text.split(";")]
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            raise SpecError(f"{spec.name}: {text!r} is not {wanted.__name__}", "separate numbers by ;") from None
    inner = Spec.parse(text)
    if "." not in inner.name:
        raise SpecError(
            f"{spec.name}: {text!r} is not an import path", "write package.module.Class:key=value in quotes"
        )
    return build(inner, load_dotted(inner.name))


def _given(spec: Spec, factory: Callable[..., object]) -> Given:
    """The parameters for a cache or layer class; those in SUPPLIED come later."""
    supplied = {name: None for name in SUPPLIED if name in parameter_types(factory)}
    found = arguments(spec, factory, supplied)
    return {name: value for name, value in found.items() if name not in supplied}


def _called(spec: Spec, function: Callable[..., object]) -> Given:
    """The parameters for a function whose first one is the model."""
    names = [name for name in parameter_types(function) if name != "self"]
    if not names:
        raise SpecError(f"{spec.name} is not a method: it takes no parameter, such as the model", WOULD_DO)
    if names[0] in dict(spec.params):
        raise SpecError(f"{spec.name}: {names[0]} cannot be given: the first parameter is the model", "leave it out")
    found = arguments(spec, function, {names[0]: None})
    return {name: value for name, value in found.items() if name != names[0]}


def _cached(spec: Spec, kind: type[Cache], given: Given, model: PreTrainedModel, tokens: int) -> Cache:
    """A cache of a user's class."""
    return kind(**given, **_supply(kind, model))


def _layered(
    spec: Spec, kind: type[CacheLayerMixin], given: dict[str, Value], model: PreTrainedModel, tokens: int
) -> Cache:
    """A cache whose layers are all of a user's class."""
    layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[kind(**given, **_supply(kind, model, index)) for index in range(layers)])


def _supply(kind: type, model: PreTrainedModel, index: int = 0) -> dict[str, object]:
    """The parameters in SUPPLIED that a class takes."""
    values = {"config": model.config, "model": model, "layer_idx": index}
    return {name: value for name, value in values.items() if name in parameter_types(kind)}


def _names(kind: type) -> set[str]:
    """What a class and its bases define."""
    return {name for base in kind.__mro__ for name in vars(base)}


def _lacks(kind: type) -> str:
    """Why a class is nothing that is known here."""
    if inspect.isabstract(kind):
        return f"abstract (it lacks {', '.join(sorted(getattr(kind, '__abstractmethods__', ())))})"
    return "no Method, no cache, no cache layer, and has no __call__(model)"
