"""What somebody says of a method that is not kvcheck's: `kvcheck_info` beside the class or the function.

    class Quantized(DynamicLayer):
        kvcheck_info = {"frees_memory": True, "lossless": "bits=16", "rounding": (0.1, 0.1)}

Or a function of the parameters, where it depends on them: `kvcheck_info = lambda bits=4: {...}`. It is no promise of
kvcheck's: what is declared is what the properties hold the method to, and what is exempt is not asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.spec import Spec, raised

ATTRIBUTE = "kvcheck_info"
OF_INFO: dict[str, type | tuple[type, ...]] = {
    "summary": str,
    "paper": str,
    "knob": str,
    "variant": str,
    "exceeds": str,
    "frees_memory": bool,
    "verbatim": bool,
    "evicts_in_decode": bool,
    "exempt": Mapping,
    "lossless": (str, Lossless),
    "nearly": (str, Lossless),
}
"""Fields of MethodInfo that may be declared."""
BESIDE: dict[str, type | tuple[type, ...]] = {
    "rounding": (tuple, list),
    "kv_bytes": object,
    "reads": object,
    "attention": str,
}
"""What a Method declares by methods of its own, and the attention function that the cache goes with."""
ALWAYS, NEVER = "always", "never"


@dataclass(frozen=True)
class Declared:
    """rounding, kv_bytes, reads: see Method; `reads` may give one number for all layers.

    attention: the name under which transformers knows an attention function.
    """

    rounding: tuple[float, float] | None = None
    kv_bytes: Callable[..., int] | None = None
    reads: Callable[..., int | Sequence[int]] | None = None
    attention: str = ""


def read(spec: Spec, found: object, usual: MethodInfo) -> tuple[MethodInfo, Declared]:
    """What is declared of the object that a spec names, laid over what is usual. Raises SpecError."""
    given = getattr(found, ATTRIBUTE, None)
    if given is None:
        return usual, Declared()
    if callable(given):
        try:
            given = given(**_parameters(spec, found, given))
        except KvcheckError:
            raise
        except Exception as error:
            raise SpecError(f"{spec.name}.{ATTRIBUTE}(…) failed: {raised(error)}") from error
    if not isinstance(given, Mapping):
        raise SpecError(
            f"{spec.name}.{ATTRIBUTE} is a {type(given).__name__}", "give a dict, or a function of the parameters"
        )
    for name, value in given.items():
        _expect(spec, str(name), value)
    fields = {name: value for name, value in given.items() if name in OF_INFO}
    for name in ("lossless", "nearly"):
        if name in fields:
            fields[name] = _lossless(fields[name])
    beside = {name: value for name, value in given.items() if name in BESIDE}
    if "rounding" in beside:
        beside["rounding"] = tuple(float(each) for each in beside["rounding"])
    return replace(usual, **fields), Declared(**beside)


def _parameters(spec: Spec, found: object, function: Callable[..., object]) -> dict[str, Any]:
    """The parameters that the function asks for: as given, else as the class or function has them by default."""
    asked = inspect.signature(function).parameters.values()
    known: dict[str, Any] = {}
    if callable(found):
        usual = inspect.signature(found).parameters.values()
        known = {each.name: each.default for each in usual if each.default is not each.empty}
    known |= dict(spec.params)
    every = any(each.kind is each.VAR_KEYWORD for each in asked)
    return known if every else {each.name: known[each.name] for each in asked if each.name in known}


def _expect(spec: Spec, name: str, value: object) -> None:
    """Raise SpecError for what cannot be declared."""
    known = OF_INFO | BESIDE
    if name not in known:
        raise SpecError(f"{spec.name}.{ATTRIBUTE} has no {name!r}", did_you_mean(name, known))
    good = callable(value) if name in ("kv_bytes", "reads") else isinstance(value, known[name])
    if name == "rounding" and isinstance(value, (tuple, list)):
        good = len(value) == 2 and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in value)
    if not good:
        wanted = {
            "kv_bytes": "a function (shape, batch, prompt, decoded)",
            "reads": "a function (shape, prompt, decoded)",
            "rounding": "two numbers, of keys and of values",
            "exempt": "a dict {property: why}",
        }
        wanted |= dict.fromkeys(("lossless", "nearly"), f'"{ALWAYS}", "{NEVER}" or parameters such as "bits=16"')
        right = wanted.get(name, "true or false" if known[name] is bool else "a text")
        raise SpecError(f"{spec.name}.{ATTRIBUTE}: {name}={value!r} is not {right}", f"give {right}")


def _lossless(value: str | Lossless) -> Lossless:
    if isinstance(value, Lossless):
        return value
    return {ALWAYS: Lossless.ALWAYS, NEVER: Lossless.NEVER}.get(value) or Lossless.at(value)
