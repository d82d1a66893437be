"""The tiny model."""

from tiny import *  # noqa: F403  (its fixtures, which are listed there)
