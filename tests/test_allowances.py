"""The table of what built-in methods may lose: read, refused, proposed from a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import fp16, memory, record

from kvcheck.core.errors import BaselineError, MissingBaseline
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseRecord, Run, RunHeader, Verdict
from kvcheck.judging.allowances import Allowances, accept_as_reviewed, propose
from kvcheck.judging.budget import Budget, judge

TABLE = '["snapkv"]\nreason = "keeps a quarter"\nstring_retrieval = 40\nbytes = 0.3\n'
HEADER = RunHeader("0.1.0", "", False, {}, {}, "abc", "mini", {})


def load(tmp_path: Path, text: str) -> Allowances:
    path = tmp_path / "allowances.toml"
    path.write_text(text, encoding="utf-8")
    return Allowances.load(path)


def test_a_listed_method_has_its_own_budget(tmp_path: Path) -> None:
    assert load(tmp_path, TABLE).get("snapkv", "string_retrieval") == Budget(drop=40, bytes=0.3)


def test_another_setting_is_another_method(tmp_path: Path) -> None:
    assert load(tmp_path, TABLE).get("snapkv:budget=0.1", "string_retrieval") is None


def test_no_file_is_an_empty_table(tmp_path: Path) -> None:
    assert Allowances.load(tmp_path / "none.toml").table == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[snapkv]\nstring_retrieval = 4\n", "has no reason"),
        ('[snapkv]\nreason = "x"\nstring_retrievl = 4\n', "did you mean string_retrieval"),
        ('[snapkv]\nreason = "x"\nstring_retrieval = 400\n', "out of range"),
        ("[snapkv\n", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        load(tmp_path, text)


@pytest.mark.parametrize(("lost", "allowed"), [(0, 2), (1, 10), (8, 50), (16, 100)])
def test_a_proposal_is_the_largest_drop_rounded_up_to_five(tmp_path: Path, lost: int, allowed: int) -> None:
    lossy = record([0.0] * lost + [1.0] * (16 - lost), method="snapkv", memory=memory(501))
    text = "\n".join(propose(Run(HEADER, (fp16(), lossy)), {"snapkv": 'keeps "half"'}))
    assert load(tmp_path, text).get("snapkv", "string_retrieval") == Budget(drop=allowed, bytes=0.51)
    assert load(tmp_path, text).reason("snapkv") == 'keeps "half"'


@pytest.mark.parametrize(("held", "limit"), [(501, 0.51), (506, 0.52), (1000, 1.0), (1001, 1.01)])
def test_proposed_bytes_leave_room_for_contexts_of_other_lengths(tmp_path: Path, held: int, limit: float) -> None:
    lossy = record([1.0] * 16, method="snapkv", memory=memory(held))
    text = "\n".join(propose(Run(HEADER, (fp16(), lossy)), {"snapkv": "half"}))
    assert load(tmp_path, text).get("snapkv", "string_retrieval") == Budget(drop=2, bytes=limit)


def test_a_proposal_needs_fp16_on_the_same_case() -> None:
    with pytest.raises(MissingBaseline, match="no fp16 record"):
        list(propose(Run(HEADER, (record([1.0] * 16, method="snapkv"),)), {"snapkv": "x"}))


def test_a_proposal_needs_a_reason() -> None:
    with pytest.raises(BaselineError, match="does not say what it does"):
        list(propose(Run(HEADER, (fp16(), record([1.0] * 16, method="snapkv"))), {}))


class TestARepeatedRecord:
    HALF = record([0.0] * 8 + [1.0] * 8)

    def judged(self, now: CaseRecord, drop: float) -> Verdict:
        verdicts = accept_as_reviewed(judge(now, fp16(), self.HALF, Budget(drop=drop)))
        return next(one for one in verdicts if one.question == "budget")

    def test_passes_within_the_allowance(self) -> None:
        assert self.judged(self.HALF, 50).outcome == "pass"

    def test_fails_beyond_it_for_sure(self) -> None:
        assert self.judged(self.HALF, 10).outcome == "fail"

    def test_is_open_beyond_it_in_doubt(self) -> None:
        assert self.judged(self.HALF, 45).outcome == "inconclusive"

    def test_leaves_the_question_open_once_anything_changed(self) -> None:
        assert self.judged(record([0.0] * 9 + [1.0] * 7), 60).outcome == "inconclusive"


def test_the_shipped_table_can_be_read() -> None:
    assert Allowances.load(bundle("baselines") / "allowances.toml").reason("snapkv")
