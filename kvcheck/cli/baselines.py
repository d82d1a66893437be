"""`kvcheck baselines`: list and verify what is stored, record more, publish it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.cli import options, record
from kvcheck.cli.checks import OK, REGRESSION, complain, show
from kvcheck.core.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcheck.store.baselines import Store
    from kvcheck.store.reader import Entry, Reader

PLACES = (
    "folders and URLs of your own by commas, first place first, above the shipped ones (default: .kvcheck/baselines)"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    baselines = commands.add_parser("baselines", help="list, verify, record or publish baselines")
    actions = baselines.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("list", _list, "what is stored where"),
        ("verify", _verify, "is every file whole, and every answer one to its prompt, with the score that it earns?"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--baselines", metavar="URI,…", help=PLACES)
        action.set_defaults(run=run)
    action.add_argument(
        "--model", action="append", default=[], metavar="PATH", help="where a model lies whose name does not say it"
    )
    options.add(action, "data", "text", "compat")
    action.set_defaults(spell=options.spelling(("data", "text", "compat")))
    record.add(actions)
    _add_push(actions)


def _add_push(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    push = actions.add_parser("push", help="publish the records of a store to another one")
    push.add_argument("--to", required=True, metavar="URI", help="a folder, s3://, gs://, hf://datasets/OWNER/NAME, …")
    push.add_argument("--from", dest="source", metavar="URI", help="the store to publish (default: .kvcheck/baselines)")
    push.add_argument("--method", action="append", metavar="SPEC", help="only this one; repeatable (default: all)")
    push.add_argument("--model", metavar="NAME", help="only this one, as `list` shows it (default: all)")
    push.add_argument("--replace", action="store_true", help="numbers that are stored otherwise there are replaced")
    push.add_argument("--dry-run", action="store_true", help="say what would change, write nothing")
    push.set_defaults(run=_push)


def own_store(uri: str | None = None) -> Store:
    """The places that are named, else the user's baselines under this folder; above the shipped ones."""
    from kvcheck.store.baselines import open_store

    return open_store(uri, rootdir=Path.cwd())


def _list(given: argparse.Namespace) -> int:
    """1 where a file cannot be used."""
    from kvcheck.report.table import WHOLE, Table

    store = own_store(given.baselines)
    body = [
        (entry.model.name, entry.model.fingerprint, entry.method, str(len(entry.cases)), entry.path)
        for entry in store.entries()
    ]
    none = "no baselines; record some: kvcheck baselines record --model NAME --suite NAME"
    show(Table(("model", "fingerprint", "method", "cases", "file"), "<<<><", body).text(WHOLE) if body else [none])
    return _tell(store.verify())


def _verify(given: argparse.Namespace) -> int:
    """1 where a file cannot be used or an answer is not what it says, or a place that was named holds nothing.

    Nothing is whole that was not read and graded again.
    """
    from kvcheck.judging.rescoring import graded_again
    from kvcheck.store.baselines import open_place, places
    from kvcheck.store.reader import problems

    settings, unknown = options.check(vars(given), ("data", "text", "compat")), dict[str, list[str]]()
    readings = list(graded_again(own_store(given.baselines).readings(), settings, unknown, given.model))
    found = problems(readings)
    roots = [open_place(place).root for place in places(given.baselines)] if given.baselines is not None else []
    empty = [root for root in roots if not any(one.path.startswith(f"{root}/") for one in readings)]
    found += [(root, "there are no baselines") for root in empty]
    files, cases = len({one.path for one in readings}), sum(one.record is not None for one in readings)
    missing = sum(len(paths) for paths in unknown.values())
    if not found:
        print(_whole(files, cases, missing))
    show(f"not verified: {_counted(paths)}: {reason}" for reason, paths in sorted(unknown.items()))
    return _tell(found)


def _whole(files: int, cases: int, missing: int) -> str:
    from kvcheck.report.text import plural

    graded = f"{plural(cases - missing, 'case')} graded again on prompts generated anew"
    if missing:
        return f"{plural(files, 'file')}, all readable: {graded}, {missing} not verified"
    return f"{plural(files, 'file')}, all readable and whole: {graded}"


def _counted(paths: list[str]) -> str:
    from kvcheck.report.text import plural

    return f"{plural(len(paths), 'case')} in {', '.join(dict.fromkeys(paths))}"


def _tell(problems: list[tuple[str, str]]) -> int:
    for path, reason in problems:
        complain(f"{path}: {reason}")
    return REGRESSION if problems else OK


def _push(given: argparse.Namespace) -> int:
    """1 where that place has other numbers and --replace is not given."""
    from kvcheck.core.paths import user_baselines
    from kvcheck.report.text import plural
    from kvcheck.store import publish
    from kvcheck.store.baselines import open_place

    source, target = open_place(given.source or user_baselines(Path.cwd())), open_place(given.to)
    merges = publish.plan(source, target, _chosen(given, source))
    differ = sum(merge.differ for merge in merges)
    refused = differ > 0 and not given.replace
    for merge in merges:
        words = [f"{merge.new} new"] + ([f"{merge.differ} {'differ' if refused else 'replaced'}"] * (merge.differ > 0))
        changes = merge.new + merge.differ > 0
        what = ", ".join(words) if changes else "the same there"
        show([f"{merge.stored.method} on {merge.stored.model.name}: {what}"])
        show(f"  {line}" for line in merge.lines)
    if refused:
        say = f"{plural(differ, 'case')} differ from what {target.root} holds: nothing was written"
        complain(f"{say}\n  look at the differences above, then add --replace")
        return REGRESSION
    changed = [merge for merge in merges if merge.new + merge.differ]
    if given.dry_run or not changed:
        show(["nothing was written: --dry-run" if given.dry_run else f"{target.root} is up to date"])
        return OK
    show(publish.write(target, changed))
    show([f"{plural(len(changed), 'file')} written to {target.root}, read back and whole"])
    return OK


def _chosen(given: argparse.Namespace, source: Reader) -> Callable[[Entry], bool]:
    """What --method and --model choose. Raises BaselineError for one that the store does not hold."""
    from kvcheck.core.errors import did_you_mean

    entries = source.entries()
    for flag, wanted, known in (
        ("--method", given.method or [], {entry.method for entry in entries}),
        ("--model", [given.model] if given.model else [], {entry.model.name for entry in entries}),
    ):
        for word in wanted:
            if word not in known:
                raise BaselineError(f"{flag}: {source.root} has no records of {word}", did_you_mean(word, known))

    def chosen(entry: Entry) -> bool:
        return entry.method in (given.method or [entry.method]) and entry.model.name == (
            given.model or entry.model.name
        )

    return chosen
