"""What the hooks and fixtures of one process share, kept on pytest's config."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvcheck.core import env, paths
from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.escape import plain
from kvcheck.core.registry import importable
from kvcheck.core.settings import Settings
from kvcheck.core.spec import raised
from kvcheck.models import synthetic
from kvcheck.plugin import options
from kvcheck.store.run_file import dumps

if TYPE_CHECKING:
    from kvcheck.core.record import CaseRecord
    from kvcheck.store.journal import Ended, Item, Journal, Kept


@dataclass
class State:
    """Settings, the engine once it is open or why it cannot be, and the records that this process already has.

    run_file: where the run is kept, None for nowhere; md_file: its summary. kept: what an earlier run has, for
    --kv-resume; anew: of which of its methods the code has changed since. journal: where this process writes what it
    has finished. failed: what an item failed with, by node id.
    """

    settings: Settings
    session: Any = None
    refusal: str = ""
    run_file: Path | None = None
    md_file: Path | None = None
    kept: Kept | None = None
    anew: tuple[str, ...] = ()
    journal: Journal | None = None
    records: dict[tuple[str, str], CaseRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


STATE: pytest.StashKey[State] = pytest.StashKey()


def activate(config: pytest.Config) -> State:
    """Read and check the options, register the markers. Raises pytest.UsageError."""
    if STATE in config.stash:
        return config.stash[STATE]
    try:
        importable(config.invocation_params.dir)
        found = options.load(config)
        refuse_forked(config)
        refuse_recording_in_ci(found)
        known_place(found)
        if found.record and not hasattr(config, "workerinput"):
            expect_room(found, config.rootpath)
        from kvcheck.plugin import resume

        state = State(found)
        if not hasattr(config, "workerinput"):
            state.run_file = resume.run_file(config, found)
            state.md_file = resume.output(found.md)
            resume.expect_two(state.run_file, state.md_file)
        state.kept, state.anew = resume.found(config, found)
        if len(config.hook.pytest_kvcheck_open.get_hookimpls()) == 1:  # else another engine may know other names
            env.expect_versions()
            known_model(found.model)
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {plain(error)}") from None
    config.stash[STATE] = state
    config.stash[options.ACTIVE] = True
    from kvcheck.plugin import params

    params.register_markers(config, found)
    return state


def refuse_forked(config: pytest.Config) -> None:
    """Refuse pytest-forked. Raises SpecError."""
    if getattr(config.option, "forked", False):
        raise SpecError(
            "--forked: each test would load the model in a process of its own, and nothing would come back",
            "leave --forked out; -n 1 (pytest-xdist) keeps a crash of a method out of this process",
        )


def settings(config: pytest.Config) -> Settings:
    """The settings of this session."""
    return activate(config).settings


def refuse_recording_in_ci(settings: Settings, prefix: str = "--kv-") -> None:
    """In CI a baseline is written only where that was asked for by a second option. prefix: of the options' names."""
    if settings.record and os.environ.get("CI") and not settings.record_in_ci:
        raise SpecError(
            f"{prefix}record={settings.record} is off where CI is set: a job must not move its own goalposts",
            f"to record here on purpose, add {prefix}record-in-ci",
        )


def known_place(settings: Settings) -> None:
    """Refuse an address that nobody reads or that is to be recorded into, and a folder that is not there.

    A folder that will be recorded into, or that has a store below it, need not be there yet.
    """
    if settings.baselines is None:
        return
    from kvcheck.store.baselines import open_place, places
    from kvcheck.store.reader import read_only

    found = places(settings.baselines)
    for at, place in enumerate(found):
        store = open_place(place)
        if at == 0 and settings.record and not store.writable:
            raise read_only(store.root)
        later = at == 0 and (settings.record or len(found) > 1)
        if store.writable and not later and not Path(store.root).is_dir():
            raise SpecError(f"--kv-baselines: there is no folder {place}", "check the spelling, or add --kv-record=new")


def expect_room(settings: Settings, root: Path) -> None:
    """Refuse to record where nothing can be written, or nothing is answered, before anything is measured."""
    from kvcheck.store.baselines import open_store

    if synthetic.is_random(settings.model):
        raise SpecError(
            f"{settings.model} has random weights: no case of it can be recorded",
            "name a trained model, or leave --kv-record out",
        )
    open_store(settings.baselines, root).expect_room()


def known_model(name: str, where: str = "--kv-model") -> None:
    """Refuse a name that is no embedded model, no shape, no folder and no hub id. Looks at names only."""
    if synthetic.is_random(name):
        synthetic.shape_of(name)
        return
    path = Path(os.path.expanduser(name))
    if name == Settings.model or path.is_dir():
        return
    if path.is_absolute() or name.startswith((".", "~")):
        raise SpecError(f"{where}: there is no folder {path}", "give the folder that save_pretrained wrote")
    if "/" in name or os.sep in name:
        return
    embedded = [path.parent.name for path in paths.bundle("fixtures").glob("*/config.json")]
    if name not in embedded:
        raise SpecError(
            f"{where}: unknown model {name!r}",
            f"{did_you_mean(name, embedded)}; a folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct will do too",
        )


def check_methods(config: pytest.Config) -> None:
    """Build the methods, so that all that cannot be built are refused before any test, each with its reason.

    The plain name of a built-in one needs no check, and does not cost the import of torch here.
    """
    from kvcheck.methods import METHODS, canonical, make
    from kvcheck.plugin import parse

    problems: list[KvcheckError] = []
    for text in settings(config).methods:
        if METHODS.origins().get(text, "").startswith("kvcheck.methods."):
            continue
        try:
            make(text)
            if (one := str(canonical(text))) != text:  # its code could not be imported when the options were read
                raise SpecError(f"it is {one} with a default spelled out", f"type --kv-method={shlex.quote(one)}")
        except KvcheckError as error:
            problems.append(SpecError(f"--kv-method={text}: {error.message}", error.hint))
    try:
        parse.refuse(problems)
    except KvcheckError as error:
        raise pytest.UsageError(plain(f"kvcheck: {error}")) from None


def open_session(config: pytest.Config) -> Any:
    """The engine, opened once per process, before its first case. Where it cannot be, the session is refused."""
    state = activate(config)
    if state.session is None and not state.refusal:
        try:
            from kvcheck.plugin import resume
            from kvcheck.runner.case import driven

            opened = config.hook.pytest_kvcheck_open(config=config, settings=state.settings)
            state.session = driven(opened, state.settings)

            resume.refuse_foreign(state)
            if state.journal is not None:
                from kvcheck.plugin.collector import header

                model = {"name": state.session.model_name, "fingerprint": state.session.fingerprint}
                state.journal.header(header(config, model))
        except KvcheckError as error:
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {error}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what pytest raises to skip
            why = f"{raised(error)}\n  try: {_loading(state.settings)}"
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {why}"
    if state.refusal:
        pytest.fail(state.refusal, pytrace=False)  # its report ends the session, on the controller too
    return state.session


def _loading(settings: Settings) -> str:
    """A command that loads the model without kvcheck, to see more of what it raises."""
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({settings.model!r})"
    return shlex.join(["python", "-c", code])


def start(mine: State, item: Item | None) -> None:
    """An item begins: written down, so that it can be named should the process die."""
    if mine.journal is not None and item is not None:
        mine.journal.start(item)


def end(config: pytest.Config, ended: Ended) -> str:
    """An item is over: written down. Returns what rides on its report."""
    mine = activate(config)
    if mine.journal is not None:
        mine.journal.end(ended)
    return dumps(ended)


DEATHS = 2
"""Workers that may die of a method: it is not tried again then. One may have been killed by something else."""


def died(mine: State, method: str) -> str:
    """Where workers have died of this method in this session, "" where it may be tried. The controller tells."""
    if mine.journal is None or mine.journal.path.stem == "main":
        return ""
    from kvcheck.store import journal

    found = journal.read_file(mine.journal.folder / "main.jsonl").died.get(method, [])
    return " and ".join(item.case for item in found[:DEATHS]) if len(found) >= DEATHS else ""
