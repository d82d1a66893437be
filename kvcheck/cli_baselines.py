"""`kvcheck baselines`: list and verify what is stored, record more, publish it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck import cli_record
from kvcheck.cli_checks import OK, REGRESSION, complain, show
from kvcheck.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvcheck.baseline import Store
    from kvcheck.baseline_files import Entry, Reader

PLACES = (
    "folders and URLs of your own by commas, first place first, above the shipped ones (default: .kvcheck/baselines)"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    baselines = commands.add_parser("baselines", help="list, verify, record or publish baselines")
    actions = baselines.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("list", _list, "what is stored where"),
        ("verify", _verify, "is every file whole, and does it find the fp16 record that it was written against?"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--baselines", metavar="URI,…", help=PLACES)
        action.set_defaults(run=run)
    cli_record.add(actions)
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
    from kvcheck.baseline import open_store

    return open_store(uri, rootdir=Path.cwd())


def _list(given: argparse.Namespace) -> int:
    """1 where a file cannot be used."""
    from kvcheck.report.text import columns

    store = own_store(given.baselines)
    body = [("model", "fingerprint", "method", "cases", "file")]
    for entry in store.entries():
        body.append((entry.model.name, entry.model.fingerprint, entry.method, str(len(entry.cases)), entry.path))
    none = "no baselines; record some: kvcheck baselines record --model NAME --suite NAME"
    show(columns(body, "<<<><") if len(body) > 1 else [none])
    return _tell(store.verify())


def _verify(given: argparse.Namespace) -> int:
    """1 where a file cannot be used, or a place that was named holds none: nothing is whole that was not read."""
    from kvcheck.baseline import open_place, places
    from kvcheck.report.text import plural

    store = own_store(given.baselines)
    problems, entries = store.verify(), store.entries()
    read = [path for path, _ in problems] + [entry.path for entry in entries]
    roots = [open_place(place).root for place in places(given.baselines)] if given.baselines is not None else []
    empty = [root for root in roots if not any(path.startswith(f"{root}/") for path in read)]
    problems += [(root, "there are no baselines") for root in empty]
    if not problems:
        print(f"{plural(len(entries), 'file')}, all readable and whole")
    return _tell(problems)


def _tell(problems: list[tuple[str, str]]) -> int:
    for path, reason in problems:
        complain(f"{path}: {reason}")
    return REGRESSION if problems else OK


def _push(given: argparse.Namespace) -> int:
    """1 where that place has other numbers and --replace is not given."""
    from kvcheck import baseline_push
    from kvcheck.baseline import open_place
    from kvcheck.paths import user_baselines
    from kvcheck.report.text import plural

    source, target = open_place(given.source or user_baselines(Path.cwd())), open_place(given.to)
    merges = baseline_push.plan(source, target, _chosen(given, source))
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
    show(baseline_push.write(target, changed))
    show([f"{plural(len(changed), 'file')} written to {target.root}, read back and whole"])
    return OK


def _chosen(given: argparse.Namespace, source: Reader) -> Callable[[Entry], bool]:
    """What --method and --model choose. Raises BaselineError for one that the store does not hold."""
    from kvcheck.errors import did_you_mean

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
