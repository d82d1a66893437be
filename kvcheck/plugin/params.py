"""Cases x methods into test items: order, ids and markers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain
from kvcheck.core.record import CAPABILITIES, MODES, CaseId
from kvcheck.models import synthetic
from kvcheck.plugin import options

if TYPE_CHECKING:
    from kvcheck.core.settings import Settings

QUICK_LENGTH = 1024
"""Cases up to this many tokens are marked `quick`, longer ones `slow`."""

SHAPE_LENGTHS = (4096, 8192, 16384, 32768)
"""Tokens at which a model of random weights is measured where no lengths are given."""

NO_CASE = "no case under these options"
NO_METHOD = "no-kvcheck-method"
"""The id of an item that nobody named a method for."""


def parametrize(metafunc: pytest.Metafunc, fixture: str) -> None:
    """Give the test its cases: items of one task and length stand together, over all modes and methods."""
    from kvcheck.plugin import state

    config = metafunc.config
    config.stash[options.USED] = True
    try:
        settings = state.settings(config)
    except pytest.UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if fixture == "kv_suspect" or settings.zoo:
        from kvcheck.plugin import zoo

        params = zoo.params(settings) if settings.zoo and fixture == "kv_suspect" else []
    elif fixture == "kv_finding" or (settings.findings and not settings.methods):
        params = [pytest.param(None, id=plain(settings.model))] if settings.findings and fixture == "kv_finding" else []
    elif not settings.methods:
        params = [pytest.param(None, id=NO_METHOD)]  # refused by expect_methods, unless it is deselected
    elif fixture == "kv_latency":
        params = list(latency_params(settings))
    elif fixture == "kv_property":
        from kvcheck.plugin import conformance

        params = conformance.params(settings, config.option.markexpr)
    else:
        params = list(case_params(settings, _capability(metafunc)))
    metafunc.parametrize(fixture, params or [pytest.param(NO_CASE, id="no-case")], indirect=True)


def _capability(metafunc: pytest.Metafunc) -> str | None:
    """The capability that the test is marked with, None for all of them."""
    marker = metafunc.definition.get_closest_marker("kv_capability")
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.args[0] not in CAPABILITIES:
        raise pytest.Collector.CollectError(
            f"kvcheck: kv_capability takes one of {', '.join(CAPABILITIES)}, not {marker.args}"
        )
    return str(marker.args[0])


def case_params(settings: Settings, capability: str | None) -> Iterator[Any]:
    """One parameter (case, method) per item, sorted by task, length, mode, then as the methods were given."""
    for case in cases(settings, capability):
        for method in settings.methods:
            names = marks(case, _task(case.task, settings).capability)
            yield pytest.param(
                (case, method),
                id=plain(f"{case.task}-{case.mode}-{case.length}-{method}"),
                marks=[getattr(pytest.mark, name) for name in names],
            )


def cases(settings: Settings, capability: str | None) -> list[CaseId]:
    """The cases of these settings, in the order in which they run; none on random weights, where asking raises."""
    from kvcheck.tasks import find, profiles

    if synthetic.is_random(settings.model):
        if settings.tasks:
            synthetic.refuse(settings.model, ", ".join(settings.tasks))
        return []

    chosen = (settings.profile, settings.lengths, settings.tasks, settings.modes, settings.n)
    place = partial(find, data=settings.data, compat=settings.compat)
    found = profiles.cases(*chosen, capability, settings.seed, place)
    return sorted(found, key=lambda case: (case.task, case.version, case.length, MODES.index(case.mode), case.n))


def latency_params(settings: Settings) -> Iterator[Any]:
    """One parameter (method, length) per item, where latency is to be measured."""
    asked, random = {"ttft", "tpot"} & set(settings.budget), synthetic.is_random(settings.model)
    if not asked and not random and settings.profile != "full":
        return
    lengths = settings.lengths or tuple(sorted({case.length for case in cases(settings, None)})) or SHAPE_LENGTHS
    for length in lengths if settings.profile == "full" or random else lengths[-1:]:
        for method in settings.methods:
            names = (f"length_{length}", "slow")
            yield pytest.param(
                (method, length),
                id=plain(f"latency-{length}-{method}"),
                marks=[getattr(pytest.mark, name) for name in names],
            )


def marks(case: CaseId, capability: str) -> list[str]:
    """The markers of an item."""
    cost = "quick" if case.length <= QUICK_LENGTH else "slow"
    return list(dict.fromkeys((capability, case.task, case.mode, f"length_{case.length}", cost)))


def _task(name: str, settings: Settings) -> Any:
    from kvcheck.tasks import find

    return find(name, settings.data, settings.compat).info


def register_markers(config: pytest.Config, settings: Settings) -> None:
    """Register every marker that an item of this session can carry, so that --strict-markers holds."""
    if not settings.methods or settings.zoo:
        return
    lengths = {case.length for case in _cases_or_none(settings)} | set(settings.lengths)
    from kvcheck.tasks import TASKS

    lines = [f"{name}: a case of this capability" for name in CAPABILITIES]
    tasks = dict.fromkeys((*TASKS.names(), *settings.tasks))
    lines += [f"{name}: a case of this task" for name in tasks if name not in CAPABILITIES]
    lines += [f"{name}: a case in this mode" for name in MODES]
    lines += [f"length_{length}: a case with {length} tokens of context" for length in sorted(lengths)]
    lines += ["conformance: a property that every method must hold"]
    lines += [f"quick: up to {QUICK_LENGTH} tokens of context", f"slow: more than {QUICK_LENGTH} tokens, or latency"]
    for line in lines:
        config.addinivalue_line("markers", line)


def _cases_or_none(settings: Settings) -> list[CaseId]:
    try:
        return cases(settings, None)
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {plain(error)}") from None


def expect_methods(config: pytest.Config, ids: Iterable[str]) -> None:
    """Refuse to run tests that take a case where no method was named: nothing would be measured. Raises UsageError."""
    if not any(nodeid.endswith(f"[{NO_METHOD}]") for nodeid in ids):
        return
    given = options.given(config)
    alone = f": {options.words(given)[0].partition('=')[0]} alone measures nothing" if given else ""
    words = ["--pyargs"] * config.option.pyargs + [str(path) for path in config.option.file_or_dir or ()]
    command = shlex.join(["pytest", *words, "--kv-method=snapkv", *options.words(given)])
    raise pytest.UsageError(
        f"kvcheck: no method to test{alone}\n  name one (`kvcheck methods` lists them): {command}\n"
        '  or for always, in pyproject.toml: [tool.kvcheck] methods = ["snapkv"]'
    )


def deselect(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the place holders of suites that have no case under these options."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        spec = getattr(item, "callspec", None)
        holder = spec is not None and NO_CASE in spec.params.values()
        (dropped if holder else kept).append(item)
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
