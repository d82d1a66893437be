"""The shipped properties: functions of a Subject that raise Violation where they do not hold. Importing registers."""

from __future__ import annotations

from kvcheck.conformance.properties import (
    batching,
    denominator,
    equivalence,
    generating,
    numbers,
    positions,
    reading,
    recurrent,
    sizes,
    state,
    symmetry,
    ways,
)

__all__ = [
    "batching",
    "denominator",
    "equivalence",
    "generating",
    "numbers",
    "positions",
    "reading",
    "recurrent",
    "sizes",
    "state",
    "symmetry",
    "ways",
]
