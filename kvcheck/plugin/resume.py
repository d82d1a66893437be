"""Where a run is kept while it goes on, and how an interrupted one is continued."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvcheck import __version__
from kvcheck.core import env, files, front
from kvcheck.core.errors import SpecError
from kvcheck.core.record import CLEAR, CaseRecord, RunHeader
from kvcheck.core.settings import MODEL, PROMPTS, Settings
from kvcheck.core.spec import Spec
from kvcheck.methods import canonical_of
from kvcheck.plugin import guardian, options, sources, state
from kvcheck.store import journal
from kvcheck.store.journal import Kept
from kvcheck.store.run_file import read_run

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine

FOLDER = "kvcheck_journal"
"""What the controller tells its workers."""


OURS = {
    "--kv-json": re.compile(rb"\s*\{\s*\"(header|schema)\""),
    "--kv-md": re.compile(rb"(## kvcheck: |\d+ (bugs|correct))"),
    "--kv-html": re.compile(rb"<!DOCTYPE html>\s[^\0]*<meta name=\"generator\" content=\"kvcheck\">"),
}
"""How the files begin that these options write, and may replace."""
THEIRS = {"--junitxml": "xmlpath", "--html": "htmlpath", "--log-file": "log_file"}
"""Other options that name an output, by their names on pytest's config."""


def outputs(config: pytest.Config, settings: Settings) -> tuple[Path | None, Path | None, Path | None]:
    """(run file, Markdown summary, page): where they are written, None for nowhere; the run file else lies in pytest's
    cache.

    The paths are those of the folder that pytest was started in. Each must take something now, before anything is
    measured, and replaces nothing but a file of its kind. Raises BaselineError, SpecError.
    """
    named = {"--kv-json": settings.json, "--kv-md": settings.md, "--kv-html": settings.html}
    paths = {option: Path(os.path.abspath(name)) for option, name in named.items() if name is not None}
    for option, path in paths.items():
        expect_ours(path, option)
    others = {option: getattr(config.option, name, None) for option, name in THEIRS.items()}
    every = paths | {option: Path(os.path.abspath(name)) for option, name in others.items() if name}
    taken: dict[str, str] = {}
    for option, path in every.items():
        first = taken.setdefault(os.path.realpath(path), option)
        if first != option:
            raise SpecError(f"{first} and {option} name one file: {path}", "give each a name of its own")
    return paths.get("--kv-json") or options.last_run(config), paths.get("--kv-md"), paths.get("--kv-html")


def expect_ours(path: Path, option: str, shown: str = "") -> None:
    """Raise BaselineError, SpecError where an option cannot write its file, or would overwrite one of another kind.

    shown: the option, where it is spelled otherwise.
    """
    files.expect_file(path)
    if path.is_file() and path.stat().st_size and not OURS[option].match(path.read_bytes()[:1000]):
        raise SpecError(f"{shown or option}: {path} holds something else and would be overwritten", "name another file")


def found(config: pytest.Config, settings: Settings) -> tuple[Kept | None, tuple[str, ...]]:
    """(what an earlier run has, its methods of which the code has changed since). Raises SpecError, BaselineError."""
    if settings.resume is None:
        return None, ()
    last = settings.resume == "last"
    place = options.last_run(config) if last else Path(os.path.abspath(settings.resume))
    kept = None if place is None else at(place)
    if kept is None or kept.header is None:
        none = "there is no earlier run to resume here" if last else f"there is no run at {settings.resume}"
        raise SpecError(f"{front.option('resume')}: {none}", anew())
    expect_same(settings, kept.header, config.rootpath, sources.of_plugins(config))
    return renewed(kept, settings.methods)


def anew() -> str:
    """What else could be done."""
    return f"start without {front.option('resume')}"


def at(place: Path) -> Kept | None:
    """What a run file or its journal holds, None where there is neither. Raises BaselineError."""
    kept = journal.found(place)
    return Kept.of_run(read_run(place)) if kept is None and place.is_file() else kept


def renewed(kept: Kept, methods: Iterable[str]) -> tuple[Kept, tuple[str, ...]]:
    """(what an earlier run has under today's names, the methods of which the code has changed since)."""
    methods = tuple(methods)
    kept = kept.renamed(partial(canonical_of, names=_names(methods)))
    before, now = {} if kept.header is None else kept.header.sources, sources.of_methods(methods)
    foreign = [spec for spec in methods if sources.elsewhere(spec)]
    return kept, tuple(spec for spec in foreign if not _same(before.get(spec), now.get(spec)))


def _same(before: str | None, now: str | None) -> bool:
    """Whether code is as it was. Where it is not known, nobody can tell, and it counts as changed."""
    return now is not None and before == now


def _names(methods: Iterable[str]) -> frozenset[str]:
    """The names of methods, those of composed ones each."""
    parts = [Spec.parse(text) for text in methods]
    found = set()
    while parts:
        part = parts.pop()
        found.add(part.name)
        parts += [part.then] if part.then is not None else []
    return frozenset(found)


def expect_same(settings: Settings, header: RunHeader, root: Path, brought: Mapping[str, str]) -> None:
    """Refuse a run that was measured otherwise. brought: the digest of plugins and tasks, under PLUGINS.

    Raises SpecError.
    """
    texts = settings.texts()
    same: Iterable[str] = ("device", "dtype", "query_aware", *PROMPTS, *MODEL, "cases")
    if settings.zoo:  # a result of the zoo depends on all of them
        same = sorted({*header.settings, *texts})
    facts = [(name, header.settings.get(name, "as usual"), texts.get(name, "as usual")) for name in same]
    facts += [("kvcheck", header.kvcheck, __version__), ("commit", header.git, env.git_state(root)[0])]
    now = env.packages()
    facts += [(name, header.packages.get(name, "none"), now.get(name, "none")) for name in sorted(env.PACKAGES)]
    facts += [("kvcheck's own code", header.sources.get(sources.OWN, ""), sources.own())]
    pair = (header.sources.get(sources.PLUGINS, ""), brought.get(sources.PLUGINS, ""))
    facts += [("the code of plugins and tasks", *pair)]
    for name, then, here in facts:
        if then != here:
            where = f"{front.option('resume')}: {settings.resume}"
            raise SpecError(
                f"{where} was measured with {name}={then}, this session has {name}={here}",
                f"one run is of one state: repeat what the first had, or {anew()}",
            )


def refuse_foreign(kept: Kept | None, engine: Engine) -> None:
    """A run is continued with the model that it began with. Raises SpecError."""
    header = None if kept is None else kept.header
    if header is not None and header.model and header.model != engine.fingerprint:
        raise SpecError(
            f"--kv-resume: the run was measured with {header.model_name} "
            f"({header.model}), this is {engine.model_name} ({engine.fingerprint})",
            f"resume with the same --kv-model, or {anew()}",
        )


def earlier(mine: state.State, case: str, method: str) -> tuple[CaseRecord | None, bool]:
    """(the record of an earlier run, whether nothing is left to measure of it); None where the code changed since."""
    if mine.kept is None or method in mine.anew:
        return None, False
    record, ended = mine.kept.records.get((case, method)), mine.kept.ended.get((case, method))
    if record is None:
        return None, False
    whole = ended is not None and ended.record is not None
    return record, whole and (len(record.samples) >= record.case.n or record.stopped == CLEAR)


def begin(config: pytest.Config) -> Path:
    """Make the folder of the journal, in the process that prints the summary. Raises BaselineError."""
    mine = state.of(config)
    path = mine.run_file
    folder = Path(tempfile.mkdtemp(prefix="kvcheck-")) / "run.journal" if path is None else journal.folder_of(path)
    kept = mine.kept
    if kept is not None and mine.anew:
        kept = kept.without(mine.anew)
    journal.begin(folder, kept)
    guardian.tell(config, journal=str(folder), run_file=str(path or ""), md_file=str(mine.md_file or ""))
    guardian.tell(config, html_file=str(mine.html_file or ""))
    guardian.tell(config, timeout=mine.settings.timeout)
    mine.journal = journal.Journal(folder, "main")
    return folder


def join(config: pytest.Config) -> None:
    """In a worker: write beside the controller's."""
    folder = getattr(config, "workerinput", {}).get(FOLDER)
    if folder:
        state.of(config).journal = journal.Journal(Path(folder), os.environ["PYTEST_XDIST_WORKER"])
