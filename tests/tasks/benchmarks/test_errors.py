"""What can go wrong with a data set is said clearly, with what to type."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from benchmark_help import rows

from kvcheck.core.errors import SpecError
from kvcheck.core.paths import bundle
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks
from kvcheck.tasks.benchmarks.base import Source
from kvcheck.tasks.benchmarks.rows import explain, local_files, resolve

LONG = 10**6
ROWS = bundle("fixtures") / "data" / "benchmarks"


def edit(folder, file, change):
    """Apply `change` to the first row of a file."""
    path = folder / file
    first, *rest = path.read_text("utf-8").splitlines()
    row = json.loads(first)
    change(row)
    path.write_text("\n".join([json.dumps(row), *rest]) + "\n", "utf-8")


def refused(folder, name, tokenizer, match):
    with pytest.raises(SpecError, match=match) as caught:
        benchmark_tasks(str(folder)).get(name).generate(0, 0, LONG, tokenizer)
    assert caught.value.hint
    return caught.value


def test_an_unknown_data_set_is_refused_with_the_nearest_known_one():
    with pytest.raises(SpecError, match=r"did you mean longbench/qasper"):
        benchmark_tasks("hub").get("longbench/qaspr")
    with pytest.raises(SpecError, match=r"did you mean .*scbench/kv"):
        rows(Source(), "scbench/kw")


def test_a_folder_without_the_file_says_which_file_is_looked_for(tmp_path, tokenizer):
    error = refused(tmp_path, "scbench/kv", tokenizer, "scbench/scbench_kv.jsonl")
    assert "--kv-data hub" in error.hint
    assert "longbench/data.zip" in local_files(DATA_SETS["longbench/qasper"])


def test_a_missing_column_is_named(folder, tokenizer):
    path = folder / "longbench" / "qasper.jsonl"
    path.write_text(path.read_text("utf-8").replace('"answers"', '"outputs"'), "utf-8")
    refused(folder, "longbench/qasper", tokenizer, "no column 'answers'; it has .*outputs")


def test_a_column_of_another_type_is_named(folder, tokenizer):
    for line in range(2):
        path = folder / "longbench" / "qasper.jsonl"
        found = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
        found[line]["answers"] = "text"
        path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    refused(folder, "longbench/qasper", tokenizer, "column 'answers' of row 0 is str, not list")


def test_a_changed_column_of_a_typed_file_is_reported(folder, tokenizer):
    path = folder / "infinitebench" / "passkey.jsonl"
    path.write_text(path.read_text("utf-8").replace('"answer"', '"gold"'), "utf-8")
    error = refused(folder, "infinitebench/passkey", tokenizer, "expected columns")
    assert "answer" in error.hint


def test_a_damaged_file_is_reported(folder, tokenizer):
    (folder / "longbench" / "lcc.jsonl").write_text('{"input": "x"\n{"inp', "utf-8")
    refused(folder, "longbench/lcc", tokenizer, "damaged")


@pytest.mark.parametrize(
    ("file", "name", "change"),
    [
        ("longbench/qasper.jsonl", "longbench/qasper", lambda row: row.update(answers=[])),
        ("longbench/qasper.jsonl", "longbench/qasper", lambda row: row.update(answers=[" "])),
        ("longbench/qasper.jsonl", "longbench/qasper", lambda row: row.update(answers=None)),
        ("scbench/scbench_kv.jsonl", "scbench/kv", lambda row: row["multi_turns"][2].update(answer="")),
        ("scbench/scbench_kv.jsonl", "scbench/kv", lambda row: row["multi_turns"][2].pop("answer")),
        ("scbench/scbench_vt.jsonl", "scbench/vt", lambda row: row["multi_turns"][0].update(answer=[])),
        ("infinitebench/passkey.jsonl", "infinitebench/passkey", lambda row: row.update(answer=[])),
        ("scbench/scbench_kv.jsonl", "scbench/kv", lambda row: row.update(multi_turns=[])),
    ],
)
def test_a_row_without_an_answer_is_refused(file, name, change, folder, tokenizer):
    edit(folder, file, change)
    refused(folder, name, tokenizer, "has no answer")


@pytest.mark.parametrize(
    ("file", "name", "change", "message"),
    [
        ("scbench_choice_eng", "choice_eng", lambda turn: turn.update(answer="Nobody"), "none of the options"),
        ("scbench_kv", "kv", lambda turn: turn.pop("input"), "no column 'input'"),
        ("scbench_mf", "mf", lambda turn: turn.update(input="Which one?"), "without"),
        ("scbench_repoqa_and_kv", "repoqa_and_kv", lambda turn: turn.update(task="scbench_x"), "known: repoqa, kv"),
    ],
)
def test_a_turn_of_another_form_is_refused(file, name, change, message, folder, tokenizer):
    edit(folder, f"scbench/{file}.jsonl", lambda row: change(row["multi_turns"][0]))
    refused(folder, f"scbench/{name}", tokenizer, message)


def test_a_bad_row_is_refused_again_when_it_is_asked_for_again(folder, tokenizer):
    edit(folder, "longbench/qasper.jsonl", lambda row: row.update(answers=[]))
    task = benchmark_tasks(str(folder)).get("longbench/qasper")
    for _ in range(2):
        with pytest.raises(SpecError, match="has no answer"):
            task.generate(0, 0, LONG, tokenizer)


def test_more_samples_than_rows_are_refused(fixed, tokenizer):
    for seed in (0, 5):
        with pytest.raises(SpecError, match="has 2 rows, sample 2 was asked for"):
            fixed.get("longbench/qasper").generate(seed, 2, LONG, tokenizer)


def from_hub(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(SpecError) as caught:
        list(rows(Source(), "scbench/kv"))
    return caught.value


def bare(kind, text):
    """An error of huggingface_hub without the response that it is usually made of."""
    return kind.__new__(kind, text)


def test_a_missing_network_is_said(monkeypatch):
    error = from_hub(monkeypatch, ConnectionError("Cannot reach https://huggingface.co: offline mode is enabled"))
    assert "cannot be reached" in error.message
    assert "HF_HUB_OFFLINE" in error.hint
    assert "--kv-data PATH" in error.hint


def test_a_gated_data_set_is_said(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    error = from_hub(monkeypatch, bare(GatedRepoError, "401"))
    assert "is gated" in error.message
    assert "https://huggingface.co/datasets/microsoft/SCBench" in error.hint
    assert "hf auth login" in error.hint


def test_a_renamed_data_set_is_said(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    for error in (
        DatasetNotFoundError("Dataset 'microsoft/SCBench' doesn't exist on the Hub or cannot be accessed."),
        bare(RepositoryNotFoundError, "404"),
        bare(RepositoryNotFoundError, "If you are trying to access a private or gated repo, make sure to log in"),
        bare(RevisionNotFoundError, "404"),
    ):
        found = from_hub(monkeypatch, error)
        assert "was not found at revision f43226e" in found.message
        assert "renamed" in found.hint


def test_an_error_is_explained_by_its_cause():
    inner = TimeoutError("timed out")
    outer = RuntimeError("failed to read")
    outer.__cause__ = inner
    assert "cannot be reached" in explain(outer, DATA_SETS["scbench/kv"], Source()).message
    assert (
        "cannot be read (RuntimeError: odd)" in explain(RuntimeError("odd"), DATA_SETS["scbench/kv"], Source()).message
    )


def fetch(monkeypatch, tmp_path):
    """Let the Hub give empty files; what it is asked for, and what is read of them: {path: builder}."""
    asked, seen = [], {}

    def snapshot(repository, repo_type, revision, allow_patterns):
        asked.append((repository, repo_type, revision, *allow_patterns))
        path = tmp_path / repository / revision / allow_patterns[0].replace("*", "0")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(tmp_path / repository / revision)

    def load(builder, **given):
        assert given["streaming"]
        seen[given["data_files"].replace(f"{tmp_path}/", "")] = builder
        return []

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("datasets.load_dataset", load)
    return asked, seen


def test_the_hub_is_asked_at_the_pinned_revision(monkeypatch, tmp_path):
    asked, seen = fetch(monkeypatch, tmp_path)
    scbench, longbench = DATA_SETS["scbench/kv"].revision, DATA_SETS["longbench/qasper"].revision
    for name in ("scbench/kv", "longbench/qasper"):
        assert list(rows(Source(), name)) == []
    assert asked == [
        ("microsoft/SCBench", "dataset", scbench, "scbench_kv/*.parquet"),
        ("THUDM/LongBench", "dataset", longbench, "data.zip"),
    ]
    assert seen == {
        f"microsoft/SCBench/{scbench}/scbench_kv/*.parquet": "parquet",
        f"zip://data/qasper.jsonl::THUDM/LongBench/{longbench}/data.zip": "json",
    }


def test_a_data_set_without_a_pinned_revision_is_read_and_recorded_at_the_one_that_was_resolved(monkeypatch, tmp_path):
    found = iter(["a" * 40, "b" * 40])
    asked, _ = fetch(monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda api, hub: SimpleNamespace(sha=next(found)))
    resolve.cache_clear()
    assert list(rows(Source(), "ruler_4096/vt")) == []
    assert list(rows(Source(), "niah/sentence")) == []
    assert asked == [
        ("simonjegou/ruler", "dataset", "a" * 40, "4096/*.parquet"),
        ("alessiodevoto/paul_graham_essays", "dataset", "b" * 40, "data/test-*.parquet"),
    ]
    assert benchmark_tasks("hub").get("ruler_4096/vt").facts["revision"] == "a" * 40
    resolve.cache_clear()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """huggingface_hub without a network, and its cache: the folder of SCBench at the pinned revision."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "datasets--microsoft--SCBench" / "snapshots" / DATA_SETS["scbench/kv"].revision


def test_rows_that_the_hub_gave_once_are_read_again_without_a_network(cache, fixed):
    pytest.importorskip("huggingface_hub", "2.0", reason="older ones want a list of files beside a cache made by hand")
    import pyarrow.json
    import pyarrow.parquet

    (cache / "scbench_kv").mkdir(parents=True)
    table = pyarrow.json.read_json(ROWS / "scbench" / "scbench_kv.jsonl")
    pyarrow.parquet.write_table(table, cache / "scbench_kv" / "test-00000-of-00001.parquet")
    here = [row["multi_turns"] for row in rows(Source(), "scbench/kv")]
    assert here == [row["multi_turns"] for row in rows(fixed.source, "scbench/kv")]


def test_a_data_set_without_a_pinned_revision_is_that_of_the_last_fetch_without_a_network(cache):
    import os

    hub = cache.parents[2] / "datasets--alessiodevoto--paul_graham_essays"
    for place, sha in enumerate(("a" * 40, "b" * 40, "c" * 40)):
        folder = hub / "snapshots" / sha
        folder.mkdir(parents=True)
        if place < 2:
            (hub / "blobs").mkdir(exist_ok=True)
            (hub / "blobs" / sha).touch()
            os.utime(hub / "blobs" / sha, (place, place))
            (folder / "x").symlink_to(hub / "blobs" / sha)
    resolve.cache_clear()
    assert benchmark_tasks("hub").get("niah/sentence").facts["revision"] == "b" * 40
    with pytest.raises(SpecError, match="cannot be reached"):
        assert benchmark_tasks("hub").get("ruler_4096/vt").facts
    resolve.cache_clear()


@pytest.mark.parametrize("other", [False, True])
def test_rows_that_are_not_in_the_cache_need_a_network(other, cache):
    if other:  # another file of the data set is there
        (cache / "scbench_mf").mkdir(parents=True)
    with pytest.raises(SpecError, match="cannot be reached") as error:
        list(rows(Source(), "scbench/kv"))
    assert "HF_HUB_OFFLINE" in error.value.hint


def test_a_file_that_the_data_set_no_longer_has_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **given: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda api, hub, revision: SimpleNamespace(sha=revision))
    with pytest.raises(SpecError, match=r"was not found at revision .*holds no scbench_kv/\*.parquet"):
        list(rows(Source(), "scbench/kv"))
