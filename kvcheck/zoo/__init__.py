"""Faulty methods: each re-creates one public bug of a KV cache, as a small change to a correct method.

Read `base.py` first, then a family (`eviction.py`). `counterparts/` has the correct methods that no built-in one stands
for, `mutants.py` generic faults around any method, `evaluate.py` the gate over all of them.
"""

from kvcheck.zoo.base import Bug, bug, bugs

__all__ = ["Bug", "bug", "bugs"]
