"""Which cases the zoo is tried on."""

from __future__ import annotations

import pytest

from kvcheck.core.errors import KvcheckError
from kvcheck.core.settings import Settings
from kvcheck.tasks import TASKS
from kvcheck.zoo.evaluate import in_process, rungs


def test_every_task_is_tried_once_at_the_shortest_length() -> None:
    first, _ = rungs(Settings())
    assert [case.task for case in first] == sorted(TASKS.names())
    assert {(case.length, case.n) for case in first} == {(512, 4), (512, 2)}


def test_a_conversation_is_tried_before_a_single_question() -> None:
    first, _ = rungs(Settings())
    wanted = {name: "multi_turn" for name in TASKS.names() if "multi_turn" in TASKS.get(name).info.modes}
    assert {case.task: case.mode for case in first if case.mode == "multi_turn"} == wanted


def test_longer_texts_are_for_bugs_that_nothing_else_shows() -> None:
    first, longer = rungs(Settings())
    assert {case.length for case in longer} == {1024, 2048}
    assert {case.task for case in longer} == {case.task for case in first}
    assert rungs(Settings(profile="quick"))[1] == []


def test_the_settings_choose_tasks_and_lengths() -> None:
    first, longer = rungs(Settings(lengths=(256,), tasks=("kv",), modes=("single",), n=2))
    assert [(case.task, case.mode, case.length, case.n) for case in first] == [("kv", "single", 256, 2)]
    assert longer == []


def test_an_engine_that_holds_no_model_here_is_refused() -> None:
    with pytest.raises(KvcheckError, match="holds none here"):
        in_process(object())  # type: ignore[arg-type]  (an engine that has no backend of this process)
