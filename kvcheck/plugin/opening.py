"""A session begins: settings are read and checked, methods are built, the engine is opened before the first case."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError, MethodsUnfed, SpecError
from kvcheck.core.escape import plain
from kvcheck.core.record import RunHeader
from kvcheck.core.registry import importable
from kvcheck.core.settings import Settings
from kvcheck.core.spec import flag, raised
from kvcheck.models import names
from kvcheck.plugin import cases, engines, options, parse, refusals, resume, sources
from kvcheck.plugin.state import STATE, State, in_place, of
from kvcheck.runner.case import driven
from kvcheck.store import run_file

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine


def activate(config: pytest.Config) -> State:
    """Read and check the options, register the markers. Raises pytest.UsageError."""
    if STATE in config.stash:
        return config.stash[STATE]
    try:
        importable(config.invocation_params.dir)
        found = engines.joined(options.load(config), config.rootpath)
        refuse_forked(config)
        refusals.recording_in_ci(found)
        refusals.known_place(found)
        refusals.more_contexts(found)
        if not hasattr(config, "workerinput"):
            refusals.prefill_place(found)
            if found.record:
                refusals.expect_room(found, config.rootpath)
        state = State(in_full(found))
        if not hasattr(config, "workerinput"):
            state.run_file, state.md_file, state.html_file = resume.outputs(config, found)
        state.kept, state.anew = resume.found(config, found)
        if len(config.hook.pytest_kvcheck_open.get_hookimpls()) == 1:  # else another engine may know other names
            env.expect_versions()
            names.find(found.model)
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {plain(error)}") from None
    config.stash[STATE] = state
    config.stash[options.ACTIVE] = True
    cases.register_markers(config, found)
    return state


def in_full(found: Settings) -> Settings:
    """The settings with the paths that are read later in full: a test may go to another folder."""
    data, stores = found.data, found.baselines
    if data not in (None, "hub"):
        data = os.path.abspath(os.path.expanduser(str(data)))
    text = os.path.abspath(os.path.expanduser(found.text)) if found.text else ""
    prefills = found.prefill_cache and os.path.abspath(os.path.expanduser(found.prefill_cache))
    if stores is not None:
        stores = ",".join(one if "://" in one else os.path.abspath(one) for one in stores.split(","))
    return replace(found, data=data, text=text, baselines=stores, prefill_cache=prefills)


def refuse_forked(config: pytest.Config) -> None:
    """Refuse pytest-forked. Raises SpecError."""
    if getattr(config.option, "forked", False):
        raise SpecError(
            "--forked: each test would load the model in a process of its own, and nothing would come back",
            "leave --forked out; -n 1 (pytest-xdist) keeps a crash of a method out of this process",
        )


def check_methods(config: pytest.Config) -> None:
    """Build the methods, so that all that cannot be built are refused before any test, each with its reason.

    The plain name of a built-in one needs no check, and does not cost the import of torch here.
    """
    from kvcheck.backends.engines import specs
    from kvcheck.methods import METHODS, canonical, make

    problems: list[KvcheckError] = []
    foreign = []
    for text in activate(config).settings.methods:
        if specs.named(text) or METHODS.origins().get(text, "").startswith("kvcheck.methods."):
            continue
        try:
            method = make(text)
            foreign += [text] if method.info.foreign else []
            if (one := str(canonical(text))) != text:  # its code could not be imported when the options were read
                raise SpecError(f"it is {one} with a default spelled out", f"type {flag(one)}")
        except KvcheckError as error:
            problems.append(SpecError(f"--kv-method={text}: {error.message}", error.hint))
    try:
        parse.refuse(problems)
    except KvcheckError as error:
        raise pytest.UsageError(plain(f"kvcheck: {error}")) from None
    _expect_fed(config, foreign)


def _expect_fed(config: pytest.Config, methods: list[str]) -> None:
    """Refuse a method from elsewhere that cannot be fed at all, once and before any test. Raises UsageError.

    One that a small Llama cannot feed is tried on the model itself, which alone decides; with pytest-xdist its workers
    open that one, and refuse the same. Another engine feeds its methods as it likes.
    """
    other_engine = len(config.hook.pytest_kvcheck_open.get_hookimpls()) > 1
    if not methods or other_engine or getattr(config.option, "numprocesses", None):
        return
    from kvcheck.conformance.runner import feeds

    if all(feeds(text) for text in methods):
        return
    try:
        open_session(config)
    except pytest.fail.Exception:
        raise pytest.UsageError(plain(of(config).refusal)) from None


def open_session(config: pytest.Config) -> Engine:
    """The engine, opened once per process, before its first case. Where it cannot be, the session is refused."""
    state = activate(config)
    if state.session is None and not state.refusal:
        try:
            with in_place(config.invocation_params.dir):  # of which the paths are that were typed
                opened = config.hook.pytest_kvcheck_open(config=config, settings=state.settings)
            state.session = driven(opened, state.settings)
            resume.refuse_foreign(state.kept, state.session)
            if expect_fed := getattr(opened, "expect_fed", None):
                expect_fed()
            if state.journal is not None:
                model = {"name": state.session.model_name, "fingerprint": state.session.fingerprint}
                state.journal.header(header(config, model))
        except MethodsUnfed as error:
            state.refusal = f"kvcheck: {error}"
        except KvcheckError as error:
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {error}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what pytest raises to skip
            why = f"{raised(error)}\n  try: {_loading(state.settings)}"
            state.refusal = f"kvcheck: cannot open {state.settings.model}: {why}"
    if state.session is None or state.refusal:
        pytest.fail(state.refusal, pytrace=False)  # its report ends the session, on the controller too
    return state.session


def _loading(settings: Settings) -> str:
    """A command that loads the model without kvcheck, to see more of what it raises."""
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({settings.model!r})"
    return shlex.join(["python", "-c", code])


def header(config: pytest.Config, model: dict[str, str]) -> RunHeader:
    """What must be known to judge the run years later."""
    mine = activate(config)
    settings, machine = mine.settings, env.machine(mine.settings.device)
    for found in reversed(config.hook.pytest_kvcheck_machine_info(config=config, machine=machine)):
        machine.update({str(key): str(value) for key, value in (found or {}).items()})
    before = mine.kept.header.machine if mine.kept is not None and mine.kept.header is not None else {}
    if machine.items() <= before.items():  # where all was taken from before, torch was not asked for its threads
        machine = dict(before)
    brought = sources.of_methods(settings.methods) | sources.of_plugins(config)
    return run_file.header(
        config.rootpath, model["name"], model["fingerprint"], machine, settings.texts(), brought, mine.began
    )
