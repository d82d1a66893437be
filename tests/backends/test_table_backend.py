"""The seam: an engine that is no transformers process runs an unchanged suite, records, is judged and is reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.runner.case import OFFERS, Runner
from kvcheck.runner.seam import Answer
from kvcheck.store.run_file import read_run
from kvcheck.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parent))
from table_backend import Words

SUITE, BUDGETS = "kvcheck.suites.test_string_retrieval", "kvcheck.suites.test_budgets"
N, LENGTH = 8, 512
KV = ("--kv-tasks=kv", f"--kv-lengths={LENGTH}", f"--kv-n={N}", "--kv-baselines=stored", "--kv-method=fp16")
MODES = "--kv-modes=single,multi_turn,multi_request"


@cache
def rows(right: int = N) -> dict[str, list[int]]:
    """Prompts of the task kv in all of its modes, with their answers; those of the first `right` contexts are right."""
    words, table = Words(), {}
    for index in range(N):
        sample = TASKS.get("kv").generate(0, index, LENGTH, words)
        context = [*words.bos, *words.encode(sample.context)]
        conversation = list(context)
        for at, turn in enumerate(sample.turns):
            answer = words.encode(turn.space + turn.expected if index < right else " no")
            alone = [*context, *words.encode(turn.question)]
            conversation += words.encode((sample.separator if at else "") + turn.question)
            for prompt in (alone, conversation):
                table[" ".join(map(str, prompt))] = answer
            conversation += answer
    return table


@pytest.fixture
def repo(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A repository whose engine is the table."""
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(Path(__file__).with_name("table_backend.py").read_text("utf-8"))
    server = Path(__file__).with_name("table_server.py").read_text("utf-8")
    (pytester.path / "table_server.py").write_text(server, "utf-8")
    (pytester.path / "stored").mkdir()
    return pytester


def tried(repo: pytest.Pytester, right: int, *options: str) -> pytest.RunResult:
    """The suite, with a table in which this many contexts have the right answers."""
    (repo.path / "table.json").write_text(json.dumps(rows(right)), "utf-8")
    return repo.runpytest_subprocess("--pyargs", SUITE, "-p", "no:cacheprovider", *KV, MODES, *options)


def test_a_table_behind_a_socket_is_recorded_judged_and_reported(repo: pytest.Pytester) -> None:
    tried(repo, N, "--kv-record=new").assert_outcomes(passed=3)
    assert (repo.path / "torch.txt").read_text() == "False"
    assert list((repo.path / "stored").rglob("*.*"))

    again = tried(repo, N, "--kv-json=run.json")
    again.assert_outcomes(passed=3)
    run = read_run(repo.path / "run.json")
    assert [(len(one.samples), one.accuracy) for one in run.cases] == [(N, 1.0)] * 3
    for verdicts in run.verdicts.values():
        assert ("regression", "pass") in [(one.question, one.outcome) for one in verdicts]
    again.stdout.fnmatch_lines(
        [
            "not measured",
            "  agree: the table has no probabilities (3 cases)",
            "  compression before the question: the question is sent with its context (1 case)",
            "  forks: the table has whole prompts (3 cases)",
            "  kl: the table has no probabilities (3 cases)",
            "  latency: the seconds of a socket say nothing of a method (3 cases)",
            "  memory: a table caches nothing (3 cases)",
            "  nll: the table has no probabilities (3 cases)",
        ]
    )


def test_wrong_answers_in_the_table_make_the_run_red(repo: pytest.Pytester) -> None:
    tried(repo, N, "--kv-record=new").assert_outcomes(passed=3)
    tried(repo, 0).assert_outcomes(failed=3)


def test_its_latency_is_a_skip_with_the_reason_and_a_failure_where_a_budget_asks_for_it(repo: pytest.Pytester) -> None:
    (repo.path / "table.json").write_text("{}", "utf-8")
    options = ("--pyargs", BUDGETS, "-p", "no:cacheprovider", *KV, "-rs")
    skipped = repo.runpytest_subprocess(*options, "--kv-profile=full", "--kv-record=new")
    skipped.assert_outcomes(skipped=1)
    skipped.stdout.fnmatch_lines(["*not measured: latency (the seconds of a socket say nothing of a method)*"])
    asked = repo.runpytest_subprocess(*options, "--kv-budget=ttft=1.2,tpot=1.2")
    asked.assert_outcomes(failed=1)
    asked.stdout.fnmatch_lines(["*the seconds of a socket say nothing of a method*"])


def test_an_engine_that_fails_is_named_with_what_it_said(repo: pytest.Pytester) -> None:
    (repo.path / "table.json").write_text("{}", "utf-8")
    result = repo.runpytest_subprocess("--pyargs", SUITE, "-p", "no:cacheprovider", *KV, MODES, "--kv-record=new")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*fp16: unknown prompt of * tokens*"])


# -- without pytest ----------------------------------------------------------------------------------------------------


def backend(can: Sequence[str] = (), **other: Any) -> Any:
    """A table in this process. can: what it does not lack. other: what it has beside, or in the place of something."""
    table = rows()

    def answer(method_spec: str, prompts: Any) -> list[Answer]:
        return [Answer(tuple(table[" ".join(map(str, ids))]), ended=True) for ids, _ in prompts]

    lacks = {what: f"no {what}" for what in OFFERS if what not in can}
    kept = {
        "model_name": "table", "fingerprint": "f", "max_length": None, "decoding": "greedy", "encoder": Words(),
        "answer": answer, "lacks": lacks,
    }  # fmt: skip
    return SimpleNamespace(**{**kept, **other})


def case(mode: str = "single") -> CaseId:
    return CaseId("kv", 1, mode, LENGTH, 0, 2)


@pytest.mark.parametrize("mode", ["single", "multi_turn", "multi_request"])
def test_every_mode_is_asked_in_whole_prompts(mode: str) -> None:
    record = Runner(backend(), Settings()).run_case(case(mode), "fp16")
    assert record.accuracy == 1.0
    assert record.query_aware, "the question is always in the prompt"
    assert ("compression before the question" in dict(record.not_measured)) == (mode == "multi_request")


@pytest.mark.parametrize("ended", [True, False])
def test_whether_the_engine_or_the_limit_ended_an_answer_is_in_the_record(ended: bool) -> None:
    table = backend()
    cut = backend(answer=lambda *asked: [replace(one, ended=ended) for one in table.answer(*asked)])
    record = Runner(cut, Settings()).run_case(case("multi_turn"), "fp16")
    assert {turn.ended for sample in record.samples for turn in sample.turns} == {ended}


def test_log_probabilities_become_nats_per_token() -> None:
    given: list[Any] = []

    def log_probs(method_spec: str, pairs: Any) -> list[list[float]]:
        given.extend(pairs)
        return [[-0.5] * len(continuation) for _, continuation in pairs]

    record = Runner(backend(can=["log_probs"], log_probs=log_probs), Settings()).run_case(case(), "fp16")
    sample = TASKS.get("kv").generate(0, 0, LENGTH, Words())
    turn, recorded = sample.turns[0], record.samples[0].turns[0]
    assert given[0] == (
        [*Words.bos, *Words().encode(sample.context), *Words().encode(turn.question)],
        Words().encode(turn.space + turn.expected),
    )
    assert (recorded.nll, recorded.agree, recorded.kl) == (0.5, None, None)
    assert {"agree", "kl", "whether the method acts"} <= set(dict(record.not_measured))
    assert "nll" not in dict(record.not_measured)


def test_what_is_lacking_is_refused_with_its_reason_when_it_is_asked_for() -> None:
    with pytest.raises(MethodUnsupported, match=r"latency is not measured.*no latency"):
        Runner(backend(), Settings()).measure_latency("fp16", 512)
    with pytest.raises(MethodUnsupported, match=r"memory is not measured.*no memory"):
        Runner(backend(), Settings()).measure_memory("fp16", 512)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"can": ["fork"]}, "has no work"),
        ({"can": ["memory", "latency"]}, "has no measure_memory, measure_latency"),
        ({"can": ["log_probs"]}, "has no log_probs"),
        ({"lacks": {"forks": "typed wrongly"}}, "lacks names forks"),
    ],
)
def test_a_backend_that_offers_less_than_it_says_is_refused_before_any_case(other: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Runner(backend(**other), Settings())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda method_spec, prompts: [], "gave 0 for 2 prompts"),
        (lambda method_spec, prompts: [Answer((5,) * 99, True)] * len(prompts), "answered 99 tokens"),
    ],
)
def test_too_few_or_too_long_answers_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(MethodFailed, match=message):
        Runner(backend(answer=answer), Settings()).run_case(case(), "fp16")


def test_images_have_no_place_in_a_prompt_of_token_ids() -> None:
    with pytest.raises(KvcheckError, match="no place for"):
        Runner(backend(), Settings()).run_case(CaseId("image_needle/text", 1, "single", LENGTH, 0, 1), "fp16")
