"""The command line `kvcheck`: `commands.py` declares all of them, the other modules do the longer ones."""

from kvcheck.cli.commands import main

__all__ = ["main"]
