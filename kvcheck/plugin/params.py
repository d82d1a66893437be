"""What each fixture is given: cases x methods, properties x methods, …, into test items with their ids and markers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from kvcheck.backends.engines import specs
from kvcheck.conformance.base import names
from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain
from kvcheck.core.record import CAPABILITIES, cost_case
from kvcheck.models import synthetic
from kvcheck.plugin import cases, opening, options
from kvcheck.plugin.options import Subject

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from kvcheck.core.settings import Settings

SHAPE_LENGTHS = (4096, 8192, 16384, 32768)
"""Tokens at which a model of random weights is measured where no lengths are given."""

NO_CASE = "no case under these options"
NO_METHOD = "no-kvcheck-method"
"""The id of an item that nobody named a method for."""


def parametrize(metafunc: pytest.Metafunc, fixture: str) -> None:
    """Give the test its cases: items of one task and length stand together, over all modes and methods."""
    config = metafunc.config
    config.stash[options.USED] = True
    _expect_ours(metafunc, fixture)
    try:
        settings = opening.activate(config).settings
    except pytest.UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if fixture == "kv_candidate" or settings.zoo:
        params = candidate_params(settings) if settings.zoo and fixture == "kv_candidate" else []
    elif fixture == "kv_finding" or (settings.findings and not settings.methods):
        params = (
            [pytest.param(Subject(()), id=plain(settings.model))]
            if settings.findings and fixture == "kv_finding"
            else []
        )
    elif not settings.methods:
        params = [pytest.param(None, id=NO_METHOD)]  # refused by expect_methods, unless it is deselected
    elif fixture == "kv_latency":
        params = list(latency_params(settings))
    elif fixture == "kv_property":
        params = property_params(settings, config.option.markexpr)
    elif fixture == "kv_engine":
        params = engine_params(settings, config.option.markexpr)
    else:
        params = list(case_params(settings, _capability(metafunc)))
    metafunc.parametrize(fixture, params or [pytest.param(NO_CASE, id="no-case")], indirect=True)


def _expect_ours(metafunc: pytest.Metafunc, fixture: str) -> None:
    """Refuse fixtures of ours that somebody else has replaced: nothing would be judged. Raises CollectError."""
    manager = metafunc.definition.session._fixturemanager
    for name in (fixture, "kv_session", "kv_settings"):
        module = (manager.getfixturedefs(name, metafunc.definition) or ())[-1].func.__module__
        if module != "kvcheck.plugin":
            raise pytest.Collector.CollectError(
                f"kvcheck: the fixture {name} is defined anew in {module}: nothing would be judged\n"
                "  give it another name; an engine of your own is opened by the hook pytest_kvcheck_open"
            )


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


def case_params(settings: Settings, capability: str | None) -> Iterator[ParameterSet]:
    """One parameter (case, method) per item, sorted by task, length, mode, then as the methods were given."""
    for case in cases.cases(settings, capability):
        for method in settings.methods:
            names = cases.marks(case, settings)
            yield pytest.param(
                Subject((case, method), str(case), method),
                id=plain(f"{case.task}-{case.mode}-{case.length}-{method}"),
                marks=[getattr(pytest.mark, name) for name in names],
            )


def latency_params(settings: Settings) -> Iterator[ParameterSet]:
    """One parameter (method, length) per item, where latency is to be measured."""
    asked, random = {"ttft", "tpot"} & set(settings.budget), synthetic.is_random(settings.model)
    if not asked and not random and settings.profile != "full":
        return
    lengths = settings.lengths or tuple(sorted({case.length for case in cases.cases(settings, None)})) or SHAPE_LENGTHS
    for length in lengths if settings.profile == "full" or random else lengths[-1:]:
        for method in settings.methods:
            names = (f"length_{length}", "slow")
            yield pytest.param(
                Subject((method, length), str(cost_case(length, settings.seed)), method),
                id=plain(f"latency-{length}-{method}"),
                marks=[getattr(pytest.mark, name) for name in names],
            )


def properties_wanted(settings: Settings, marks: str = "", marker: str = "conformance") -> bool:
    """Whether properties are tried: not where certain tasks, modes or lengths are asked for, and not to record.

    Nor with a model of random weights, which is there for memory and latency. marks: the expression of -m; where it
    asks for them by name, they are tried whatever else is asked for.
    """
    if re.search(rf"(?<!not )\b{marker}\b", marks):
        return True
    narrow = settings.tasks or settings.modes or settings.lengths or settings.record
    return not (narrow or synthetic.is_random(settings.model))


def property_params(settings: Settings, marks: str = "") -> list[ParameterSet]:
    """One parameter (property, method) per item."""
    if specs.chosen(settings) is not None or not properties_wanted(settings, marks):
        return []
    pairs = [(name, method) for method in settings.methods for name in names()]
    mine = [pytest.mark.conformance]
    return [pytest.param(Subject(pair, *pair), id=plain("-".join(pair)), marks=mine) for pair in pairs]


def engine_params(settings: Settings, marks: str = "") -> list[ParameterSet]:
    """One parameter (property, method) per item of a run on a real engine; the reference is part of each."""
    if specs.chosen(settings) is None or not properties_wanted(settings, marks, "engine"):
        return []
    from kvcheck.backends.engines.properties import PROPERTIES

    pairs = [(name, method) for method in settings.methods if method != specs.FULL for name in PROPERTIES]
    mine = [pytest.mark.engine]
    return [pytest.param(Subject(pair, *pair), id=plain("-".join(pair)), marks=mine) for pair in pairs]


def candidate_params(settings: Settings) -> list[ParameterSet]:
    """One parameter per bug and per correct counterpart. Raises CollectError for an unknown name."""
    from kvcheck.zoo.evaluate import candidates

    try:
        found = list(candidates(settings.zoo, settings.methods))
    except KvcheckError as error:
        raise pytest.Collector.CollectError(f"kvcheck: {plain(error)}") from None
    return [pytest.param(Subject((one,), one.name, one.counterpart), id=f"{one.family}-{one.name}") for one in found]


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
