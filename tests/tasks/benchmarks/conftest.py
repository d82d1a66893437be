"""The rows written for this project, read by the code that reads the real ones. No test here needs a network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvcheck.core.paths import bundle
from kvcheck.tasks.benchmarks import Benchmarks, benchmark_tasks

ROWS = bundle("fixtures") / "data" / "benchmarks"


class Words:
    """The embedded model's tokenizer, both ways."""

    def __init__(self) -> None:
        self.inner = Tokenizer.from_file(str(bundle("fixtures") / "mini" / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test that would reach for the network fails, and none writes to the user's cache."""

    def refuse(url: str) -> bytes:
        raise OSError(f"no network in tests: {url}")

    monkeypatch.setattr("kvcheck.tasks.benchmarks.templates._download", refuse)
    monkeypatch.setenv("KVCHECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer() -> Words:
    return Words()


@pytest.fixture(scope="session")
def fixed() -> Benchmarks:
    """Every task in its sound form; each file is read once."""
    return benchmark_tasks(str(ROWS))


@pytest.fixture(scope="session")
def slips() -> Benchmarks:
    """Every task with the slips of the benchmark's code."""
    return benchmark_tasks(str(ROWS), compat=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the rows that a test may change."""
    return Path(shutil.copytree(ROWS, tmp_path / "rows"))
