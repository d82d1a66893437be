"""Properties as test items: what a user with a method of their own sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcheck.conformance import NAMES

SUITE = "kvcheck.suites.test_conformance"
MINE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache.method import Lossless, Method, MethodInfo
from kvcheck.cache.kv_cache import CacheLayer


class Layer(CacheLayer):
    def compress(self, queries):
        start = max(0, self.stored - self.method.tokens)
        self.keep(self.every_head(torch.arange(start, self.stored)))

    def select(self, rows):
        return self if self.method.shares else super().select(rows)


@dataclass(frozen=True)
class Newest(Method):
    info: ClassVar[MethodInfo] = MethodInfo(summary="newest", stage="compression", lossless=Lossless.at("tokens=10000"))
    tokens: int = 32
    shares: bool = False

    def layer(self, shape, index):
        return Layer(shape, index, self)
"""
FORKS = "forks_do_not_disturb_each_other"


@pytest.fixture
def try_out(repo: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    repo.makepyfile(mine=MINE)
    repo.syspathinsert()
    return lambda *options: repo.runpytest_subprocess("--pyargs", SUITE, "--kv-profile=quick", *options)


def test_a_fault_is_found_and_printed_as_a_test_to_paste(try_out: Callable[..., pytest.RunResult]) -> None:
    result = try_out("--kv-method=mine.Newest:shares=true", "-k", FORKS)
    result.assert_outcomes(failed=1, deselected=len(NAMES) - 1)
    result.stdout.fnmatch_lines(
        [
            'mine.Newest:shares=true: "forks do not disturb each other" does not hold',
            "  the smallest trial that was found, as a test:",
            f"    def test_{FORKS}():",
            f"        check(\"{FORKS}\", 'mine.Newest:shares=true'*)",
            "conformance of mine.Newest:shares=true: 0 of 1 properties hold, 1 fail",
        ]
    )


def test_what_holds_and_what_does_not_apply_is_counted_with_the_reason(
    try_out: Callable[..., pytest.RunResult], repo: pytest.Pytester, dist: tuple[str, ...]
) -> None:
    names = f"{FORKS} or bounded or bits"
    result = try_out("--kv-method=mine.Newest", "--kv-json=run.json", "-v", "-k", names, *dist)
    result.assert_outcomes(passed=1, skipped=2, deselected=0 if "2" in dist else len(NAMES) - 3)
    result.stdout.fnmatch_lines(
        [
            "conformance of mine.Newest: 1 of 3 properties hold, 2 do not apply",
            '*"memory stays bounded while decoding" (it does not claim to evict while decoding)',
        ]
    )
    kept = json.loads((repo.path / "run.json").read_text("utf-8"))["properties"]
    assert {one["name"]: one["outcome"] for one in kept}[FORKS] == "holds"


def test_certain_tasks_or_lengths_leave_properties_out(run: Callable[..., pytest.RunResult]) -> None:
    run("--kv-method=snapkv", suite=SUITE).assert_outcomes(deselected=1)


def test_collecting_them_imports_no_torch(repo: pytest.Pytester) -> None:
    repo.makepyfile(
        look="""
        import sys

        def pytest_collection_finish(session):
            assert "torch" not in sys.modules, "torch was imported"
        """
    )
    repo.syspathinsert()
    found = repo.runpytest_subprocess("--pyargs", SUITE, "--kv-method=snapkv", "--collect-only", "-q", "-p", "look")
    assert found.ret == 0
    found.stdout.fnmatch_lines([f"*test_conformance[[]{FORKS}-snapkv[]]"])


OWN = """
from kvcheck import property_test


@property_test(skip_reason=lambda info: "" if info.frees_memory else "it frees no memory", longest=60)
def few_slots_are_used(subject):
    \"\"\"A cache never has more than {slots} slots.\"\"\"
    cache, _ = subject.prefill(subject.tokens(subject.draw.prompt))
    assert max(layer.stored for layer in cache.layers) <= {slots}, "too many slots"
"""


@pytest.mark.parametrize(("slots", "wanted"), [(32, {"passed": 1}), (31, {"failed": 1})])
def test_a_property_of_ones_own_is_tried_beside_the_shipped_ones_and_named_where_it_fails(
    try_out: Callable[..., pytest.RunResult], repo: pytest.Pytester, slots: int, wanted: dict[str, int]
) -> None:
    repo.makepyfile(own=OWN.format(slots=slots))
    result = try_out("--kv-method=mine.Newest", "-p", "own", "-k", f"few_slots or {FORKS}", "--kv-json=run.json")
    result.assert_outcomes(
        **{"passed": 1 + wanted.get("passed", 0), "failed": wanted.get("failed", 0)}, deselected=len(NAMES) - 1
    )
    kept = json.loads((repo.path / "run.json").read_text("utf-8"))["properties"]
    assert {one["name"] for one in kept} == {FORKS, "few_slots_are_used"}
    if slots < 32:
        result.stdout.fnmatch_lines(
            [
                'mine.Newest: "few slots are used" does not hold',
                "*it raised AssertionError in few_slots_are_used (own.py:*): too many slots*",
                "    def test_few_slots_are_used():",
                "conformance of mine.Newest: 1 of 2 properties hold, 1 fail",
            ]
        )


def test_a_property_of_ones_own_can_be_exempted_by_a_method_and_does_not_apply_where_it_says_so(
    try_out: Callable[..., pytest.RunResult], repo: pytest.Pytester
) -> None:
    repo.makepyfile(own=OWN.format(slots=1))
    repo.makepyfile(
        exempted="""
        from dataclasses import replace

        from mine import Newest as Known


        class Newest(Known):
            info = replace(Known.info, exempt={"few_slots_are_used": "it is a large one"})
        """
    )
    result = try_out("--kv-method=exempted.Newest", "--kv-method=fp16", "-p", "own", "-k", "few_slots", "-rs")
    result.assert_outcomes(skipped=2, deselected=2 * len(NAMES))
    result.stdout.fnmatch_lines(["*it is a large one*", "*it frees no memory*"])


ZOO = ("--pyargs", "kvcheck.suites.test_zoo", "--kv-profile=quick", "--kv-tasks=kv,needle", "-k", "not counterparts")
BUGS = "newcomer-score-freeze,attention-sinks-evictable,offset-is-retained-rows"


@pytest.fixture(scope="module")
def zoo_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of three bugs, and the output of the run."""
    folder = tmp_path_factory.mktemp("zoo")
    args = [*ZOO, f"--kv-zoo={BUGS}", "--kv-json=z.json", "--kv-md=z.md", f"--rootdir={folder}"]
    done = subprocess.run([sys.executable, "-m", "pytest", *args], cwd=folder, capture_output=True, text=True)
    (folder / "out.txt").write_text(done.stdout, "utf-8")
    return folder


def test_the_zoo_says_what_caught_a_bug(zoo_results: Path) -> None:
    said = (zoo_results / "out.txt").read_text("utf-8")
    assert "3 bugs: 3 (100 %) caught, 3 (100 %) by properties alone, 1 (33 %) by the answers of tasks alone" in said
    assert "3 passed, 2 deselected" in said
    assert "| eviction | [newcomer-score-freeze](https://" in (zoo_results / "z.md").read_text("utf-8")


TIME = r'"time": ?"[^"]+",?'


def test_the_zoo_goes_on_where_it_stopped_and_loses_nothing(zoo_results: Path, repo: pytest.Pytester) -> None:
    (repo.path / "conftest.py").unlink()  # the real engine
    before = (zoo_results / "z.json").read_text("utf-8")
    (repo.path / "z.json").write_text(before, "utf-8")

    def kept() -> bool:
        """Whether the file is as before, byte for byte, but for the time of the run."""
        now = (repo.path / "z.json").read_text("utf-8")
        return re.sub(TIME, "", now) == re.sub(TIME, "", before)

    again = ("--kv-json=z.json", "--kv-resume=z.json")
    repo.runpytest_subprocess(*ZOO, "--kv-zoo=newcomer-score-freeze", *again).assert_outcomes(passed=1, deselected=1)
    assert kept()
    repo.runpytest_subprocess(*ZOO, f"--kv-zoo={BUGS}", *again, "-n2").assert_outcomes(passed=3)
    assert kept()


def test_results_of_other_settings_are_not_taken(zoo_results: Path, repo: pytest.Pytester) -> None:
    (repo.path / "z.json").write_text((zoo_results / "z.json").read_text("utf-8"), "utf-8")
    found = repo.runpytest_subprocess(*ZOO, f"--kv-zoo={BUGS}", "--kv-resume=z.json", "--kv-seed=1")
    found.stderr.fnmatch_lines(["*z.json was measured with seed=0, this session has seed=1*"])
    assert found.ret == pytest.ExitCode.USAGE_ERROR


def test_an_unknown_bug_is_refused_with_the_nearest_name(repo: pytest.Pytester) -> None:
    result = repo.runpytest_subprocess("--pyargs", "kvcheck.suites.test_zoo", "--kv-zoo=newcomer-score-freez")
    result.stdout.fnmatch_lines(["*no bug and no family is called 'newcomer-score-freez'*"])
    assert result.ret != 0
