"""pytest under torchrun: the first process runs the session, the others follow it and neither print nor write."""

from __future__ import annotations

import os

import pytest

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain


def main(config: pytest.Config) -> int | None:
    """The session of a process that follows; None in the first one, which goes on as always. Raises UsageError."""
    if env.rank() == 0:
        refuse(config)
    from kvcheck.models import parallel

    try:
        found = parallel.team()
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {plain(error)}") from None
    if found is None:
        return None
    if found.rank == 0:
        config.add_cleanup(found.leave)
        return None
    from kvcheck.backends.transformers import follow
    from kvcheck.plugin.timelimit import time_limit

    follow(found, time_limit)
    return 0


def refuse(config: pytest.Config) -> None:
    """Raise UsageError for what does not go together with torchrun."""
    count = env.processes()
    if getattr(config.option, "numprocesses", None) or "PYTEST_XDIST_WORKER" in os.environ:
        raise pytest.UsageError(
            f"kvcheck: torchrun started {count} processes that share one model; workers of pytest-xdist cannot\n"
            "  leave -n out, or run pytest without torchrun"
        )
    if getattr(config.option, "kv_zoo", None):
        raise pytest.UsageError(
            f"kvcheck: the zoo tries methods on the embedded model in one process, not in {count}\n"
            "  run pytest --kv-zoo=… without torchrun"
        )
