"""Every data set gives samples of its local rows, and a perfect answer gets the full score."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from benchmark_help import listing, rows

from kvcheck.core.errors import SpecError
from kvcheck.core.record import CAPABILITIES, MODES
from kvcheck.tasks import TASKS
from kvcheck.tasks.benchmarks import DATA_SETS, BenchmarkTask, Source, benchmark_tasks
from kvcheck.tasks.metrics import METRICS, score

LONG = 10**6
NAMES = sorted(DATA_SETS)


def room(name):
    """A length that no row fills; of a grid, whose prompts always have their length, a small one."""
    return 700 if DATA_SETS[name].depths else LONG


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_gives_samples_whose_gold_answers_are_perfect(name, fixed, tokenizer):
    task = fixed.get(name)
    for index in (0, 1):
        sample = task.generate(0, index, room(name), tokenizer)
        assert sample.context
        assert sample.turns
        assert sample.chat is DATA_SETS[name].chat
        for turn in sample.turns:
            gold = turn.expected
            assert score(turn.metric, gold, turn.references, turn.options) == pytest.approx(1.0, abs=1e-6)
            assert not sample.context.endswith(turn.question)
            assert turn.max_new_tokens > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_declaration_names_known_things(name):
    one = DATA_SETS[name]
    assert one.capability in CAPABILITIES
    assert set(one.modes) <= set(MODES)
    for metric in (*one.metric.split("+"), *filter(None, one.metric_compat.split("+"))):
        assert metric in METRICS
    assert one.count > 0
    assert one.licence
    assert len(one.revision) in (0, 40)


def test_the_suites_have_as_many_data_sets_as_the_benchmarks():
    suites = [one.suite for one in DATA_SETS.values()]
    assert {suite: suites.count(suite) for suite in suites} == {
        "longbench": 34,
        "scbench": 12,
        "infinitebench": 12,
        "longbench_v2": 1,
        "gsm8k": 1,
        "math500": 1,
        "aime24": 1,
        "aime25": 1,
        "longgenbench": 1,
        "longmemeval": 10,
        "niah": 4,
        "ruler_4096": 13,
        "ruler_8192": 13,
        "ruler_16384": 13,
    }


def test_a_sample_carries_the_id_of_its_row(fixed, tokenizer):
    ids = {name: fixed.get(name).generate(0, 1, room(name), tokenizer).row for name in NAMES}
    assert len(ids["longbench/qasper"]) == 48
    assert ids["scbench/kv"] == ids["scbench/prefix_suffix"] == ids["scbench/vt"] == "1"  # id, place, index
    assert ids["ruler_4096/vt"] == "21"  # its place among the rows of all thirteen tasks


def test_seed_zero_takes_rows_in_file_order_and_another_seed_in_its_own(fixed, tokenizer):
    task = fixed.get("longbench/hotpotqa")
    rows_of = {seed: [task.generate(seed, i, LONG, tokenizer).row for i in (0, 1)] for seed in range(8)}
    assert rows_of[0] == [row["_id"] for row in rows(task.loader.source, "longbench/hotpotqa")]
    assert {tuple(order) for order in rows_of.values()} == {tuple(rows_of[0]), tuple(rows_of[0][::-1])}


def test_a_task_says_that_its_contexts_are_at_most_as_long_as_asked(fixed):
    task = fixed.get("scbench/kv")
    assert isinstance(task, BenchmarkTask)
    assert task.info.exact is False
    assert task.info.modes == MODES
    assert task.info.binary is True


def test_scbench_reads_every_column_type_of_its_tasks(fixed, tokenizer):
    make = {name: fixed.get(f"scbench/{name}").generate(0, 0, LONG, tokenizer) for name in ("mf", "vt", "choice_eng")}
    assert make["mf"].context.startswith("[3, 40, 77")  # a list of numbers
    assert "VAR" in make["vt"].context  # from the column `input`
    assert make["vt"].turns[0].target == str(list(make["vt"].turns[0].references))
    assert make["choice_eng"].turns[0].references[1] in "ABCD"


def test_all_turns_of_a_row_are_asked_unless_fewer_are_wanted(fixed, tokenizer):
    task = fixed.get("scbench/repoqa_and_kv")
    assert len(task.generate(0, 0, LONG, tokenizer).turns) == 8
    assert len(task.generate(0, 0, LONG, tokenizer, turns=3).turns) == 3


def test_mixed_tasks_grade_every_turn_by_its_own_metric_and_limit(fixed, tokenizer):
    turns = fixed.get("scbench/summary_with_needles").generate(0, 0, LONG, tokenizer).turns
    assert {(turn.subtask, turn.metric, turn.max_new_tokens) for turn in turns} == {
        ("summary", "rouge_lsum", 800),
        ("passkey", "first_int", 15),
    }


def test_repoqa_grades_against_all_functions_asked_about_in_the_repository(fixed, tokenizer):
    sample = fixed.get("scbench/repoqa").generate(0, 0, LONG, tokenizer)
    assert len(sample.turns[0].options) == 5
    other = sample.turns[1].references[0]
    assert score("repoqa", other, sample.turns[0].references, sample.turns[0].options) == 0.0


def test_longbench_e_names_the_class_of_length(fixed, tokenizer):
    task = fixed.get("longbench/qasper_e")
    assert [task.generate(0, i, LONG, tokenizer).turns[0].subtask for i in (0, 1)] == ["0-4k", "4-8k"]


def test_samsum_stops_at_a_line_break_and_few_shot_sets_use_no_chat_template(fixed, tokenizer):
    assert fixed.get("longbench/samsum").generate(0, 0, LONG, tokenizer).turns[0].stop == ("\n",)
    plain = {name for name in NAMES if name.startswith("longbench/") and not DATA_SETS[name].chat}
    assert {name.removesuffix("_e") for name in plain} == {
        f"longbench/{name}" for name in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
    }


def test_ruler_rows_put_the_answer_prefix_behind_the_header(fixed, tokenizer):
    turn = fixed.get("ruler_4096/qa_1").generate(0, 0, LONG, tokenizer).turns[0]
    assert turn.lead == " Answer:"
    assert turn.max_new_tokens == 32


def test_the_record_names_every_switch_that_changes_a_score(fixed):
    record = fixed.get("longbench/qasper").facts
    assert record["revision"].startswith("sha256:")
    assert record["template"] == "kvcheck/v1"
    assert {"data", "template_sha256", "form", "truncation", "bos", "metric", "stop_strings"} <= set(record)


def test_the_record_names_the_packages_that_grade_and_their_versions(fixed):
    for package in ("jieba", "tree_sitter_go"):
        pytest.importorskip(package)
    found = {name: fixed.get(name).facts["metric_library"] for name in NAMES}
    assert found["longbench/qasper"] == "none"
    assert found["longbench/multifieldqa_zh"] == f"jieba {version('jieba')}"
    assert found["longbench/lcc"] == f"rapidfuzz {version('rapidfuzz')}"
    assert found["scbench/summary"] == "none"
    assert f"tree-sitter {version('tree-sitter')}" in found["scbench/repoqa_and_kv"]
    assert f"tree-sitter-go {version('tree-sitter-go')}" in found["scbench/repoqa"]


def test_local_parquet_and_zip_files_are_read_like_json(folder, tokenizer, fixed):
    import zipfile

    import pyarrow.json
    import pyarrow.parquet

    plain = folder / "scbench" / "scbench_kv.jsonl"
    (folder / "scbench" / "scbench_kv").mkdir()
    table = pyarrow.json.read_json(plain)
    pyarrow.parquet.write_table(table, folder / "scbench" / "scbench_kv" / "test-00000-of-00001.parquet")
    plain.unlink()
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.write(folder / "longbench" / "lcc.jsonl", "data/lcc.jsonl")
    (folder / "longbench" / "lcc.jsonl").unlink()
    tasks = benchmark_tasks(str(folder))
    for name in ("scbench/kv", "longbench/lcc"):
        assert tasks.get(name).generate(0, 1, LONG, tokenizer) == fixed.get(name).generate(0, 1, LONG, tokenizer)


def test_only_names_are_needed_to_list_the_tasks_of_the_hub():
    tasks = benchmark_tasks("hub")
    assert "passkey/64_digits" in TASKS
    assert set(NAMES) <= set(DATA_SETS)
    assert tasks.get("scbench/kv").info.name == "scbench/kv"
    assert tasks.source == Source()


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="no such folder"):
        benchmark_tasks("/no/such/folder")


def test_the_documented_tables_are_those_of_the_declarations():
    page = (Path(__file__).parents[3] / "docs" / "reference" / "benchmarks.md").read_text("utf-8").splitlines()
    hidden = ("ruler_8192", "ruler_16384")
    assert set(listing(one for one in DATA_SETS.values() if one.suite not in hidden)) <= set(page)
    text = "\n".join(page)
    for one in DATA_SETS.values():
        assert one.hub in text
        assert one.revision in text
        assert one.upstream is None or one.upstream.commit[:12] in text
