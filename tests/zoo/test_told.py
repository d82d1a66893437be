"""Whether bugs are told from their counterparts by answers: the embedded model, and samples made by hand."""

from __future__ import annotations

import pytest

from kvcheck.backends.transformers import Session
from kvcheck.cli import checks
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.record import CaseId, CaseRecord, SampleRecord, TurnRecord
from kvcheck.core.settings import Settings
from kvcheck.report import told as report
from kvcheck.runner.case import Runner, driven
from kvcheck.zoo import told
from kvcheck.zoo.told import Told, Unaudited


@pytest.fixture(scope="module")
def lost_sinks() -> list[Told]:
    """By answers, on a model that has no sinks."""
    engine = driven(Unaudited.open(Settings()), Settings())
    return list(told.measure(engine, ["attention-sinks-evictable"], 512, 3))


def test_a_bug_that_the_audit_refuses_is_measured(lost_sinks: list[Told]) -> None:
    assert [(one.task, one.metric) for one in lost_sinks] == [
        ("completion/prose", "nll"),
        ("completion/prose", "kl"),
        ("completion/echo", "accuracy"),
        ("completion/echo", "nll"),
        ("completion/echo", "kl"),
    ]
    assert all(one.n == 3 and one.worse != 0 for one in lost_sinks if one.metric != "accuracy")


def test_the_audit_refuses_it_where_it_looks() -> None:
    engine = driven(Session.open(Settings()), Settings())
    found = list(told.measure(engine, ["attention-sinks-evictable"], 512, 1))
    assert len(found) == len(told.CASES)
    assert all("broke its own claims" in one.failed and not one.metric for one in found)


def test_a_method_that_is_not_for_the_model_is_said_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = driven(Unaudited.open(Settings()), Settings())
    run, name = Runner.run_case, "kivi:bits=4"

    def refuses(self: Runner, case: CaseId, method: str) -> CaseRecord:
        if method == name:
            raise MethodUnsupported("kivi is not for this model\n  really", "take another")
        return run(self, case, method)

    monkeypatch.setattr(Runner, "run_case", refuses)
    found = list(told.measure(engine, ["keys-quantized-per-vector", "scales-fall-back-to-one"], 512, 1))
    assert {(one.bug, one.failed) for one in found} == {
        ("keys-quantized-per-vector", "kivi is not for this model"),
        ("scales-fall-back-to-one", ""),
    }


def test_a_bug_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match="no bug and no family"):
        list(told.measure(driven(Unaudited.open(Settings()), Settings()), ["sinks"], 512, 1))


def test_the_command_offers_the_tasks_that_there_are() -> None:
    assert tuple(told.CASES) == checks.TOLD


def test_every_bug_of_the_page_is_in_the_zoo() -> None:
    assert {one.name for one in told.bugs(tuple(told.UNSEEN))} == set(told.UNSEEN)


def sample(index: int, kl: float, score: float = 1.0, ended: bool | None = True) -> SampleRecord:
    turn = TurnRecord(score, "answer", nll=2 * kl, kl=kl, ended=ended)
    return SampleRecord(index, "0" * 12, (turn, turn))


def test_what_is_worse_is_above_zero_by_every_metric() -> None:
    faulty, correct = [sample(0, 0.3, 0.0)], [sample(0, 0.1)]
    assert told.differences(faulty, correct, "kl") == pytest.approx([0.2])
    assert told.differences(faulty, correct, "nll") == pytest.approx([0.4])
    assert told.differences(faulty, correct, "accuracy") == [1.0]


def test_where_nothing_is_answered_there_is_no_accuracy() -> None:
    assert told.differences([sample(0, 0.3, ended=None)], [sample(0, 0.1, ended=None)], "accuracy") == []


def test_a_bug_is_told_from_where_on_it_stays_told() -> None:
    assert told.tested([1.0, 1.1, 0.9, 1.0])[2] == 3
    mean, p, since = told.tested([1.0, 1.1, 0.9, -3.0, 1.0, 1.1, 0.9])
    assert mean > 0
    assert p > told.LEVEL
    assert since is None
    assert told.tested([0.1, -0.1, 0.1, 1.0, 1.1, 0.9, 1.0, 1.0, 1.1, 1.0])[2] == 8


def test_no_difference_and_too_few_contexts_tell_nothing() -> None:
    assert told.tested([0.0, 1e-9, 0.0, 0.0])[1:] == (1.0, None)
    assert told.tested([5.0, 5.0])[1:] == (1.0, None)
    assert told.tested([0.5, 0.5, 0.5])[1:] == (0.0, 3)


def test_the_page_names_what_tells_a_bug_first() -> None:
    found = [
        Told("bug-a", "snapkv", "completion/echo", "accuracy", 0.25, 0.004, 7, 8),
        Told("bug-a", "snapkv", "completion/echo", "kl", 0.5, 0.001, 3, 8),
        Told("bug-b", "kvcheck.zoo.Own:budget=0.5", "completion/echo", "kl", 0.0, 1.0, None, 8),
        Told("bug-c", "h2o", "completion/echo", failed="h2o raised"),
    ]
    page = "\n".join(report.markdown([report.Looked("mini", found)], {"bug-a": "seams"}, "8 contexts"))
    assert "| `bug-a` | seams | `snapkv` | +25.0 (0.004) |  | +0.5000 (0.001) | KL, 3 of 8 |" in page
    assert "| `bug-b` |  | `Own:budget=0.5` |  |  | +0.0000 (1.000) | - |" in page
    assert "fails: h2o raised" in page
    assert "1 of 3 bugs are told: 1 by accuracy, 0 by nll, 1 by KL." in page
