"""kvcheck tells whether a KV cache method still works. `pytest --kv-method=snapkv` is the way in.

An own method, task, backend or plugin imports its names from here and nowhere deeper. Each is imported when it is asked
for: pytest loads the plugin in every session on the machine, and must not pay for torch there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

    from kvcheck.cache.growable import GrowableBuffer
    from kvcheck.cache.kv_cache import KVCache
    from kvcheck.cache.layer import CacheLayer
    from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
    from kvcheck.cache.method_runner import MethodRunner
    from kvcheck.cache.shape import ModelShape, Prefilled
    from kvcheck.conformance.base import property_test
    from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
    from kvcheck.core.record import CaseId, CaseRecord, Run, Verdict
    from kvcheck.core.settings import Settings
    from kvcheck.core.spec import Spec
    from kvcheck.judging.budget import Budget, judge
    from kvcheck.runner.seam import Answer
    from kvcheck.store.run_file import read_run
    from kvcheck.tasks.base import Sample, Task, Turn

_PUBLIC = {
    "Answer": "runner.seam",
    "Budget": "judging.budget",
    "CacheLayer": "cache.layer",
    "CaseId": "core.record",
    "CaseRecord": "core.record",
    "GrowableBuffer": "cache.growable",
    "KVCache": "cache.kv_cache",
    "KvcheckError": "core.errors",
    "Lossless": "cache.method",
    "Method": "cache.method",
    "MethodFailed": "core.errors",
    "MethodInfo": "cache.method",
    "MethodRunner": "cache.method_runner",
    "MethodUnsupported": "core.errors",
    "ModelShape": "cache.shape",
    "Prefilled": "cache.shape",
    "Run": "core.record",
    "Sample": "tasks.base",
    "Settings": "core.settings",
    "Spec": "core.spec",
    "SpecError": "core.errors",
    "Stage": "cache.method",
    "Task": "tasks.base",
    "Turn": "tasks.base",
    "Verdict": "core.record",
    "judge": "judging.budget",
    "property_test": "conformance.base",
    "read_run": "store.run_file",
}
"""The public names, with the modules that they are in."""

__all__ = [
    "Answer",
    "Budget",
    "CacheLayer",
    "CaseId",
    "CaseRecord",
    "GrowableBuffer",
    "KVCache",
    "KvcheckError",
    "Lossless",
    "Method",
    "MethodFailed",
    "MethodInfo",
    "MethodRunner",
    "MethodUnsupported",
    "ModelShape",
    "Prefilled",
    "Run",
    "Sample",
    "Settings",
    "Spec",
    "SpecError",
    "Stage",
    "Task",
    "Turn",
    "Verdict",
    "__version__",
    "judge",
    "property_test",
    "read_run",
]


def __getattr__(name: str) -> object:
    """A public name, imported on demand; `kvcheck.__version__` likewise."""
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(f"kvcheck.{_PUBLIC[name]}"), name)
    if name != "__version__":
        raise AttributeError(f"module 'kvcheck' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kvcheck")
    except PackageNotFoundError:
        return "0+source"


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
