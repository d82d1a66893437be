"""Which cases the zoo is tried on, and how tasks are said to show a fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from building import header, record

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import BY_ANSWERS, BY_BYTES, BY_REFUSAL, CaseId, Run, ZooRecord
from kvcheck.core.settings import Settings
from kvcheck.judging.pooled import Compared
from kvcheck.report.zoo import lines, rates
from kvcheck.store.run_file import run_from_json, run_to_json
from kvcheck.tasks import TASKS
from kvcheck.zoo.evaluate import Candidate, Evaluation, Shown, first_of_each_way, in_process, rungs


def test_every_task_is_tried_once_at_the_shortest_length() -> None:
    first, _ = rungs(Settings())
    assert [case.task for case in first] == sorted(TASKS.names())
    assert {(case.length, case.n) for case in first} == {(512, 4)}


def test_a_conversation_is_tried_before_a_single_question() -> None:
    first, _ = rungs(Settings())
    wanted = {name: "multi_turn" for name in TASKS.names() if "multi_turn" in TASKS.get(name).info.modes}
    assert {case.task: case.mode for case in first if case.mode == "multi_turn"} == wanted


def test_longer_texts_are_for_bugs_that_nothing_else_shows() -> None:
    first, longer = rungs(Settings())
    assert {case.length for case in longer} == {1024, 2048}
    of_one_length = {"dialogue", "tool_log"}
    assert {case.task for case in longer} == {case.task for case in first} - of_one_length
    assert rungs(Settings(profile="quick"))[1] == []


def test_the_settings_choose_tasks_and_lengths() -> None:
    first, longer = rungs(Settings(lengths=(256,), tasks=("kv",), modes=("single",), n=2))
    assert [(case.task, case.mode, case.length, case.n) for case in first] == [("kv", "single", 256, 2)]
    assert longer == []


def test_an_engine_that_holds_no_model_here_is_refused() -> None:
    with pytest.raises(KvcheckError, match="holds none here"):
        in_process(object())  # type: ignore[arg-type]  (an engine that has no backend of this process)


BUG = Candidate("a-bug", "eviction", "bad", "good")
CORRECT = Candidate("good", "counterparts", "good", "good")
CASES = [CaseId("kv", 1, "single", 512 + at, 0, 8) for at in range(6)]


class Scripted(Evaluation):
    """Says of each case what it is told; every case loses `lost` of its 8 contexts."""

    def __init__(self, said: dict[int, list[Shown]], lost: int = 0) -> None:
        self.settings, self.said, self.lost = Settings(), said, lost

    def case(self, candidate: Candidate, case: CaseId) -> tuple[list[Shown], Compared | None]:
        shown = self.said.get(CASES.index(case), [])
        if any(way == BY_REFUSAL for way, _ in shown):
            return shown, None
        now, then = (replace(record([0.0] * lost + [1.0] * (8 - lost)), case=case) for lost in (self.lost, 0))
        return shown, Compared(now, None, then)


def shown(said: dict[int, list[Shown]], lost: int = 0, candidate: Candidate = BUG) -> tuple[list[str], int]:
    found, samples = Scripted(said, lost).tasks(candidate, CASES, [])
    return [way for way, _ in found], samples


def test_a_bug_that_the_audit_shows_is_tried_on_until_answers_show_it() -> None:
    said = {
        0: [(BY_REFUSAL, "it raised")],
        1: [(BY_BYTES, "bytes: more")],
        3: [(BY_ANSWERS, "regression: 3")],
    }
    assert shown(said) == ([BY_REFUSAL, BY_BYTES, BY_ANSWERS], 24)


def test_what_answers_never_show_is_not_said_to_be_shown_by_them() -> None:
    assert shown({0: [(BY_REFUSAL, "it raised")]}) == ([BY_REFUSAL], 40)


def test_what_no_case_shows_all_of_them_show() -> None:
    ways, samples = shown({}, lost=2)
    assert (set(ways), samples) == ({BY_ANSWERS}, 48)


def test_a_correct_method_is_tried_to_the_end() -> None:
    said = {0: [(BY_ANSWERS, "regression: 3")], 5: [(BY_ANSWERS, "regression: 4")]}
    assert shown(said, candidate=CORRECT) == ([BY_ANSWERS, BY_ANSWERS], 48)


def test_each_way_is_told_once() -> None:
    found = [(BY_BYTES, "one"), (BY_BYTES, "two"), (BY_ANSWERS, "three")]
    assert first_of_each_way(found) == [(BY_BYTES, "one"), (BY_ANSWERS, "three")]


def zoo(name: str, *found: Shown, **more) -> ZooRecord:
    cases, ways = (tuple(one[at] for one in found) for at in (1, 0))
    return ZooRecord(name, "eviction", "good", False, cases=cases, ways=ways, **more)


def test_the_share_of_tasks_is_that_of_answers() -> None:
    found = [
        zoo("one", (BY_REFUSAL, "kv: it raised"), (BY_ANSWERS, "needle: regression: 3"), properties=("a: b",)),
        zoo("two", (BY_REFUSAL, "kv: it raised")),
        zoo("three", (BY_BYTES, "kv: bytes: more")),
        zoo("four"),
    ]
    assert list(rates(found)) == [
        "4 bugs: 3 (75 %) caught, 1 (25 %) by properties alone, 1 (25 %) by the answers of tasks alone",
        "in tasks, also or only: 2 (50 %) by the audit or a crash, 1 (25 %) by bytes",
    ]
    text = "\n".join(lines(found))
    assert "tasks: needle" in text
    assert "tasks: audit: kv" in text
    assert "tasks: bytes: kv" in text


def test_files_of_before_are_read_and_said_not_to_tell_how() -> None:
    old = replace(zoo("one"), cases=("kv: regression: 3",))
    text = run_to_json(Run(header(), (), zoo=(old,))).replace(',"ways":[]', "")
    assert "ways" not in text
    (read,) = run_from_json(text).zoo
    assert read == old
    assert "1 (100 %) in a way that the file does not say" in "\n".join(rates([read]))
