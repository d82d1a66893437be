"""Reports are pure: a run in, lines out. They fit 100 columns and say plainly what is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvcheck.core.record import (
    AS_RECORDED,
    CAPABILITIES,
    EXCUSED,
    HOLDS,
    UNSERVED,
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    PropertyRecord,
    Run,
    RunHeader,
    SampleRecord,
    TurnRecord,
    Verdict,
)
from kvcheck.report import catalogue, markdown, rows, summary, terminal

HEADER = RunHeader("0.1.0", "0123456789abcdef", True, {"torch": "2.13"}, {"cpu": "x"}, "abc", "mini", {"alpha": "0.05"})
METHOD = "pyramidkv:budget=0.25,window=32,beta=20"


def record(task: str, mode: str, capability: str, method: str, lost: int, n: int = 8, length: int = 512) -> CaseRecord:
    """A case that loses `lost` of its n contexts."""
    turns = 3 if mode == "multi_turn" else 1
    samples = tuple(
        SampleRecord(at, f"{at:012x}", (TurnRecord(float(at >= lost), "a", nll=0.5, agree=0.9, kl=0.01),) * turns)
        for at in range(n)
    )
    held = 1_000_000 if method == "fp16" else 250_000
    memory = MemoryRecord(held, 1_000_000, 0, length / 4, length, 4, 4)
    case = CaseId(task, 1, mode, length, 0, n)
    return CaseRecord(case, method, "abc", capability, True, True, 0.1, samples, memory)


@pytest.fixture
def run() -> Run:
    """A run with every capability, all outcomes, and something not measured."""
    cases, verdicts = [], {}
    for at, capability in enumerate(name for name in CAPABILITIES if name != "language_modelling"):
        for mode in ("single", "multi_turn"):
            task = "summary_with_needles" if capability == "multi_task" else capability
            one = record(task, mode, capability, METHOD, 4 * (at == 0))
            cases += [record(task, mode, capability, "fp16", 0), one]
            outcome = ("fail", "inconclusive", "pass", "pass", "pass", "pass", "pass")[at]
            drop = 50.0 * (at == 0)
            own = (AS_RECORDED, "drift: 2 contexts worse")[at == 2]
            verdicts[rows.key(one)] = (
                Verdict("budget", outcome, drop, drop - 9, drop + 9, 2.0, 8, 4, 0, 37.5),
                Verdict(
                    "regression", "fail" if at == 1 else "pass", 0.0, 0.0, 9.0, 2.0, 8, reason="p" if at == 1 else own
                ),
            )
    latency = (LatencyRecord("tpot", 512, 0.005, 0.004, 1.25, 1.2, 1.3, 9),)
    empty = CaseId("latency", 1, "single", 512, 0, 1)
    why = (("ttft", "several workers"),)
    cases.append(CaseRecord(empty, METHOD, "abc", "latency", True, False, 0, (), None, latency, "measured", why))
    failures = {f"needle/v1/single/len=512/seed=0/n=8|{METHOD}": "boom\nIndexError: no slot\n  add a slot"}
    return Run(HEADER, tuple(cases), verdicts, failures)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_report_fits(run: Run, width: int) -> None:
    lines = list(terminal.lines(run, width=width))
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line.endswith("...")]


def test_what_did_not_pass_stands_with_what_is_allowed_and_by_whom(run: Run) -> None:
    lines = list(terminal.lines(replace(run, header=replace(HEADER, settings={"budget": "drop=2.0"}))))
    at = next(number for number, line in enumerate(lines) if line.startswith("failed  "))
    assert lines[at].split() == ["failed", "of", "value", "interval", "allowed", "by", "n"]
    found = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[at + 1 : at + 5]]
    assert found[0][1:] == ["drop", "+50.0", "[41.0, 59.0]", "2", "--kv-budget", "8"]
    assert found[2][1:] == ["nll", "drifted", "noise", "own record", "8"]
    assert lines[at + 5].startswith("inconclusive  ")


def test_a_narrow_terminal_goes_without_the_number_of_contexts_and_keeps_the_limit(run: Run) -> None:
    head = next(line for line in terminal.lines(run, width=80) if line.startswith("failed  "))
    assert head.split()[-2:] == ["allowed", "by"]


def test_the_drift_of_nll_is_told_as_a_rise_from_fp16() -> None:
    before, after = record("kv", "single", "kv", "fp16", 0), record("kv", "single", "kv", METHOD, 0)
    worse = tuple(replace(one, turns=(replace(one.turns[0], nll=0.75),)) for one in after.samples)
    after = replace(after, samples=worse)
    lines = list(summary.facts(Run(HEADER, (after,)), [after], {before.case.key: before}))
    assert "drift        nll +0.250 nats per token from fp16 (0.750), top-1 agreement 90.0%, KL 0.0100 nats" in lines


def ranked(found: CaseRecord, *ranks: int | None) -> CaseRecord:
    """A case whose contexts have these ranks in turn."""
    samples = [
        replace(one, turns=(replace(one.turns[0], rank=ranks[at % len(ranks)]),))
        for at, one in enumerate(found.samples)
    ]
    return replace(found, samples=tuple(samples))


def test_how_often_the_reference_is_ranked_first_is_told_beside_fp16() -> None:
    before, after = record("kv", "single", "kv", "fp16", 0), record("kv", "single", "kv", METHOD, 0)
    now, key = ranked(after, 1, 3), before.case.key
    assert rows.ranked_first([now], {key: ranked(before, 1)}) == (0.5, 1.0)
    assert rows.ranked_first([now], {key: ranked(before, 1, None)}) == (0.5, None)
    assert rows.ranked_first([after], {key: ranked(before, 1)}) is None
    lines = "\n".join(summary.facts(Run(HEADER, (now,)), [now], {key: ranked(before, 1)}))
    assert "KL 0.0100 nats, reference ranked first 50.0% (fp16 100.0%)" in lines


@pytest.mark.parametrize("report", [terminal, markdown], ids=["terminal", "markdown"])
def test_a_report_says_what_a_newcomer_asks(run: Run, report: object) -> None:
    text = " ".join(" ".join(report.lines(run)).split())  # type: ignore[attr-defined]
    accuracy = ("string_retrieval", "0.500", "gives up", "interval above 0", "25% of the KV bytes")
    for wanted in (*accuracy, "several workers"):
        assert wanted in text
    assert "IndexError: no slot" in text
    assert "add a slot" in text


def test_a_hint_that_several_cases_have_is_said_once(run: Run) -> None:
    name = next(iter(run.failures))
    again = {name.replace("len=512", f"len={length}"): run.failures[name] for length in (512, 1024)}
    text = "\n".join(terminal.lines(replace(run, failures=again)))
    assert text.count("IndexError: no slot") == 2
    assert text.count("add a slot") == 1


def mixed(method: str, scores: tuple[float, float]) -> CaseRecord:
    """A conversation that mixes two kinds of questions."""
    one = record("scbench/repoqa_and_kv", "multi_turn", "multi_task", method, 0)
    turns = tuple(TurnRecord(score, "a", kind) for kind, score in zip(("repoqa", "kv"), scores, strict=True))
    return replace(one, samples=tuple(replace(sample, turns=turns) for sample in one.samples))


@pytest.mark.parametrize("report", [terminal, markdown], ids=["terminal", "markdown"])
def test_a_report_tells_the_subtasks_of_a_task_apart(report: object) -> None:
    run = Run(HEADER, (mixed("fp16", (1.0, 0.75)), mixed(METHOD, (0.25, 0.5))), {}, {})
    lines = [line for line in report.lines(run) if "repoqa_and_kv" in line]  # type: ignore[attr-defined]
    told = [" ".join(line.replace("|", " ").replace("->", " ").replace("&nbsp;", " ").split()) for line in lines]
    assert "scbench/repoqa_and_kv kv 0.750 0.500 8" in told
    assert "scbench/repoqa_and_kv repoqa 1.000 0.250 8" in told


def test_fp16_is_left_out_of_a_subtask_that_it_was_not_measured_on() -> None:
    alone = mixed(METHOD, (0.25, 0.5))
    assert [(one.subtask, one.before, one.answers) for one in rows.parts([alone], {})] == [
        ("kv", None, 8),
        ("repoqa", None, 8),
    ]


def test_a_task_of_one_kind_has_no_subtasks() -> None:
    assert rows.parts([record("needle", "single", "needle", METHOD, 0)], {}) == []


def test_the_turns_of_fp16_are_those_of_the_same_contexts() -> None:
    fp16, mine = record("kv", "multi_turn", "kv", "fp16", 4, n=8), record("kv", "multi_turn", "kv", METHOD, 4, n=8)
    few = replace(mine, samples=mine.samples[4:])  # fp16 has lost the four that are not here
    table = summary.turn_table([few], {fp16.case.key: fp16})
    assert table is not None
    assert list(table.rows[0]) == ["  fp16", "1.000", "1.000", "1.000"]


def conversation(method: str, scores: tuple[float, ...], kl: float | None = None) -> CaseRecord:
    """A case of four contexts of twenty turns, five with each score."""
    turns = tuple(TurnRecord(score, "a", kl=kl) for score in scores for _ in range(5))
    one = record("dialogue", "multi_turn", "semantic_retrieval", method, 0, n=4)
    return replace(one, samples=tuple(replace(sample, turns=turns) for sample in one.samples))


def test_a_long_conversation_is_told_by_quarters() -> None:
    fp16 = conversation("fp16", (1.0, 1.0, 1.0, 0.5))
    table = summary.quarter_table([conversation(METHOD, (1.0, 0.5, 0.5, 0.0), 0.25)], {fp16.case.key: fp16})
    assert table is not None
    assert [list(row) for row in table.rows] == [
        ["  dialogue fp16", "1.000", "1.000", "1.000", "0.500"],
        ["  dialogue method", "1.000", "0.500", "0.500", "0.000"],
        ["  dialogue KL", "0.2500", "0.2500", "0.2500", "0.2500"],
    ]


def test_what_was_not_measured_of_it_has_no_line() -> None:
    (one,) = rows.quarters([conversation(METHOD, (1.0, 0.5, 0.5, 0.0))], {})
    assert (one.before, one.kl) == (None, None)


def test_it_is_not_mixed_with_the_turns_of_short_ones() -> None:
    short, long = record("kv", "multi_turn", "kv", METHOD, 0), conversation(METHOD, (0.0, 0.0, 0.0, 0.0))
    assert rows.turns([short, long]) == [1.0, 1.0, 1.0]
    assert summary.quarter_table([short], {}) is None


@pytest.mark.parametrize("report", [terminal, markdown], ids=["terminal", "markdown"])
def test_a_report_says_how_each_turn_went(run: Run, report: object) -> None:
    text = "\n".join(report.lines(run))  # type: ignore[attr-defined]
    assert "turn 1" in text
    assert "turn 3" in text


@pytest.mark.parametrize("report", [terminal, markdown], ids=["terminal", "markdown"])
def test_a_report_says_how_the_method_stands_to_its_own_record(run: Run, report: object) -> None:
    text = "\n".join(report.lines(run))  # type: ignore[attr-defined]
    assert "identical in 10 of 14 cases, changed but not clearly worse in 2, worse in 2" in text


def test_turns_bytes_latency_drift_and_chance_are_shown(run: Run) -> None:
    text = "\n".join(terminal.lines(run))
    for wanted in ("turn 3", "ratio 0.250", "tpot", "1.25 x fp16", "top-1 agreement 90.0%", "chance", "0.10"):
        assert wanted in text


@pytest.mark.parametrize("report", [terminal, markdown], ids=["terminal", "markdown"])
def test_host_memory_is_shown_where_a_method_uses_it(run: Run, report: object) -> None:
    def lines(of: Run) -> str:
        return "\n".join(report.lines(of))  # type: ignore[attr-defined]

    assert "host memory" not in lines(run)
    cases = tuple(
        replace(one, memory=replace(one.memory, host_bytes=2_500_000))
        if one.memory is not None and one.method == METHOD
        else one
        for one in run.cases
    )
    text = lines(replace(run, cases=cases))
    assert "host memory" in text
    assert "25% of the KV bytes of fp16, and 2.50 MB per context in host memory." in " ".join(text.split())


def test_the_pooled_interval_is_tighter_than_that_of_one_case() -> None:
    known = {one.case.key: one for one in (record("kv", "single", "kv", "fp16", 0, length=at) for at in (512, 1024))}
    mine = [record("kv", "single", "kv", METHOD, 4, length=at) for at in (512, 1024)]
    one, both = (Run(HEADER, tuple(mine[:count])) for count in (1, 2))
    first, whole = (rows.pool("", run, run.cases, known) for run in (one, both))
    assert None not in (first.low, first.high, whole.low, whole.high)
    assert whole.high - whole.low < first.high - first.low  # type: ignore[operator]


def test_without_fp16_the_report_says_that_the_drop_is_not_known(run: Run) -> None:
    alone = Run(run.header, tuple(one for one in run.cases if one.method != "fp16"), run.verdicts, {})
    text = "\n".join(terminal.lines(alone))
    assert "no fp16 record" in text


def test_fp16_against_its_record_is_called_exact(run: Run) -> None:
    alone = Run(run.header, tuple(one for one in run.cases if one.method == "fp16"))
    stored = {key: replace(one) for key, one in rows.references(run).items()}
    assert "repeats its record exactly" in "\n".join(terminal.lines(alone, stored))


def test_fp16_without_a_record_is_not_said_to_repeat_one(run: Run) -> None:
    alone = Run(run.header, tuple(one for one in run.cases if one.method == "fp16"))
    assert "its record" not in "\n".join(terminal.lines(alone))


def test_an_interval_stays_within_what_fp16_leaves_to_lose() -> None:
    before, mine = record("kv", "single", "kv", "fp16", 4), record("kv", "single", "kv", METHOD, 4)
    _, _, low, high = rows.drops([mine], {before.case.key: before})
    assert -50 <= low <= 0 <= high <= 50


def test_properties_that_were_skipped_are_counted_and_listed_where_somebody_asks() -> None:
    found = (
        PropertyRecord("a", METHOD, HOLDS, 3),
        PropertyRecord("crop", METHOD, UNSERVED, 0, "the cache has no crop"),
        PropertyRecord("bits", METHOD, EXCUSED, 0, "it does not round"),
    )
    run = Run(HEADER, (), properties=found)
    brief, full = (list(terminal.lines(run, verbose=verbose)) for verbose in (False, True))
    counted = f"conformance of {METHOD}: 1 of 3 properties hold, 1 do not apply, 1 skipped"
    assert " ".join(brief).count("crop") == 0
    assert f"{counted} (-v: which, and why)" in " ".join(" ".join(brief).split())
    assert '  skipped: "crop" (the cache has no crop)' in full


def test_markdown_tables_survive_a_bar_in_a_name() -> None:
    assert markdown.escape("a|b\nc") == "a&#124;b c"


def test_a_method_is_described_by_its_class() -> None:
    found = catalogue.describe("snapkv", "kvcheck.methods.snapkv:METHOD")
    assert found.stage == "compression"
    assert ("budget", "0.5") in found.parameters
    assert catalogue.describe("gone", "no.such.module:METHOD").summary == ""


def test_answers_that_never_ended_are_counted_by_task() -> None:
    one = record("needle", "single", "needle", METHOD, 3)
    cut = tuple(replace(s, turns=tuple(replace(turn, ended=False) for turn in s.turns)) for s in one.samples)
    whole = record("kv", "single", "string_retrieval", METHOD, 3)
    both = [replace(one, samples=cut), whole]
    (line,) = [text for text in summary.facts(Run(HEADER, tuple(both)), both, {}) if text.startswith("unfinished")]
    assert line == "unfinished   3 of 16 answers, cut by the token limit: needle 3"
    assert not [text for text in summary.facts(Run(HEADER, (whole,)), [whole], {}) if text.startswith("unfinished")]
