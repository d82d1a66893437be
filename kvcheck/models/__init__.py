"""Models under test: the embedded ones, a local folder, the Hugging Face hub.

What a name leads to is known without torch (names.py); `load` (loading.py, read it first) and the rest are imported on
demand. pretrained.py has the types of what transformers loads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kvcheck.core import env, threads
from kvcheck.models.names import EMBEDDED

if TYPE_CHECKING:
    from kvcheck.models.devices import pick_device, pick_dtype, share_threads
    from kvcheck.models.encoder import Encoder
    from kvcheck.models.loading import LoadedModel, Loading, load

__all__ = ["EMBEDDED", "Encoder", "LoadedModel", "Loading", "load", "pick_device", "pick_dtype", "share_threads"]
_DEVICES = ("pick_device", "pick_dtype", "share_threads")


def __getattr__(name: str) -> object:
    """Import the part that needs torch when it is asked for. Raises KvcheckError for a torch that will not do."""
    if name not in __all__:
        raise AttributeError(f"module 'kvcheck.models' has no attribute {name!r}")
    threads.wait_passively()
    env.expect_versions()
    part = "devices" if name in _DEVICES else "encoder" if name == "Encoder" else "loading"
    return getattr(import_module(f"kvcheck.models.{part}"), name)
