"""For this repository only: `pytest` runs the tests of kvcheck, `pytest --kv-method=…` the suites."""

from __future__ import annotations

import pytest

from kvcheck.plugin import options

pytest_plugins = ["pytester"]
NO_CUDA = "no CUDA device"
NIGHTLY = "nightly"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; choose what is collected where no path is given."""
    config.addinivalue_line("markers", f"cuda: runs on a GPU, and is skipped where there is {NO_CUDA}")
    config.addinivalue_line("markers", f"{NIGHTLY}: takes long, and runs where it is asked for by -m {NIGHTLY}")
    unnamed = config.args_source is not pytest.Config.ArgsSource.ARGS
    if unnamed and config.invocation_params.dir == config.rootpath:
        config.args[:] = [str(config.rootpath / ("suites" if options.given(config) else "tests"))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless -m names it."""
    if NIGHTLY in config.getoption("markexpr", ""):
        return
    long = [item for item in items if item.get_closest_marker(NIGHTLY)]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of CUDA needs a device."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip(NO_CUDA)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what was not tried for want of a device."""
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if NO_CUDA in str(one.longrepr)]
    if skipped:
        terminalreporter.write_line(f"cuda: {len(skipped)} not run: {NO_CUDA}")
