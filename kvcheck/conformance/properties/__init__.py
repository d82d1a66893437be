"""The shipped properties: functions of a Subject that raise Violation where they do not hold. Importing registers."""

from __future__ import annotations

from kvcheck.conformance.properties import (
    attending,
    batching,
    denominator,
    equivalence,
    generating,
    numbers,
    parameters,
    positions,
    reading,
    recurrent,
    sharing,
    sizes,
    state,
    symmetry,
    turns,
    ways,
)

__all__ = [
    "attending",
    "batching",
    "denominator",
    "equivalence",
    "generating",
    "numbers",
    "parameters",
    "positions",
    "reading",
    "recurrent",
    "sharing",
    "sizes",
    "state",
    "symmetry",
    "turns",
    "ways",
]
