"""`kvcheck sweep`: methods x models x lengths over many workers, of this machine or of a cluster, into run files."""

from __future__ import annotations

import argparse
import shlex
import signal
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kvcheck.cli import options
from kvcheck.core import files, front
from kvcheck.core.errors import SpecError
from kvcheck.core.front import typed
from kvcheck.core.settings import Settings
from kvcheck.core.spec import split_specs

if TYPE_CHECKING:
    from kvcheck.core.record import Run
    from kvcheck.sweep.book import Book
    from kvcheck.sweep.pools import Pool
    from kvcheck.sweep.schedule import Entry, Group
    from kvcheck.sweep.worker import Done

CASES = ("lengths", "profile", "tasks", "modes", "n", "seed")
ENGINE = ("device", "dtype", "query_aware", "rope", "attention", "trust_remote_code")
PROMPTS = ("data", "text", "compat", "chat", "think", "history")
JUDGING = ("baselines", "against", "budget", "alpha", "timeout")
GRID = (*CASES, *ENGINE, *PROMPTS, *JUDGING)
"""Options that pytest has, too, and that say what is measured."""
SAME = (*GRID, "prefill_cache", "prefill_cache_size")
"""All that pytest has, too."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell has it, and after SIGTERM."""
EPILOG = (
    "Of several models each has a run file of its own, RUN-MODEL.json. Exit status 0: every case was measured; 1: one "
    "was not, its run file says why; 2: the sweep could not be run. --timeout limits a block of contexts. Verdicts are "
    "in the run files and change no status: kvcheck report RUN.json"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    sweep = commands.add_parser("sweep", help="methods x models x lengths, over devices or a cluster", epilog=EPILOG)
    sweep.add_argument("--methods", required=True, metavar="SPECS", help="such as fp16,snapkv:budget=0.25,kivi:bits=4")
    sweep.add_argument("--models", required=True, metavar="NAME,…", help="embedded models, paths or hub ids")
    options.add(sweep, *SAME)
    sweep.add_argument("--json", required=True, type=Path, metavar="RUN.json", help="where the records go as they come")
    sweep.add_argument("--resume", action="store_true", help="go on with what is there, if anything is")
    sweep.add_argument("--workers", type=int, metavar="N", help="default: one per device (CUDA; else one)")
    sweep.add_argument("--ray", metavar="ADDRESS", help="actors of Ray: auto (the cluster of this machine), local, …")
    other = {name: options.renamed(word) for name, word in (("methods", "methods"), ("model", "models"))}
    spell = options.spelling((*SAME, "json"), resume=lambda name, value: "--resume", **other)
    sweep.set_defaults(run=_sweep, spell=spell)


def _sweep(given: argparse.Namespace) -> int:
    """0 where every case was measured, 1 where one was not."""
    books = _books(given)
    with ExitStack() as locks:
        for book in books:
            locks.enter_context(files.alone(book.path))
            book.check(given.resume)
        return _measured(given, books)


def _measured(given: argparse.Namespace, books: list[Book]) -> int:
    """Measure what is left, of books that are checked."""
    from kvcheck.cli.checks import ERROR, OK, REGRESSION, complain, progress, show
    from kvcheck.sweep.schedule import Schedule, groups

    waiting = groups(books)
    runs: list[tuple[Book, Run | None]] = []
    total, over, interrupted = sum(len(group.left) for group in waiting), 0, False

    def tell(slot: int, group: Group, entry: Entry, what: str, always: bool = False) -> None:
        nonlocal over
        case, method = entry
        whole = entry not in group.left
        over += whole
        name = f"{group.book.settings.model} {case.task} {case.mode} {case.length} {method}"
        progress(f"{over} of {total} cases; worker {slot}: {name} {what}", whole or always)

    def heard(slot: int, group: Group, entry: Entry, done: Done) -> None:
        tell(slot, group, entry, f"{group.book.done(*entry)}/{entry[0].n}" + (" failed" if done.failure else ""))

    def died(slot: int, group: Group | None, entry: Entry | None, how: str) -> None:
        if group is None or entry is None:
            progress(f"worker {slot} died with nothing to do: {how}", True)
        else:
            given_up = "" if entry in group.left else "; the case is given up"
            tell(slot, group, entry, f"died: {how}{given_up}", True)

    def refused(book: Book, count: int) -> None:
        nonlocal over
        over += count
        progress(f"{over} of {total} cases; {book.settings.model} cannot be opened: {book.refused}", True)

    def end(book: Book) -> None:
        runs.append((book, _closed(book)))

    with ExitStack() as ends:  # every book is closed, whatever happens
        ends.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        for book in reversed(books):
            book.begin()
            ends.callback(end, book)
        try:
            if waiting:
                pool = _pool(given, books[0].settings, total)
                signal.signal(signal.SIGTERM, _interrupt)  # Ray has set its own
                try:
                    Schedule(waiting, heard, died, refused).run(pool)
                finally:
                    pool.close()
        except KeyboardInterrupt:
            interrupted = True
    for book in books:
        if book.refused is not None:
            complain(book.refused)
    if all(book.refused is not None and run is None for book, run in runs):
        return ERROR
    if interrupted:
        show(["interrupted: what was measured is kept; the same command with --resume goes on"])
        return INTERRUPTED
    return REGRESSION if any(run is None or run.failures for _, run in runs) else OK


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM, as of a scheduler of a cluster, does what Ctrl-C does, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _closed(book: Book) -> Run | None:
    """Judge and write what is there of a model, and show it."""
    from kvcheck.cli.checks import coloured, show, width
    from kvcheck.cli.report import read
    from kvcheck.report import terminal

    run = book.close()
    if run is not None:
        coloured(
            terminal.lines(*read(book.path), width=width(), full=f"kvcheck report {shlex.quote(str(book.path))} -v")
        )
        show([*book.notes, f"{book.path}: written"])
    return run


def _books(given: argparse.Namespace) -> list[Book]:
    """A book per model, everything checked: a slip costs no hours. Raises KvcheckError."""
    from kvcheck.backends.engines import specs
    from kvcheck.backends.transformers.session import find_method
    from kvcheck.models import Loading, names
    from kvcheck.models.loading import encoder_of
    from kvcheck.plugin import cases, opening, refusals, resume
    from kvcheck.sweep.book import Book

    if given.workers is not None and given.workers < 1:
        raise SpecError("--workers is a number from 1 up", "leave it out: one per device")
    models = list(dict.fromkeys(name.strip() for name in given.models.split(",")))
    if not all(models):
        raise SpecError(f"--models={given.models}: a name is empty", "such as --models=mini,mini_window")
    if not all(split_specs(given.methods)):
        raise SpecError(f"--methods={given.methods}: a method is empty", "such as --methods=fp16,snapkv:budget=0.25")
    found = []
    for model, path in zip(models, _paths(given.json, models), strict=True):
        asked = {**vars(given), "methods": split_specs(given.methods), "model": model}
        settings = opening.in_full(options.check(asked, ("methods", "model", *SAME)))
        if specs.chosen(settings) is not None:
            raise SpecError("kvcheck sweep measures methods, no engines", "pytest --kv-method measures those")
        if not isinstance(settings.n, int | None):
            raise SpecError(f"--n={settings.n}: a sweep measures all of its contexts", "give a number: --n=16")
        names.find(model)
        refusals.known_place(settings)
        refusals.prefill_place(settings)
        resume.expect_ours(path, "--kv-json", front.option("json"))
        for method in settings.methods:
            find_method(method)
        found.append(Book(settings, path, cases.cases(settings, None), _grid(given, settings), str(given.json)))
        if not found[-1].cases:
            raise SpecError(f"no case of {model} under these options", "kvcheck tasks lists what there is")
    for each in (book.settings for book in found):  # all but the weights
        encoder_of(each.model, Loading(each.rope, bool(each.trust_remote_code)))
    return found


def _grid(given: argparse.Namespace, settings: Settings) -> str:
    """The grid as it is typed, in one form."""
    words = [typed("methods", ",".join(settings.methods)), typed("models", given.models)]
    for name in GRID:
        value = getattr(settings, name)
        if getattr(given, name) is not None and value != getattr(Settings(), name):
            text = "" if value is True else given.budget if name == "budget" else value
            text = ",".join(map(str, text)) if isinstance(text, tuple) else str(text)
            words.append(typed(name.replace("_", "-"), text))
    return shlex.join(words)


def _paths(path: Path, models: list[str]) -> list[Path]:
    """The run files of the models: the one that was named, or one for each beside it."""
    if len(models) == 1:
        return [path.absolute()]
    short = [files.safe_name(Path(model).name) for model in models]
    short = short if len(set(short)) == len(models) else [files.safe_name(model) for model in models]
    return [path.with_name(f"{path.stem}-{name}{path.suffix}").absolute() for name in short]


def _pool(given: argparse.Namespace, settings: Settings, most: int) -> Pool:
    """The workers. most: how many can have something to do at the same time."""
    from kvcheck.cli.checks import progress
    from kvcheck.sweep.cluster import Actors
    from kvcheck.sweep.pools import Processes

    if given.ray is not None:
        return Actors(given.ray, given.workers, settings.device != "cpu", lambda text: progress(text, True))
    if given.workers is None and settings.device == "auto":
        import torch

        return Processes(min(most, torch.cuda.device_count() or 1))
    return Processes(min(most, given.workers or 1))
