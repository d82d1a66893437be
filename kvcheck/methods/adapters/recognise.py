"""Recognise what an import path leads to: a cache, a cache layer, a press, or a function of the model."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import CacheLayerMixin

from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.registry import load_dotted
from kvcheck.core.spec import Spec, Value, accepts, arguments, parameter_types
from kvcheck.methods.adapters import declared, kvpress
from kvcheck.methods.adapters.foreign import (
    INFO,
    SDPA,
    Foreign,
    ForeignCache,
    Home,
    Maker,
    at_rest,
    set_up,
    unsupported,
)
from kvcheck.methods.adapters.presses import ForeignPress, Press

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

T = TypeVar("T")
Given: TypeAlias = dict[str, Value]
WOULD_DO = (
    "give a kvcheck Method, a transformers Cache or cache layer class, a press (`with press(model):`), "
    "or a function (model) -> Cache"
)
MODEL, CONFIG, TOKENIZER, LAYER, TOKENS, DEVICE, DTYPE = (
    *("model", "config", "tokenizer", "layer", "tokens", "device", "dtype"),
)
BY_TYPE = {
    torch.nn.Module: MODEL,
    PreTrainedConfig: CONFIG,
    PreTrainedTokenizerBase: TOKENIZER,
    torch.device: DEVICE,
    torch.dtype: DTYPE,
}
"""What a parameter is given whose annotation is one of these types, or one that derives from it."""
BY_NAME = {
    **{"model": MODEL, "config": CONFIG, "model_config": CONFIG, "tokenizer": TOKENIZER},
    **{"layer_idx": LAYER, "layer_index": LAYER, "device": DEVICE, "dtype": DTYPE},
    **dict.fromkeys(("prompt_length", "prompt_len", "prompt_tokens", "prompt_size"), TOKENS),
}
"""What one of these names is given, where its annotation says nothing else."""
PLAIN = {LAYER: int, TOKENS: int, DEVICE: str}
"""Annotations of built-in types that go with it all the same."""
IF_OPEN = (TOKENS, DTYPE)
"""Given where there is no default but None: what a class computes in by default is its own affair."""


def adapt(spec: Spec, found: object) -> Method:
    """A method made of what the name of a spec leads to. Raises SpecError for what cannot be recognised."""
    if isinstance(found, type) and issubclass(found, Cache) and not issubclass(found, CacheLayerMixin):
        return _of_class(spec, found, lambda calling: calling)
    if isinstance(found, type) and issubclass(found, CacheLayerMixin) and not inspect.isabstract(found):
        return _of_class(spec, found, _layered)
    if isinstance(found, type):
        if "__call__" in _names(found):
            press = build(spec, found)
            info, says = declared.read(spec, found, kvpress.info(spec, press))
            return ForeignPress(spec, info=info, says=says, press=press)
        if not hasattr(found, "__enter__"):
            raise SpecError(f"{spec.name} is not a method: the class is {_lacks(found)}", WOULD_DO)
    if inspect.ismodule(found):
        raise SpecError(f"{spec.name} is a module", f"name the class or function in it: {spec.name}.NAME")
    if not callable(found):
        raise SpecError(f"{spec.name} is not a method: {found!r} ({type(found).__name__}) cannot be called", WOULD_DO)
    _expect_function_of_the_model(spec, found)
    given = _given(spec, found, first=True)
    info, says = declared.read(spec, found, INFO)
    call = _calling(found, given, first=True)
    return ForeignCall(spec, info=info, says=says, call=call)


def _of_class(spec: Spec, found: Callable[..., Any], maker: Callable[[Callable[[Home], Any]], Maker]) -> ForeignCache:
    """A cache of a user's class, or of layers of it."""
    calling = _calling(found, _given(spec, found))
    info, says = declared.read(spec, found, INFO)
    return ForeignCache(spec, info=info, says=says, make=maker(calling))


@dataclass(frozen=True)
class ForeignCall(Foreign):
    """A function of the model. What it gives decides what it is: a Cache; a function that makes caches, which is
    called for every prompt; or a context manager, which makes it a press."""

    call: Callable[[Home], object] = field(default=lambda home: None, compare=False)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Calls it once to see."""
        home = Home.of(loaded)
        try:
            made, attention = set_up(loaded.model, lambda: self.call(home))
        except KvcheckError:
            raise
        except Exception as error:
            raise unsupported(self.given, error) from error
        if isinstance(made, AbstractContextManager):
            return ForeignPress(self.given, info=self.info, says=self.says, press=self._press(home)).runner(loaded)
        factory = callable(made) and not isinstance(made, Cache)
        if not (factory or isinstance(made, Cache)):
            raise SpecError(f"{self.given.name}(model) gives a {type(made).__name__}: {made!r}", WOULD_DO)
        says = self.says if not factory or self.says.attention else replace(self.says, attention=_named(attention))
        make: Maker = _calling(made, {}) if factory else self.call  # type: ignore[assignment,arg-type]  # looked at
        return ForeignCache(self.given, info=self.info, says=says, make=make).runner(loaded)

    def _press(self, home: Home) -> Press:
        """A function is copied as it is: the copies of a press share it."""

        def press(model: PreTrainedModel) -> AbstractContextManager[object]:
            return self.call(replace(home, model=model))  # type: ignore[return-value]  # it has just given one

        return press


def _named(attention: str) -> str:
    """An attention function that was set once, for all caches; none where the model was left alone."""
    return "" if attention == SDPA else attention


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


def _given(spec: Spec, factory: Callable[..., object], first: bool = False) -> Given:
    """The checked parameters of a spec; what is filled in comes later. first: the first one is filled in anyway."""
    filled = {name: None for name in fillings(factory, first) if name not in dict(spec.params)}
    return {name: value for name, value in arguments(spec, factory, filled).items() if name not in filled}


def _expect_function_of_the_model(spec: Spec, function: Callable[..., object]) -> None:
    """Raise SpecError where a function takes nothing, or is given the model by hand."""
    names = [name for name in parameter_types(function) if name != "self"]
    if not names:
        raise SpecError(f"{spec.name} is not a method: it takes no parameter, such as the model", WOULD_DO)
    filled = fillings(function, first=True)
    mine = [name for name in dict(spec.params) if filled.get(name) not in (None, DEVICE, DTYPE)]
    if mine:
        what = {MODEL: "the model", CONFIG: "the model's config", TOKENIZER: "the tokenizer", TOKENS: "of the prompt"}
        said = "the first parameter is the model" if mine[0] == names[0] else f"it is {what.get(filled[mine[0]], '')}"
        raise SpecError(f"{spec.name}: {mine[0]} cannot be given: {said}", "leave it out")


def fillings(factory: Callable[..., object], first: bool = False) -> dict[str, str]:
    """The parameters that kvcheck fills in, by name, with what they are given (MODEL, …).

    By annotation, else by name where the annotation is none or a plain type that fits: a `config` of another type is
    not the model's. first: the first parameter is the model where it is nothing else.
    """
    defaults = {name: each.default for name, each in inspect.signature(factory).parameters.items()}
    found = {}
    for at, (name, wanted) in enumerate(parameter_types(factory).items()):
        what = _means(name, wanted)
        if what in IF_OPEN and defaults.get(name) not in (None, inspect.Parameter.empty):
            continue
        if not what and first and at == 0:
            what = MODEL
        if what:
            found[name] = what
    return found


def _means(name: str, wanted: object) -> str:
    """What a parameter is to be given, "" where that is the user's affair."""
    options = [each for each in typing.get_args(wanted) or (wanted,) if each is not type(None)]
    for kind, what in BY_TYPE.items():
        if any(isinstance(each, type) and issubclass(each, kind) for each in options):
            return what
    what = BY_NAME.get(name, "")
    return what if wanted in (Any, object) or PLAIN.get(what) in options else ""


def _calling(factory: Callable[..., T], given: Mapping[str, Value], first: bool = False) -> Callable[[Home], T]:
    """The factory with these parameters, to be called with what is filled in."""
    filled = {name: what for name, what in fillings(factory, first).items() if name not in given}
    plain = {name: str in (typing.get_args(wanted) or (wanted,)) for name, wanted in parameter_types(factory).items()}

    def call(home: Home) -> T:
        values: dict[str, object] = {
            MODEL: home.model,
            CONFIG: home.model.config,
            TOKENIZER: home.tokenizer,
            LAYER: home.layer,
            TOKENS: home.tokens,
            DEVICE: home.model.device,
            DTYPE: at_rest(home.model.dtype),
        }
        ready = {name: values[what] for name, what in filled.items()}
        texts = {name: str(ready[name]) for name, what in filled.items() if what == DEVICE and plain[name]}
        return factory(**{**given, **ready, **texts})

    return call


def _layered(calling: Callable[[Home], CacheLayerMixin]) -> Maker:
    """Makes a cache whose layers are all of a user's class."""

    def make(home: Home) -> Cache:
        layers = home.model.config.get_text_config().num_hidden_layers
        return Cache(layers=[calling(replace(home, layer=index)) for index in range(layers)])

    return make


def _names(kind: type) -> set[str]:
    """What a class and its bases define."""
    return {name for base in kind.__mro__ for name in vars(base)}


def _lacks(kind: type) -> str:
    """Why a class is nothing that is known here."""
    if inspect.isabstract(kind):
        return f"abstract (it lacks {', '.join(sorted(getattr(kind, '__abstractmethods__', ())))})"
    return "no Method, no cache, no cache layer, and has no __call__(model)"
