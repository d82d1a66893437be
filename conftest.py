"""For this repository only: `pytest` runs the tests of kvcheck, `pytest --kv-method=…` the suites."""

from __future__ import annotations

import pytest

from kvcheck.plugin import options

pytest_plugins = ["pytester"]
NO_CUDA = "no CUDA device"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; choose what is collected where no path is given."""
    config.addinivalue_line("markers", f"cuda: runs on a GPU, and is skipped where there is {NO_CUDA}")
    unnamed = config.args_source is not pytest.Config.ArgsSource.ARGS
    if unnamed and config.invocation_params.dir == config.rootpath:
        config.args[:] = [str(config.rootpath / ("suites" if options.given(config) else "tests"))]


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
