"""Conformance: properties that hold for every cache method, whatever it gives up.

Hypothesis draws lengths, batches, chunks and turns on small models of several architectures; the smallest trial that
fails is printed as a test to be pasted.

    pytest --kv-method=snapkv -m conformance                    the properties only
    pytest suites/test_conformance.py --kv-method=your.module.Class

The properties: kvcheck/conformance/properties/. What a method declares decides which of them apply (MethodInfo).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcheck.plugin.conformance import KvProperty


def test_conformance(kv_property: KvProperty) -> None:
    """The property holds."""
    kv_property.check(kv_property.examine())
