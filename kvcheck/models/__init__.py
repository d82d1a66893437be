"""Models under test: the embedded ones, a local folder, the Hugging Face hub.

The names of the embedded ones are known without torch; `load` and the rest are imported on demand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcheck.core import env, threads
from kvcheck.models.names import EMBEDDED

if TYPE_CHECKING:
    from kvcheck.models.devices import pick_device, pick_dtype, share_threads
    from kvcheck.models.encoder import Encoder
    from kvcheck.models.loading import LoadedModel, Loading, load

__all__ = ["EMBEDDED", "Encoder", "LoadedModel", "Loading", "load", "pick_device", "pick_dtype", "share_threads"]


def __getattr__(name: str) -> object:
    """Import the part that needs torch when it is asked for. Raises KvcheckError for a torch that will not do."""
    if name in __all__:
        threads.wait_passively()
        env.expect_versions()
    if name == "Encoder":
        from kvcheck.models.encoder import Encoder

        return Encoder
    if name in ("pick_device", "pick_dtype", "share_threads"):
        from kvcheck.models import devices

        return getattr(devices, name)
    if name in __all__:
        from kvcheck.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'kvcheck.models' has no attribute {name!r}")
