"""What the adapter knows of kvpress's presses. Nothing is imported from kvpress before a press of it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TypeVar

from kvcheck.cache.method import MethodInfo
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.spec import Spec
from kvcheck.methods.adapters import foreign

Attention = TypeVar("Attention")
_MASK = "masks keys in attention and keeps them all"
HOLDS_ALL = {
    "AdaKVPress": _MASK,
    "CriticalAdaKVPress": _MASK,
    "DMSPress": _MASK,
    "DuoAttentionPress": _MASK,
    "FastKVzipPress": _MASK,
    "KVgradPress": _MASK,
    "KVzipPress": _MASK,
    "LUKVPress": _MASK,
    "RestoreKVPress": _MASK,
    "ThinKPress": "sets key channels to zero and keeps them",
    "SimLayerKVPress": "frees memory in layers that it finds lazy, which may be none",
    "DecodingPress": "compresses while decoding, not the prompt",
    "CAMPress": "compresses while decoding, not the prompt",
    "CompressionRatioDecodingPress": "compresses while decoding, not the prompt",
}
"""Presses whose cache of a prompt is as large as the full one, and why."""

REFUSED = {
    "FinchPress": (
        "needs a delimiter token in the tokenizer, and in the prompt between context and question",
        "SnapKVPress, from which it takes its scores, needs none",
    ),
    "BasePress": ("is the base class of all presses and compresses nothing", "name one of its subclasses"),
    "ScorerPress": ("is the base class of presses that score and has no score", "name one of its subclasses"),
}
"""Presses that cannot run here, with the reason and a hint."""


def is_press(thing: object) -> bool:
    """Whether a thing is a press of kvpress, or derives from one."""
    base = getattr(sys.modules.get("kvpress"), "BasePress", None)
    return base is not None and isinstance(thing, base)


def parts(press: object) -> Iterator[object]:
    """The press and all presses that it wraps."""
    yield press
    for value in vars(press).values() if is_press(press) else ():
        for inner in value if isinstance(value, (list, tuple)) else [value]:
            if is_press(inner):
                yield from parts(inner)


def names(press: object) -> list[str]:
    """The class names of a press, of its bases, and of what it wraps."""
    return [base.__name__ for part in parts(press) if is_press(part) for base in type(part).__mro__]


def info(spec: Spec, press: object) -> MethodInfo:
    """What is declared of a press."""
    if not is_press(press):
        return foreign.info(summary="a press", evicts_in_decode=decodes(press))
    keeps = [why for name, why in HOLDS_ALL.items() if name in names(press)]
    if "KVComposePress" in names(press) and not all(getattr(part, "structured", True) for part in parts(press)):
        keeps.append(_MASK)
    if any(type(part).__name__ == "PrefillDecodingPress" for part in parts(press)):
        prompt = getattr(press, "prefilling_press", None)
        return foreign.info(
            summary="a press of kvpress",
            evicts_in_decode=True,
            frees_memory=prompt is not None and info(spec, prompt).frees_memory,
        )
    return foreign.info(
        summary="a press of kvpress",
        variant="; ".join(dict.fromkeys(keeps)),
        frees_memory=not keeps,
        evicts_in_decode=decodes(press),
    )


def check(spec: Spec, press: object) -> None:
    """Refuse a press that cannot run here. Raises MethodUnsupported."""
    for part in parts(press):
        kind = type(part).__name__
        if is_press(part) and kind in REFUSED:
            why, hint = REFUSED[kind]
            raise MethodUnsupported(f"{spec}: kvpress's {kind} {why}", hint)


def at_prompt(press: object) -> bool:
    """Whether it is entered around the prompt: all but those for decoding only, as in kvpress's pipeline."""
    return "DecodingPress" not in [base.__name__ for base in type(press).__mro__] or not is_press(press)


def decodes(press: object) -> bool:
    """Whether it is entered around later forwards too."""
    return bool(getattr(press, "decoding", False)) or any(
        name in ("DecodingPress", "PrefillDecodingPress") for name in names(press)
    )


def rotates(press: object) -> bool:
    """Whether kept keys are rotated to new, consecutive positions, from which the next token goes on."""
    return any(name in ("KeyRerotationPress", "RestoreKVPress") for name in names(press))


def needs_weights(press: object) -> bool:
    """Whether it looks at attention weights."""
    return "ObservedAttentionPress" in names(press)


def patched(function: Attention) -> Attention:
    """An attention function with kvpress's patch, which hides masked keys; itself where kvpress is not in use."""
    if "kvpress" not in sys.modules:
        return function
    from kvpress.attention_patch import attention_patch

    return attention_patch(function)
