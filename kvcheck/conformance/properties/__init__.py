"""The properties, by name. A property is a function of a Subject that raises Violation where it does not hold."""

from __future__ import annotations

from kvcheck.conformance.properties import batching, equivalence, numbers, positions, reading, sizes, state, symmetry
from kvcheck.conformance.properties.base import PropertyTest

PROPERTIES: dict[str, PropertyTest] = {
    one.name: one
    for module in (equivalence, reading, positions, sizes, numbers, batching, state, symmetry)
    for one in vars(module).values()
    if isinstance(one, PropertyTest)
}
