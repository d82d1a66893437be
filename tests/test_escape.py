"""What methods, answers, files and specs say reaches logs and summaries as text, never as a command or as markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvcheck.cli import commands
from kvcheck.core.escape import code, json_text, markdown, plain
from kvcheck.core.record import (
    HOLDS,
    CaseId,
    CaseRecord,
    PropertyRecord,
    Run,
    RunHeader,
    SampleRecord,
    TurnRecord,
    Verdict,
)
from kvcheck.report import conformance, findings, terminal
from kvcheck.report import explain as messages
from kvcheck.report import markdown as summary
from kvcheck.store.run_file import dumps, read_run, write_run

EVIL = (
    "\x1b[2Jgone\x07\x08\r\x9b31m\u202eback\u2066\u2028::error::split\n::error file=a::planted\n ::set-output name=x::1"
    "\n##[group]hidden <script>alert(1)</script> |a|b| `tick` [link](https://evil.example) ![image](//evil.example/x) "
    "@team *bold* \ud800"
)
ORDINARY = [
    "漢字，「引号」",
    "Füße ñandú",
    "a::b std::vector<int> x;\n\tif (a[0] < b) {\n",
    "👩‍💻 שלום",
    "# 1. - C:\\x",
    "a\u3000b",
]
COMMAND = re.compile(r"^\s*::|##\[", re.MULTILINE)
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> bool:
    """Nothing that a terminal or a runner obeys."""
    return COMMAND.search(text) is None and UNSEEN.search(text) is None


def unmarked(text: str) -> bool:
    """Nothing that Markdown or HTML takes for markup, outside code spans."""
    bare = re.sub(r"`[^`\n]*`", "", text)
    return harmless(text) and re.search(r"<script|\]\(|https://|\*bold|@team|`tick`", bare) is None


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("text", ["kivi:bits=4", "streaming_llm", "漢字", "0.5 [1, 2)"])
def test_ordinary_names_stay_readable_in_markdown(text: str) -> None:
    assert code(text) == f"`{text}`"


def test_what_is_made_harmless_for_a_log_is_harmless_and_shows_what_was_there() -> None:
    assert harmless(plain(EVIL))
    assert r"\x1b[2Jgone\x07\x08\r\x9b31m\u202eback" in plain(EVIL)
    assert plain(plain(EVIL)) == plain(EVIL)


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000", "\xa0 "])
def test_a_command_behind_blanks_is_none(blank: str) -> None:
    assert plain(f"a\n{blank}::error::b") == f"a\n{blank}\\x3a:error::b"


@pytest.mark.parametrize("write", [markdown, code])
def test_what_is_made_harmless_for_markdown_is_one_line_without_markup(write: object) -> None:
    text = write(EVIL)  # type: ignore[operator]
    assert unmarked(text)
    assert "\n" not in text
    assert "|" not in text


def test_json_keeps_every_character_and_can_be_encoded() -> None:
    text = json_text(json.dumps([EVIL, *ORDINARY], ensure_ascii=False))
    assert UNSEEN.search(text) is None
    assert json.loads(text.encode("utf-8")) == [EVIL, *ORDINARY]


def hostile_run() -> Run:
    """A run in which everything that a method, a model or a file can say is hostile, and is still read."""
    case, other = CaseId("kv", 1, "single", 512, 0, 1), CaseId("kv", 1, "multi_turn", 512, 0, 1)
    sample = SampleRecord(0, "d" * 12, (TurnRecord(0.0, EVIL),))
    record = CaseRecord(
        case, EVIL, "f00d", "string_retrieval", True, True, 0.0, (sample,), None, (), EVIL, ((EVIL, EVIL),)
    )
    verdict = Verdict("budget", "fail", 30.0, 20.0, 40.0, 2.0, 1, reason=EVIL)
    texts = {EVIL: EVIL}
    header = RunHeader(
        kvcheck=EVIL, git=EVIL, dirty=True, packages=texts, machine=texts, model=EVIL, model_name=EVIL, settings=texts
    )
    found = PropertyRecord(EVIL, EVIL, HOLDS, 1, EVIL)
    failures = {f"{case}|{EVIL}": EVIL, f"{other}|{EVIL}": EVIL, f"{EVIL}|other": EVIL}
    return Run(header, (record,), {f"{case}|{EVIL}": (verdict,)}, failures, (found,))


def test_the_summary_of_a_hostile_run_is_harmless() -> None:
    text = "\n".join(terminal.lines(hostile_run()))
    assert harmless(text)
    assert "planted" in text


def test_the_markdown_of_a_hostile_run_has_no_markup_but_its_own() -> None:
    text = "\n".join(summary.lines(hostile_run()))
    assert unmarked(text)
    assert "planted" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {6, 8, 9}


def test_a_run_file_keeps_what_was_said(tmp_path: Path) -> None:
    path, run = tmp_path / "run.json", hostile_run()
    write_run(path, run)
    assert UNSEEN.search(path.read_text("utf-8")) is None
    assert read_run(path) == run


@pytest.mark.parametrize("options", [[], ["--md"]], ids=["terminal", "Markdown"])
def test_a_hostile_run_file_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    write_run(tmp_path / "run.json", hostile_run())
    assert commands.main(["report", str(tmp_path / "run.json"), *options]) == 0
    shown = capsys.readouterr().out
    assert (unmarked if options else harmless)(shown)
    assert "planted" in shown


def test_hostile_run_files_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run.json", hostile_run())
    commands.main(["compare", str(tmp_path / "run.json"), str(tmp_path / "run.json")])
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert "gone" in shown


def test_an_error_of_a_command_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["report", "/none\n::error::planted\x1b[2J"]) == commands.ERROR
    said = capsys.readouterr().err
    assert harmless(said)
    assert "planted" in said


def test_a_hostile_prompt_is_shown_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kvcheck.runner.prompts.conversation", lambda sample, asking: [("context", EVIL)])
    assert commands.main(["prompt", "kv"]) == 0
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert "planted" in shown


def test_properties_for_junit_are_harmless() -> None:
    run = hostile_run()
    found = dict(messages.properties(run.cases[0], None, ()))
    assert harmless("\n".join(found.values()))
    assert "planted" in found["method"]


def test_the_markdown_of_properties_findings_and_speed_has_no_markup_but_its_own() -> None:
    from kvcheck.report import speed

    one = findings.Finding(EVIL, EVIL, 1.0, 0.0, 2.0, 3, EVIL, EVIL)
    run = hostile_run()
    for lines in (findings.markdown([one]), conformance.markdown(run.properties), speed.markdown(run)):
        text = "\n".join(lines)
        assert unmarked(text)
        assert "planted" in text


def test_what_rides_on_reports_can_be_encoded() -> None:
    assert dumps(hostile_run().properties[0]).encode("utf-8")
