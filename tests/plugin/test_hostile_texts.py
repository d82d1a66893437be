"""A run in which methods, specs and models say what a terminal, a runner or a page would obey."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = "kvcheck.suites.test_string_retrieval"
FAKE = Path(__file__).with_name("fake_engine.py")
EVIL = "\x1b[2Jgone\r\u202e\n::error file=a::planted\n##[group]planted <script>x</script> |a| `b` [link](https://evil.example)"
HOSTILE = f"""

EVIL = {EVIL!r}


class Hostile(FakeSession):
    model_name = EVIL

    def run_case(self, case, method_spec, on_block=None, progress=None):
        if method_spec == "snapkv":
            raise MethodFailed(f"snapkv raised {{EVIL}}") from ValueError(EVIL)
        if method_spec == "kivi":
            raise type(EVIL, (Exception,), {{}})(EVIL)
        if method_spec == "h2o":
            raise SystemExit(EVIL)
        return super().run_case(case, method_spec, on_block, progress)

    def _sample(self, case, index, how):
        sample = super()._sample(case, index, how)
        return SampleRecord(index, sample.digest, tuple(TurnRecord(turn.score, EVIL) for turn in sample.turns))


def pytest_kvcheck_open(settings):
    return Hostile(settings)
"""
METHODS = ("snapkv", "kivi", "h2o", "streaming_llm")
COMMAND = re.compile(r"^\s*::(?!test_)|##\[", re.MULTILINE)  # an item of -v may have no folder before its name
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
MARKUP = re.compile(r"<script|\]\(|https://")


@pytest.fixture(params=[(), ("-n", "2")], ids=["no xdist", "-n 2"])
def shown(
    run: Callable[..., pytest.RunResult],
    behave: Callable[[dict[str, float]], None],
    repo: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> str:
    """What the log of a run of hostile methods holds; its files are run.json, run.md, step.md and junit.xml."""
    repo.makeconftest(FAKE.read_text("utf-8") + HOSTILE)
    behave({"streaming_llm": 0.0})
    assert run("--kv-method=fp16", "--kv-record=new", "--kv-modes=single", "-p", "no:cacheprovider").ret == 0
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repo.path / "step.md"))
    names = [f"--kv-method={name}" for name in METHODS]
    files = ["--kv-json=run.json", "--kv-md=run.md", "--junitxml=junit.xml", "-o", "junit_family=xunit1"]
    result = run(*names, "--kv-modes=single", *files, "-rA", "-v", "-p", "no:cacheprovider", *request.param)
    assert result.ret == 1
    return "\n".join([*result.outlines, *result.errlines])


def test_nothing_that_is_obeyed_reaches_log_summary_or_report_and_the_run_file_keeps_it(
    shown: str, repo: pytest.Pytester
) -> None:
    assert shown.count("planted") >= len(METHODS) - 1
    assert [line for line in shown.splitlines() if COMMAND.search(line) or UNSEEN.search(line)] == []
    for name in ("run.md", "step.md"):
        text = (repo.path / name).read_text("utf-8")
        assert "planted" in text
        assert COMMAND.search(text) is None
        assert UNSEEN.search(text) is None
        assert MARKUP.search(re.sub("`[^`\n]*`", "", text)) is None
    tree = xml.parse(repo.path / "junit.xml")
    texts = [text for node in tree.iter() for text in (*node.attrib.values(), node.text or "")]
    assert any("planted" in text for text in texts)
    assert [text for text in texts if UNSEEN.search(text)] == []
    run = json.loads((repo.path / "run.json").read_text("utf-8"))
    said = [text for name, text in run["failures"].items() if not name.endswith("streaming_llm")]
    assert len(said) == len(METHODS) - 1
    assert all(EVIL in text for text in said)
    assert EVIL in [turn["answer"] for case in run["cases"] for one in case["samples"] for turn in one["turns"]]


@pytest.mark.parametrize(
    "option",
    [
        f"--kv-method=snapkv:{EVIL}=1",
        f"--kv-method=snapkv:budget='{EVIL}'",
        f"--kv-method={EVIL}.Cache",
        f"--kv-model=./{EVIL}",
        f"--kv-tasks={EVIL}",
        f"--kv-resume={EVIL}",
        f"--kv-baselines=./{EVIL}",
    ],
    ids=["parameter", "value", "method", "model", "task", "file", "folder"],
)
def test_what_is_refused_is_named_without_being_obeyed(repo: pytest.Pytester, option: str) -> None:
    result = repo.runpytest("--pyargs", SUITE, "--kv-method=snapkv", option, "-p", "no:cacheprovider")
    text = "\n".join([*result.outlines, *result.errlines])
    assert result.ret != 0
    assert "planted" in text
    assert COMMAND.search(text) is None
    assert UNSEEN.search(text) is None
