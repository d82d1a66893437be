"""Metrics that rest on a package of their own say which one, where it is missing; the gate needs no extra."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics import chinese, functions, score
from kvcheck.tasks.metrics.code import cut_function, function_bleu

EXTRA = ["jieba", "nltk", "rouge_score", *(f"tree_sitter_{name}" for name in functions.LANGUAGES if name != "python")]


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
    assert "pip install 'kvcheck[benchmarks]'" in str(raised.value)


def test_a_language_that_repoqa_does_not_have_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown language 'perl'"):
        cut_function("```perl\nsub f {}\n```", "perl")


def texts(count: int) -> list[tuple[str, ...]]:
    """Pairs of texts, some with repeated words, empty lines, marks and letters that no token holds."""
    rng, words = random.Random(0), ["a", "b", "c", "The", "cat's", "1,2", "x.", "é", "\n", "\n\n", ".", "?", "f(x):"]
    return [tuple(" ".join(rng.choices(words, k=rng.randrange(30))) for _ in "ab") for _ in range(count)]


def test_rouge_lsum_is_that_of_the_package_to_the_last_bit() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    for answer, reference in texts(300):
        assert score("rouge_lsum", answer, (reference,)) == scorer.score(reference, answer)["rougeLsum"].fmeasure


def test_bleu_is_that_of_nltk_to_the_last_bit() -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    for answer, reference in texts(1000):
        words, gold = (text.strip().split() or [""] for text in (answer, reference))
        smoothed = nltk.sentence_bleu([gold], words, smoothing_function=nltk.SmoothingFunction().method4)
        assert function_bleu(answer, reference) == smoothed


def without_extras(folder: Path, code: str) -> str:
    """What Python prints in a process that has none of the packages that grade benchmarks. Fails where it fails."""
    (folder / "bare.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRA}))\n")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", f"import bare; {code}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_gate_runs_without_the_packages_of_extras(tmp_path: Path) -> None:
    options = ["--pyargs", "kvcheck.suites", "--kv-method=fp16", "--kv-modes=multi_turn", "--kv-lengths=512"]
    options += ["--kv-tasks=summary,qa_zh,code_completion,code_function", "-q", "-p", "no:cacheprovider"]
    assert "4 passed" in without_extras(tmp_path, f"import pytest; raise SystemExit(pytest.main({options}))")


def test_a_python_function_in_a_fence_is_graded_without_the_packages_of_extras(tmp_path: Path) -> None:
    code = "def f(x): return x + 1"
    graded = f"print(score('repoqa', '```python\\n{code}\\n```', ({code!r},)))"
    assert without_extras(tmp_path, f"from kvcheck.tasks.metrics import score; {graded}").strip() == "1.0"
