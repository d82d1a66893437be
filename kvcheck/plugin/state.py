"""What the hooks and fixtures of one process share, kept on pytest's config."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvcheck import __version__, env, paths
from kvcheck.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.models import synthetic
from kvcheck.plugin import options
from kvcheck.registry import importable
from kvcheck.settings import MODEL, PROMPTS, Settings
from kvcheck.spec import raised

if TYPE_CHECKING:
    from kvcheck.record import CaseRecord, Run


@dataclass
class State:
    """Settings, the engine once it is open or why it cannot be, and the records that this process already has."""

    settings: Settings
    session: Any = None
    refusal: str = ""
    resumed: Run | None = None
    records: dict[tuple[str, str], CaseRecord] = field(default_factory=dict)


STATE: pytest.StashKey[State] = pytest.StashKey()


def activate(config: pytest.Config) -> State:
    """Read and check the options, register the markers. Raises pytest.UsageError."""
    if STATE in config.stash:
        return config.stash[STATE]
    try:
        importable(config.invocation_params.dir)
        found = options.load(config)
        refuse_recording_in_ci(found)
        known_place(found)
        if found.record and not hasattr(config, "workerinput"):
            expect_room(found, config.rootpath)
        state = State(found, resumed=_resumed(config, found))
        if len(config.hook.pytest_kvcheck_open.get_hookimpls()) == 1:  # else another engine may know other names
            known_model(found.model)
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {error}") from None
    config.stash[STATE] = state
    config.stash[options.ACTIVE] = True
    from kvcheck.plugin import params

    params.register_markers(config, found)
    return state


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
    from kvcheck.baseline import open_place, places
    from kvcheck.baseline_files import read_only

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
    from kvcheck.baseline import open_store

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
        raise pytest.UsageError(f"kvcheck: {error}") from None


def open_session(config: pytest.Config) -> Any:
    """The engine, opened once per process, before its first case. Where it cannot be, the session is refused."""
    state = activate(config)
    if state.session is None and not state.refusal:
        try:
            state.session = config.hook.pytest_kvcheck_open(config=config, settings=state.settings)
            _refuse_foreign_resume(state)
        except KvcheckError as error:
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {error}"
        except Exception as error:
            why = f"{raised(error)}\n  try: {_loading(state.settings)}"
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {why}"
    if state.refusal:
        pytest.fail(state.refusal, pytrace=False)  # its report ends the session, on the controller too
    return state.session


def _loading(settings: Settings) -> str:
    """A command that loads the model without kvcheck, to see more of what it raises."""
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({settings.model!r})"
    return shlex.join(["python", "-c", code])


def _resumed(config: pytest.Config, settings: Settings) -> Run | None:
    """The run to go on with. Raises BaselineError where the file is damaged."""
    if settings.resume is None or settings.zoo:  # the zoo has results of its own
        return None
    from kvcheck.runfile import read_run

    path = options.last_run(config) if settings.resume == "last" else Path(settings.resume)
    if path is None or not path.is_file():
        what = "no earlier run to resume here" if settings.resume == "last" else f"no run file {path}"
        raise SpecError(f"--kv-resume: {what}", "start without --kv-resume")
    run = read_run(path)
    header, texts = run.header, settings.texts()
    same = ("device", "dtype", "query_aware", *PROMPTS, *MODEL)
    facts = [(name, header.settings.get(name, "as usual"), texts.get(name, "as usual")) for name in same]
    facts += [("kvcheck", header.kvcheck, __version__), ("commit", header.git, env.git_state(config.rootpath)[0])]
    for name, then, now in facts:
        if then != now:
            raise SpecError(
                f"--kv-resume: {path} was measured with {name}={then}, this session has {name}={now}",
                "one run is of one state: repeat what the first had, or start without --kv-resume",
            )
    return run


def _refuse_foreign_resume(state: State) -> None:
    """A run is continued with the model that it began with."""
    if state.resumed is not None and state.resumed.header.model != state.session.fingerprint:
        raise SpecError(
            f"--kv-resume: the run was measured with {state.resumed.header.model_name} "
            f"({state.resumed.header.model}), this is {state.session.model_name} ({state.session.fingerprint})",
            "resume with the same --kv-model, or start without --kv-resume",
        )
