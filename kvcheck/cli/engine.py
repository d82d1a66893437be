"""`kvcheck engine start`: a server of an engine in an environment of its own, until it is no longer wanted."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kvcheck.backends.engines.dialects import LAUNCHES
from kvcheck.backends.engines.start import TIMEOUT, quiet, started
from kvcheck.cli.checks import OK, show

NAME = "engine"
TICK = 0.2
"""Seconds between two looks."""


class _Enough(BaseException):
    """The server is no longer wanted."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this module."""
    group = commands.add_parser(NAME, help="start a server of an engine in its own environment, to test it")
    verbs = group.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser(
        "start",
        help="start one here, wait until it is ready, and end it with this command",
        usage="kvcheck engine start KIND --python PATH [--port N] [--log FILE] [--timeout S] [-- ENGINE'S ARGUMENTS]",
    )
    start.add_argument("kind", metavar="KIND", help=", ".join(LAUNCHES))
    start.add_argument("--python", required=True, metavar="PATH", help="of the engine's environment; or llama-server")
    start.add_argument("--port", type=int, metavar="N", help="on 127.0.0.1 (default: a free one)")
    start.add_argument("--log", type=Path, metavar="FILE", help="append there what it says (default: a new file)")
    start.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="S", help=f"seconds until ready (default {TIMEOUT:g})"
    )
    start.set_defaults(run=_start)


def own_arguments(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words of a command, and those behind `--` where they are an engine's own."""
    if not words or words[0] != NAME or "--" not in words:
        return words, []
    at = list(words).index("--")
    return words[:at], words[at + 1 :]


def _start(given: argparse.Namespace) -> int:
    """Until Ctrl-C, SIGTERM, or the end of the process that started this one: 0. Raises where the server ends first."""
    parent = os.getppid()
    before = {number: signal.signal(number, _enough) for number in _signals()}
    try:
        with started(
            given.kind, given.python, port=given.port, log=given.log, timeout=given.timeout, arguments=given.own
        ) as server:
            show([f"{server.kind} is ready: {server.url}", f"--kv-method={shlex.quote(server.method)}"])
            show([f"log: {server.log}; Ctrl-C ends it"])
            more = quiet(given.kind, given.own)
            if more:
                show([f"some properties see more of a server that is started with {' and '.join(more)}"])
            while os.getppid() == parent:
                server.expect_alive()
                time.sleep(TICK)
    except _Enough:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return OK


def _signals() -> list[signal.Signals]:
    """What ends it. A shell lets jobs in the background ignore SIGINT; nohup's SIGHUP stays ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    kept = [] if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [hangup]
    return [signal.SIGINT, signal.SIGTERM, *kept]


def _enough(number: int, frame: FrameType | None) -> None:
    raise _Enough
