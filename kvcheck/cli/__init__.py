"""The command line `kvcheck`.

Read `commands.py` first: it declares all commands, the other modules do the longer ones.
"""

from kvcheck.cli.commands import main

__all__ = ["main"]
