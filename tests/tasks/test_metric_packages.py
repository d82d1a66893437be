"""Metrics that rest on a package of their own say which one, where it is missing."""

from __future__ import annotations

import sys

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics import chinese, functions, score
from kvcheck.tasks.metrics.code import cut_function


@pytest.mark.parametrize(
    ("missing", "metric", "answer"),
    [("jieba", "f1_zh_words", "张三"), ("tree_sitter_go", "repoqa_go", "```go\nfunc f() {}\n```")],
)
def test_a_package_that_a_metric_needs_is_named_with_the_command(
    missing: str, metric: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chinese._jieba.cache_clear()
    functions._parser.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SpecError, match=missing) as raised:
        score(metric, answer, ("x",))
    assert "pip install 'kvcheck[metrics]'" in str(raised.value)


def test_a_language_that_repoqa_does_not_have_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown language 'perl'"):
        cut_function("```perl\nsub f {}\n```", "perl")
