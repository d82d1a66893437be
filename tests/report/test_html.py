"""The page says what the terminal says, in one file that asks for nothing, and shows foreign text as text."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from building import fp16, record, run

from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.record import FAILS, CaseRecord, PropertyRecord, Run, Verdict
from kvcheck.judging.compare import compare_runs
from kvcheck.report import overview, rows, summary, verdict
from kvcheck.report.examples import Prompts, command
from kvcheck.report.html.page import Compared, page
from kvcheck.tasks.base import Sample, Turn

EVIL = '"><script>alert(1)</script><img src=http://x.invalid/a onerror=alert(2)>\u202e\x1b[31m'
"""Breaks out of an attribute, runs a script, asks for a picture, turns the text, colours a terminal."""


class Seen(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def failing(method: str = "snapkv", **more: object) -> CaseRecord:
    """Half of its contexts are lost."""
    return record([1.0] * 8 + [0.0] * 8, method, nll=0.5, **more)  # type: ignore[arg-type]


def judged(*records: CaseRecord) -> Run:
    """A run with fp16 in which every method fails its budget by 50 points."""
    found = run(fp16(nll=0.25), *records)
    drop = Verdict("budget", "fail", 50.0, 25.0, 75.0, 2.0, 16, 8, 0, None, "the whole interval lies beyond the budget")
    verdicts = {rows.key(one): (drop,) for one in records}
    return replace(found, verdicts={**verdicts, **{f"run|{one.method}": (drop,) for one in records}})


def shown(found: Run, prompts: Prompts | None = None) -> Seen:
    return Seen(page([(found, rows.references(found))], prompts=prompts))


def asked(one: CaseRecord, index: int) -> Sample:
    """What a context was, for tests: a needle among hay, and one question."""
    turn = Turn("\nWhat is the code?", ("the code is 1234",), 8, "exact", evidence=((500, 522),), depth=0.5)
    return Sample(one.case.task, index, "hay " * 125 + " the secret code: 1234" + " straw" * 100, (turn,))


def test_every_number_of_the_terminals_tables_is_on_the_page() -> None:
    found = judged(failing())
    text = shown(found).text
    known = rows.references(found)
    for table in summary.tables(found, rows.judged(found, "snapkv"), known):
        for row in table.rows:
            assert " ".join(" ".join(row).split()) in text


def test_the_page_begins_with_what_the_terminal_begins_with() -> None:
    found = judged(failing())
    text = shown(found).text
    outcome, numbers = verdict.said(found, verdict.standing(found, "snapkv"))[0]
    assert f"{outcome} snapkv {numbers}" in text
    assert (
        "50.0 [25.0, 75.0] 2 (default budget) 50.0% · 500 B not measured" not in text
    )  # latency has a line of its own
    assert "50.0 [25.0, 75.0] 2 (default budget) 50.0% · 500 B 16 no record" in text


def test_the_sentence_about_a_method_is_that_of_the_terminal() -> None:
    from kvcheck.report import statement

    found = judged(failing())
    assert statement.plain(found, "snapkv", rows.references(found)) in shown(found).text


def test_a_failed_case_unfolds_to_the_prompt_the_answers_and_a_command() -> None:
    text = shown(judged(failing()), asked).text
    for wanted in ("the secret code: 1234", "What is the code?", "the code is 1234", "answer 1.0", "answer 0.0"):
        assert wanted in text
    assert "Context 8, turn 1 of 1" in text


def test_a_prompt_that_cannot_be_had_is_said_to_be_missing() -> None:
    def nowhere(one: CaseRecord, index: int) -> Sample:
        raise KvcheckError("the model is not on this machine")

    text = shown(judged(failing()), nowhere).text
    assert "expected answer are not shown: the model is not on this machine" in text
    assert "answer 0.0" in text


def test_the_command_of_a_case_names_it_and_pastes_into_a_shell() -> None:
    found = judged(failing("snapkv:budget=0.5,note='a b'"))
    header = replace(
        found.header, settings={"profile": "quick", "against": "fp16", "budget": "drop=1", "alpha": "0.05"}
    )
    words = shlex.split(command(header, found.cases[1]))
    assert words[:5] == ["pytest", "--pyargs", "kvcheck.suites", "-m", "not conformance"]
    assert "--kv-method=snapkv:budget=0.5,note='a b'" in words
    named = {"--kv-profile=quick", "--kv-against=fp16", "--kv-budget=drop=1", "--kv-tasks=kv", "--kv-modes=single"}
    assert named | {"--kv-lengths=1024", "--kv-n=16", "--kv-seed=0", "--kv-model=mini"} <= set(words)
    assert not [word for word in words if word.startswith("--kv-alpha")], "what has its default is not repeated"


def hostile() -> Run:
    """Everything that somebody else may write says EVIL."""
    one = failing(EVIL)
    turns = [tuple(replace(turn, answer=EVIL, subtask=EVIL) for turn in sample.turns) for sample in one.samples]
    samples = tuple(replace(sample, turns=mine) for sample, mine in zip(one.samples, turns, strict=True))
    found = judged(replace(one, samples=samples, not_measured=((EVIL, EVIL),)))
    texts = {"model_name": EVIL, "git": EVIL, "kvcheck": EVIL}
    header = replace(found.header, **texts, settings={EVIL: EVIL}, machine={EVIL: EVIL}, packages={EVIL: EVIL})
    properties = (PropertyRecord(EVIL, EVIL, FAILS, 1, EVIL, EVIL),)
    failures = {f"kv/v1/single/len=9/seed=0/n=1|{EVIL}": EVIL}
    return replace(found, header=header, properties=properties, failures=failures)


def evil_prompt(one: CaseRecord, index: int) -> Sample:
    turn = Turn(EVIL, (EVIL,), 8, "exact", evidence=((0, len(EVIL)),), depth=0.5)
    return Sample(one.case.task, index, EVIL * 3, (turn,))


def test_hostile_text_never_becomes_markup() -> None:
    seen = shown(hostile(), evil_prompt)
    assert [tag for tag, _ in seen.tags].count("script") == 1, "the page's own"
    assert not {"img", "iframe", "link", "object", "embed", "form", "base"} & {tag for tag, _ in seen.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in seen.text
    assert "\u202e" not in seen.text
    assert "\x1b" not in seen.text


def test_nothing_on_the_page_is_asked_for_elsewhere() -> None:
    seen = shown(judged(failing()), asked)
    for _, attributes in seen.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import", seen.text)
    policy = next(found["content"] for tag, found in seen.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'; style-src 'sha256-")


def test_a_page_of_thirty_methods_is_smaller_than_a_megabyte() -> None:
    tasks = ("kv", "needle", "summary", "choice", "vt", "code", "sort", "qa")
    every = [failing(f"method_number:{at}", task=task) for at in range(30) for task in tasks]
    drop = (Verdict("budget", "fail", 50.0, 25.0, 75.0, 2.0, 16, 8, 0, None, "beyond the budget"),)
    references = [fp16(task=task, nll=0.2) for task in tasks]
    found = replace(run(*references, *every), verdicts={rows.key(one): drop for one in every})
    text = page([(found, rows.references(found))], prompts=asked)
    assert len(text.encode()) < 1e6
    assert text.count('<details class="case">') >= 150


def test_plots_have_a_mark_for_every_method_and_a_table_behind_them() -> None:
    found = judged(failing(), failing("h2o"), failing("tova"))
    seen = shown(found)
    marks = [one for tag, one in seen.tags if tag == "circle"]
    assert len(marks) >= 4, "three methods and fp16"
    plots = [one for tag, one in seen.tags if tag == "svg"]
    assert plots
    assert all(one.get("role") == "img" and one.get("aria-labelledby") for one in plots)
    assert seen.text.count("The numbers") == len(plots)


def test_two_runs_are_shown_with_their_differences_first() -> None:
    before, after = run(fp16(), record([1.0] * 16)), run(fp16(), failing())
    known = rows.references(after)
    compared = Compared(before, after, compare_runs(before, after))
    text = Seen(page([(before, known), (after, known)], compared)).text
    assert "is snapkv worse than before?" in text
    assert text.index("Differences between the two runs") < text.index("gives up (points)")
    assert "1.000 -> 0.500" in text


def test_runs_of_two_models_are_refused() -> None:
    other = run(fp16())
    other = replace(other, header=replace(other.header, model="beef"))
    with pytest.raises(SpecError, match="different models"):
        page([(run(fp16()), {}), (other, {})])


@pytest.mark.parametrize(("by", "first"), [("drop", "good"), ("method", "bad"), ("bytes", "small")])
def test_methods_are_sorted_by_what_is_asked_for(by: str, first: str) -> None:
    from building import memory

    small = record([0.0] * 16, "small", held=memory(100))
    found = run(fp16(), record([1.0] * 16, "good"), failing("bad"), small)
    lines = [one for one in overview.of(found, rows.references(found)) if one.method != "fp16"]
    assert overview.ordered(lines, by)[0].method == first


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SpecError, match="--sort=byts"):
        overview.ordered([], "byts")
