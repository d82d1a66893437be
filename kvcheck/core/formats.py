"""Data that a file gives: TOML on every supported Python, and the type of what was not looked at yet."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""What JSON or TOML holds, before it was looked at."""


def read_toml(text: str) -> dict[str, Json]:
    """The table of a TOML file. Raises ValueError where it is none. The parser is imported here, by who needs it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
