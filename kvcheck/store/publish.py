"""Publishing baselines: what one store holds is merged into another, file by file, each written whole or not at all.

Nothing is written before everything was looked at: the source is verified, every record finds the fp16 record that it
was written against, and different numbers are refused unless they are meant to be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvcheck.core.errors import BaselineError
from kvcheck.core.paths import bundle
from kvcheck.store.baselines import Layered
from kvcheck.store.file_store import FileStore
from kvcheck.store.reader import Entry, Reader
from kvcheck.store.text import ModelId, StoredCase, StoredFile, base_digest, decode, difference, write_file


@dataclass(frozen=True)
class Merge:
    """What publishing makes of one file: path there, the file here, the file as it is there and as it will be.

    new, differ: how many cases that place has not, and has otherwise. lines: every number that would change.
    """

    path: str
    mine: StoredFile
    seen: StoredFile | None
    stored: StoredFile
    new: int
    differ: int
    lines: tuple[str, ...]


def plan(source: Reader, target: Reader, chosen: Callable[[Entry], bool] = lambda entry: True) -> list[Merge]:
    """What publishing the chosen files of `source` would change in `target`, fp16 first. Writes nothing.

    Raises BaselineError: a file of the source that is damaged or stale, nothing chosen, a file of the target that
    cannot be read or is of another model, a record whose fp16 record would not be there.
    """
    layers = Layered(source, target, FileStore(bundle("baselines")))
    for path, problem in source.verify(layers.base):
        raise BaselineError(f"{path} is not published: {problem}", "kvcheck baselines verify shows all that is wrong")
    entries = sorted(
        filter(chosen, source.entries()), key=lambda one: (one.model.name, one.method != "fp16", one.method)
    )
    if not entries:
        raise BaselineError(f"no baselines to publish in {source.root}", "see what is there: kvcheck baselines list")
    merges = [_merge(source, target, entry) for entry in entries]
    for merge in merges:
        _expect_fp16(merge, merges, target)
    return merges


def write(target: Reader, merges: list[Merge]) -> list[str]:
    """Write these files in order, and give a line for every record there that fp16's new ones made stale.

    Raises BaselineError where one cannot be written, which names those that were: they are whole.
    """
    done: list[str] = []
    for merge in merges:
        try:
            with target.writing(merge.path, merge.seen):
                target.write(merge.path, write_file(merge.stored))
        except BaselineError as error:
            before = f"; written before it: {', '.join(done)}" if done else "; nothing was written before it"
            raise BaselineError(error.message + before, error.hint) from error
        done.append(merge.path)
    renewed = [merge.stored.model for merge in merges if merge.stored.method == "fp16" and merge.differ]
    return [line for model in renewed for line in target.left_behind(model)]


def _merge(source: Reader, target: Reader, entry: Entry) -> Merge:
    """One file of the source into that of the target: cases that only the target has stay."""
    mine, known = source.load(entry.model, entry.method), target.load(entry.model, entry.method)
    if mine is None:  # taken away since it was listed
        raise BaselineError(f"{entry.path} has gone", "push again")
    cases = {} if known is None else dict(known.cases)
    lines: list[str] = []
    new = differ = 0
    for key, one in mine.cases.items():
        theirs = cases.get(key)
        if theirs is not None and theirs.same_as(one):
            continue
        new, differ = new + (theirs is None), differ + (theirs is not None)
        lines += difference(theirs, one)
        cases[key] = one
    merged = replace(mine, cases=cases)
    return Merge(target.path(entry.model, entry.method), mine, known, merged, new, differ, tuple(lines))


def _expect_fp16(merge: Merge, merges: list[Merge], target: Reader) -> None:
    """Raise BaselineError where a published record would not find the fp16 record that it was written against."""
    model = merge.stored.model
    planned: list[StoredFile | None] = [
        one.stored for one in merges if one.stored.model == model and one.stored.method == "fp16"
    ]
    known = [*(planned or [target.load(model, "fp16")]), _shipped_fp16(model)]
    for key, one in merge.mine.cases.items():
        held = [stored.cases[key] for stored in known if stored is not None and key in stored.cases]
        if one.base and one.base not in [_digest(fp16, model, merge.path) for fp16 in held]:
            raise BaselineError(
                f"{merge.path}: {one.case} was written against an fp16 record that would not be there",
                "publish fp16 too: leave out --method, or name --method fp16 beside it",
            )


def _shipped_fp16(model: ModelId) -> StoredFile | None:
    """The shipped fp16 records, which lie below every store; None for a model that has none."""
    try:
        return FileStore(bundle("baselines")).load(model, "fp16")
    except BaselineError:  # of another model of that name
        return None


def _digest(fp16: StoredCase, model: ModelId, name: str) -> str:
    return base_digest(decode(fp16, "fp16", model, None, name))
