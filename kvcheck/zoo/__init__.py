"""Faulty methods: each re-creates one public bug of a KV cache, as a small change to a correct method."""

from kvcheck.zoo.base import Bug, bug, bugs

__all__ = ["Bug", "bug", "bugs"]
