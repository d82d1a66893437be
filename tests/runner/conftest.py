"""The tiny model."""

from __future__ import annotations

from tiny import (  # noqa: F401  (fixtures)
    case,
    folder,
    loaded,
    make_runner,
    make_session,
    methods,
    one_thread,
    runner,
    session,
    tasks,
)
