"""kvcheck tells whether a KV cache method still works. `pytest --kv-method=snapkv` is the way in.

The package imports nothing when it is imported: pytest loads its plugin in every session on the machine.
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """`kvcheck.__version__`, looked up on demand."""
    if name != "__version__":
        raise AttributeError(f"module 'kvcheck' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kvcheck")
    except PackageNotFoundError:
        return "0+source"
