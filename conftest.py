"""For this repository only: `pytest` runs the tests of kvcheck, `pytest --kv-method=…` the suites."""

from __future__ import annotations

import pytest

from kvcheck.plugin import options

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Choose what is collected where no path is given."""
    unnamed = config.args_source is not pytest.Config.ArgsSource.ARGS
    if unnamed and config.invocation_params.dir == config.rootpath:
        config.args[:] = [str(config.rootpath / ("suites" if options.given(config) else "tests"))]
