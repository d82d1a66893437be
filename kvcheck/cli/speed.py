"""`kvcheck speed`: memory and latency of methods at several lengths, as one table with the roofline beside it."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.cli import options
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseRecord, Run, RunHeader
from kvcheck.core.settings import BATCH, ROUNDS, TIMEOUT, Settings
from kvcheck.core.spec import split_specs

if TYPE_CHECKING:
    from kvcheck.backends.transformers import Session
    from kvcheck.backends.transformers.speed import Limits

LENGTHS = "8192,32768,131072"
SAME = ("dtype", "attention", "rounds", "batch", "roofline")
"""Settings that all rows of a table share."""
OWN = ("model", "methods", "lengths", "device", "dtype", "rope", "attention", "trust_remote_code", "timeout")
"""Options that pytest has, too."""
USUAL = {"attention": "auto"}
"""What they are in a file that does not say."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured: methods (spec texts) at lengths, with the settings of the engine."""

    settings: Settings
    rounds: int
    batch: int

    def left(self, run: Run, retry: bool) -> Iterator[tuple[int, str]]:
        """(length, method) without a row, shortest first; with `retry` also those where something is missing."""
        done = {(one.case.length, one.method) for one in run.cases if not (retry and one.not_measured)}
        for length in self.settings.lengths:
            yield from ((length, method) for method in self.settings.methods if (length, method) not in done)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    speed = commands.add_parser("speed", help="memory and latency of methods at several lengths, against fp16")
    model = "random:llama-3.1-8b"
    options.add(speed, "model", default=model, help=f"embedded model, path or hub id (default: {model})")
    speed.add_argument("--methods", required=True, metavar="SPECS", help="such as fp16,snapkv:budget=0.25,kivi:bits=4")
    speed.add_argument("--lengths", default=LENGTHS, help=f"tokens of context (default {LENGTHS})")
    speed.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed rounds, after one warm-up (default {ROUNDS})")
    speed.add_argument(
        "--batch", type=int, default=BATCH, help=f"sequences decoded together, as far as they fit (default {BATCH})"
    )
    options.add(speed, "device", "dtype", "rope", "attention", "trust_remote_code")
    speed.add_argument("--bandwidth", type=float, metavar="GB/s", help="of the device's memory, for the roofline")
    speed.add_argument("--peak", type=float, metavar="TFLOP/s", help="of the device in 16 bits, dense")
    options.add(speed, "timeout", help=f"seconds for a row, 0 for no limit (default {TIMEOUT:g})")
    speed.add_argument("--json", type=Path, metavar="FILE", help="keep the rows there; what is in it is not run again")
    speed.add_argument("--retry", action="store_true", help="run rows again in which something was not measured")
    speed.add_argument("--md", metavar="FILE", help="write the table there as Markdown")
    speed.set_defaults(run=_speed, spell=options.spelling(OWN))


def _speed(given: argparse.Namespace) -> int:
    """0 where every row was measured, 1 where something was not."""
    from kvcheck.backends.transformers.speed import Limits
    from kvcheck.cli.checks import OK, REGRESSION, show
    from kvcheck.core.files import expect_file, write_atomically
    from kvcheck.report import speed
    from kvcheck.store.run_file import write_run

    plan = _plan(given)
    for path in filter(None, (given.json, given.md)):
        expect_file(path)
    session = _open(plan)
    limits = Limits.of(session, given.bandwidth, given.peak)
    run = _started(given.json, _header(session, plan, str(limits)))
    for row in _measured(plan.left(run, given.retry), plan, session, limits):
        run = _with(run, row)
        if given.json:
            write_run(given.json, run)
    show(speed.lines(run))
    if given.md:
        write_atomically(given.md, "\n".join(speed.markdown(run)) + "\n")
    return REGRESSION if any(one.not_measured for one in run.cases) else OK


def _plan(given: argparse.Namespace) -> Plan:
    """The arguments, checked as the options of the same names. Raises KvcheckError."""
    from kvcheck.core import env

    if env.processes() > 1:
        raise KvcheckError(
            f"torchrun started {env.processes()} processes: kvcheck speed measures a model in one",
            "leave torchrun out; --device spread puts the layers of a model on all GPUs",
        )
    if given.rounds < 1 or given.batch < 1:
        raise KvcheckError("--rounds and --batch are numbers from 1 up", "kvcheck speed --rounds 9 --batch 8")
    asked = {**vars(given), "methods": split_specs(given.methods)}
    return Plan(options.check(asked, OWN), given.rounds, given.batch)


def _open(plan: Plan) -> Session:
    """The engine with the model. Parameters of methods are checked first: a slip costs no hours."""
    from kvcheck.backends.transformers import Session
    from kvcheck.backends.transformers.session import find_method

    for method in plan.settings.methods:
        find_method(method)
    return Session.open(plan.settings)


def _header(session: Session, plan: Plan, roofline: str) -> RunHeader:
    """What the rows are measured on, and how."""
    from kvcheck.core import env
    from kvcheck.store.run_file import header

    settings = {"rounds": str(plan.rounds), "batch": str(plan.batch), "roofline": roofline}
    settings["attention"] = plan.settings.attention
    settings["dtype"] = str(session.loaded.model.dtype).removeprefix("torch.")
    settings["date"] = datetime.date.today().isoformat()
    machine = env.machine(plan.settings.device)
    return header(Path.cwd(), session.model_name, session.fingerprint, machine, settings)


def _started(path: Path | None, header: RunHeader) -> Run:
    """The run so far: what the file holds, or nothing yet. Raises KvcheckError for a file that does not fit."""
    from kvcheck.store.run_file import read_run

    if path is None or not path.exists():
        return Run(header, ())
    before = read_run(path)
    old = before.header
    pairs = {"model": (old.model, header.model), "machine": (old.machine, header.machine)}
    pairs |= {"version of kvcheck": (old.kvcheck, header.kvcheck), "commit": (old.git, header.git)}
    pairs |= {"packages": (old.packages, header.packages)}  # type: ignore[dict-item]
    pairs |= {name: (old.settings.get(name, USUAL.get(name, "")), header.settings[name]) for name in SAME}
    for name, (then, now) in pairs.items():
        if then != now:
            raise KvcheckError(
                f"{path} was measured with another {name}: {then}, now {now}",
                "rows of one table are measured alike: name another file with --json",
            )
    dates = sorted({*old.settings.get("date", "").split(" and "), header.settings["date"]} - {""})
    settings = {**header.settings, "date": " and ".join(dates)}
    return Run(replace(header, settings=settings, dirty=old.dirty or header.dirty), before.cases)


def _measured(left: Iterable[tuple[int, str]], plan: Plan, session: Session, limits: Limits) -> Iterator[CaseRecord]:
    """The rows that are left, one by one, with a line about each."""
    from kvcheck.cli.checks import progress

    waiting = list(left)
    for number, (length, method) in enumerate(waiting, start=1):
        where = f"{number} of {len(waiting)}: {method} at {length} tokens"
        progress(where)
        row = _row(plan, session, limits, length, method)
        progress(where + (f": {row.not_measured[0][1]}" if row.not_measured else ""), True)
        yield row


def _with(run: Run, row: CaseRecord) -> Run:
    """The run with a row more, in the place of one of the same case and method."""
    others = tuple(one for one in run.cases if (one.case, one.method) != (row.case, row.method))
    return replace(run, cases=(*others, row))


def _row(plan: Plan, session: Session, limits: Limits, length: int, method: str) -> CaseRecord:
    """One row; what was measured before the time limit stays."""
    from kvcheck.backends.transformers import speed
    from kvcheck.plugin.timelimit import TimeLimit, time_limit

    seconds, row = plan.settings.timeout, speed.Row(session, method, length)
    speed.let_go()
    try:
        with time_limit(seconds):
            row.measure((plan.rounds, plan.batch), limits)
    except TimeLimit:
        row.give_up(f"it took longer than {seconds:g} s (--timeout gives it more)")
    return row.record()
