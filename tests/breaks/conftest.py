"""Folders to run pytest in: an empty one, one with the fake engine, one with broken methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outside import BROKEN, THREE, Foreign, kill_group


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All runs share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Foreign]:
    """An empty folder; nothing that was started there outlives the test."""
    foreign = Foreign(tmp_path)
    yield foreign
    for process in foreign.started:
        kill_group(process)


@pytest.fixture(scope="session")
def fp16_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fp16 baseline of the fake engine: two tasks in three modes, 24 contexts each."""
    foreign = Foreign(tmp_path_factory.mktemp("recorded"))
    foreign.use_fake_engine()
    tasks = tuple(word.replace("=kv", "=kv,multi_hop") for word in THREE)
    result = foreign.check(*tasks, "--kv-method=fp16", "--kv-record=new", "-p", "no:cacheprovider")
    assert result.status == 0, result.out
    return (foreign.path / "stored" / "fake" / "fp16.txt").read_text("utf-8")


@pytest.fixture(scope="session")
def make_fake(tmp_path_factory: pytest.TempPathFactory, fp16_text: str) -> Callable[[], Foreign]:
    """Make folders with the fake engine and its fp16 baseline."""

    def make() -> Foreign:
        foreign = Foreign(tmp_path_factory.mktemp("fake"))
        foreign.use_fake_engine(fp16_text)
        return foreign

    return make


@pytest.fixture
def fake(empty: Foreign, fp16_text: str) -> Foreign:
    """A folder with the fake engine and its fp16 baseline."""
    empty.use_fake_engine(fp16_text)
    return empty


@pytest.fixture
def real(empty: Foreign) -> Foreign:
    """A folder with the broken methods, for the embedded model."""
    empty.write("broken.py", BROKEN.read_text("utf-8"))
    return empty
