"""Engines: properties of the life of a KV cache in a real one, whatever it gives up.

A prefix hit is a miss, together is alone, a small pool changes nothing, … Each has a witness that the path was really
taken; without it the property could not be tried, and never "holds".

    pytest --kv-method=openvino:KV_CACHE_PRECISION=u8 -m engine      the properties only

The properties: kvcheck/backends/engines/properties.py. What there is to be set: `kvcheck engines`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcheck.plugin.served import KvEngine


def test_engine(kv_engine: KvEngine) -> None:
    """The property holds."""
    kv_engine.check(kv_engine.examine())
