"""The pytest plugin: hooks only, each handing on to the module that does the work.

pytest loads this module in every session on the machine, so it imports pytest, the standard library and the declared
options, no more. Nothing else of kvcheck is imported until an option, a `[tool.kvcheck]` table or the `kv_case` fixture
asks for it.

Read `case.py` first (one test), then `collector.py` (the whole run). Who knows whom, from the bottom: options, state,
cases, items; resume, refusals, parse; opening, where a session begins; params, what a test is given; item, what the
fixtures share, and case, latency, conformance, findings, zoo; collector.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from kvcheck.plugin import options

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from xdist.workermanage import WorkerController

    from kvcheck.backends.base import Backend, Engine
    from kvcheck.core.record import CaseRecord, Verdict
    from kvcheck.core.settings import Settings
    from kvcheck.judging.budget import Budget
    from kvcheck.plugin.item import KvItem


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options. They cost nothing when unused."""
    options.declare(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks for third parties."""
    from kvcheck.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Where kvcheck is used: check the options, and collect results unless this is a worker of xdist."""
    config.addinivalue_line("markers", "kv_capability(name): run the cases of this capability (see `kvcheck tasks`)")
    if not options.wanted(config):
        return
    from kvcheck.plugin import collector, guardian, opening

    guardian.tell(config, began=True)
    opening.activate(config)
    if hasattr(config, "workerinput"):
        from kvcheck.plugin import resume

        resume.join(config)
    else:
        config.pluginmanager.register(collector.Collector(config), options.COLLECTOR)
        if config.pluginmanager.hasplugin("xdist"):
            from kvcheck.plugin import scheduling

            config.pluginmanager.register(scheduling.Scheduling(), "kvcheck-scheduling")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """Where kvcheck is used, before a conftest.py imports torch: how its threads wait, and go on under a guardian."""
    if options.wanted(early_config, early_config.known_args_namespace):
        from kvcheck.core import threads
        from kvcheck.plugin import guardian

        threads.wait_passively()
        guardian.guard(early_config)
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The session is over: tell the guardian how it ended. One that did not start was refused."""
    if options.wanted(config):
        from kvcheck.plugin import guardian

        guardian.tell(config, finished=int(config.stash.get(options.STATUS, pytest.ExitCode.USAGE_ERROR)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Remember how the session ended, when everybody has had a say."""
    result = yield
    session.config.stash[options.STATUS] = session.exitstatus
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Under torchrun, all processes but the first follow it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not options.wanted(config):
        return None
    from kvcheck.plugin import ranks

    return ranks.main(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per case and method."""
    for fixture in options.FIXTURES:
        if fixture in metafunc.fixturenames:
            from kvcheck.plugin import params

            params.parametrize(metafunc, fixture)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the place holders of suites that have no case under these options; undo what shuffled the others."""
    if any(hasattr(item, "callspec") for item in items) and config.stash.get(options.USED, False):
        from kvcheck.plugin import params

        params.deselect(config, items)
        from kvcheck.plugin import items as ours

        ours.in_order(config, items)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Remember in which order items were made."""
    if item.config.stash.get(options.USED, False):
        from kvcheck.plugin import items

        items.number(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> Generator[None, None, None]:
    """Refuse tests that take a case where no method was named; write down the others: each must come to an end."""
    _expect_methods(session.config, [item.nodeid for item in session.items])
    if session.config.stash.get(options.ACTIVE, False):
        from kvcheck.plugin import items

        items.select(session)
    result = yield
    if session.config.stash.get(options.ACTIVE, False):
        items.expect_all(session)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: WorkerController, ids: list[str]) -> None:
    """The same for what a worker collected."""
    _expect_methods(node.config, ids)


def _expect_methods(config: pytest.Config, ids: list[str]) -> None:
    if not hasattr(config, "workerinput") and any("no-kvcheck-method" in nodeid for nodeid in ids):
        from kvcheck.plugin import params

        params.expect_methods(config, ids)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before the first test, check the values of the methods' parameters, once, where that needs their code."""
    config = session.config
    if config.stash.get(options.ACTIVE, False) and not hasattr(config, "workerinput") and not config.option.collectonly:
        from kvcheck.plugin import opening

        opening.check_methods(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the result of a case ride on its report, also when the case failed: it survives a worker that dies.

    What the report prints of methods, models and files is made harmless.
    """
    report = yield
    if any(name in options.FIXTURES for name in getattr(item, "fixturenames", ())):
        from kvcheck.plugin import harmless

        harmless.report(report)
    if call.when == "call" or report.failed:
        result = item.stash.get(options.RESULT, None)
        if result is not None:
            from kvcheck.plugin import state

            ended, lost = state.of(item.config).end(result())
            setattr(report, options.ENDED, ended)
            if lost:
                report.outcome, report.longrepr = "failed", lost
    if report.failed and item.config.stash.get(options.ACTIVE, False):
        from kvcheck.plugin import state

        setattr(report, options.REFUSAL, state.of(item.config).refusal)
    return report


@pytest.fixture(scope="session")
def kv_settings(request: pytest.FixtureRequest) -> Settings:
    """The settings of this session: command line over `[tool.kvcheck]`."""
    from kvcheck.plugin import opening

    return opening.activate(request.config).settings


@pytest.fixture(scope="session")
def kv_session(request: pytest.FixtureRequest, kv_settings: Settings) -> Engine:
    """The engine with the model, opened when the first case needs it."""
    from kvcheck.plugin import opening

    return opening.open_session(request.config)


def _fixture(name: str, text: str) -> object:
    """A fixture that gives what one item is about; see `options.FIXTURES`."""

    def taken(request: pytest.FixtureRequest) -> Iterator[KvItem]:
        module, _, what = options.FIXTURES[name].partition(".")
        found: KvItem = getattr(import_module(f"kvcheck.plugin.{module}"), what)(request, *request.param.given)
        yield found
        found.close()

    taken.__doc__ = text
    return pytest.fixture(name=name)(taken)


kv_case = _fixture("kv_case", "One case with one method: `record = kv_case.run()`, then `kv_case.check(record)`.")
kv_latency = _fixture(
    "kv_latency",
    "The latency of one method at one length, interleaved with fp16: `kv_latency.run()`, then `.check(…)`.",
)
kv_finding = _fixture(
    "kv_finding",
    'Measures methods on the same contexts, for what a paper found: `kv_finding.above("…", kv_finding.drop(…))`.',
)
kv_property = _fixture(
    "kv_property",
    "One property of kvcheck.conformance on one method: `kv_property.check(kv_property.examine())`.",
)
kv_engine = _fixture(
    "kv_engine", "One property of the cache's life in a real engine: `kv_engine.check(kv_engine.examine())`."
)
kv_candidate = _fixture(
    "kv_candidate", "One bug of the zoo, or a correct method: `kv_candidate.check(kv_candidate.examine())`."
)


@pytest.hookimpl(trylast=True)
def pytest_kvcheck_open(settings: Settings) -> Backend | Engine:
    """The engine that the methods name, else transformers in this process, unless a plugin opened another one."""
    from kvcheck.backends.engines import specs

    chosen = specs.chosen(settings)
    if chosen is not None:
        from kvcheck.backends.engines.session import EngineSession

        return EngineSession.open(chosen, settings)
    from kvcheck.backends.transformers import open_engine

    return open_engine(settings)


@pytest.hookimpl(trylast=True)
def pytest_kvcheck_judge(
    record: CaseRecord, fp16: CaseRecord | None, own: CaseRecord | None, budget: Budget, alpha: float, against: str
) -> tuple[Verdict, ...]:
    """kvcheck's own judge, unless a plugin judged."""
    from kvcheck.judging.budget import judge

    return judge(record, fp16, own, budget, alpha, against)
