"""Every public data set, from local rows of its schema to a record: prompt, model, official metric, store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import save_talker
from tiny import runner_of

from kvcheck.backends.transformers import Session
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.judging.pairing import pair
from kvcheck.models import LoadedModel, load
from kvcheck.runner.case import Runner
from kvcheck.store.baselines import FileStore, ModelId
from kvcheck.tasks import PUBLIC, find, members

ROWS = str(bundle("fixtures") / "data" / "benchmarks")
NAMES = [name for family in PUBLIC for name in members(family)]


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny Llama with the embedded model's tokenizer, room for the longest answers, and answers of a few tokens."""
    path = save_talker(tmp_path_factory.mktemp("models") / "talker")
    return load(str(path), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def session(talker: LoadedModel) -> Session:
    """A session that reads the local rows."""
    return Session.of(talker, Settings(data=ROWS, methods=("fp16",)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_asked_graded_and_recorded_in_every_mode(name: str, runner: Runner, tmp_path: Path) -> None:
    info = find(name, ROWS).info
    store, model = FileStore(tmp_path), ModelId("talker", runner.fingerprint)
    for mode in info.modes:
        case = CaseId(name, info.version, mode, 2000, 0, 2)
        record = runner.run_case(case, "fp16")
        assert len(record.samples) == 2
        scores = [turn.score for sample in record.samples for turn in sample.turns]
        assert not any(scores) if name == "niah/no_needle" else all(0 <= score <= 1 for score in scores)
        assert {"data", "revision", "template_sha256", "metric", "chat", "stop"} <= set(dict(record.switches))
        store.record(model, "fp16", [record], "new", {"kvcheck": "0", "packages": {}})
        stored = store.get(model, "fp16", case)
        assert stored is not None
        assert len(pair(record, stored, "fp16")) == 2


@pytest.mark.parametrize("name", members("passkey"))
def test_the_generated_grid_is_asked_graded_and_recorded_in_every_mode(
    name: str, talker: LoadedModel, tmp_path: Path
) -> None:
    info = find(name).info
    runner, store = runner_of(talker, methods=("fp16",)), FileStore(tmp_path)
    model = ModelId("talker", runner.fingerprint)
    for mode in info.modes:
        case = CaseId(name, info.version, mode, info.lengths[0], 0, 2)
        record = runner.run_case(case, "fp16")
        scores = [turn.score for sample in record.samples for turn in sample.turns]
        assert len(scores) == 2
        assert not any(scores) if name.endswith("no_needle") else all(0 <= score <= 1 for score in scores)
        store.record(model, "fp16", [record], "new", {"kvcheck": "0", "packages": {}})
        stored = store.get(model, "fp16", case)
        assert stored is not None
        assert len(pair(record, stored, "fp16")) == 2


@pytest.mark.parametrize(
    "name", ["longbench/trec", "scbench/many_shot", "scbench/mf", "infinitebench/longdialogue_qa_eng"]
)
def test_a_record_with_the_slips_of_the_benchmark_is_another_one(
    name: str, talker: LoadedModel, runner: Runner
) -> None:
    from kvcheck.core.errors import NotComparable

    case = CaseId(name, 1, find(name, ROWS).info.modes[0], 2000, 0, 1)
    fixed = runner.run_case(case, "fp16")
    compat = runner_of(talker, data=ROWS, compat=True).run_case(case, "fp16")
    with pytest.raises(NotComparable, match=r"form is|metric is|bos is"):
        pair(fixed, compat, "fp16")


def test_a_method_is_judged_on_the_rows_like_on_any_task(runner: Runner) -> None:
    case = CaseId("longbench/qasper", 1, "single", 300, 0, 2)
    full, own = (runner.run_case(case, spec) for spec in ("fp16", "snapkv"))
    assert own.memory is not None
    assert own.memory.ratio < 0.7
    assert len(pair(own, full, "fp16")) == 2


def test_the_context_that_is_read_alone_is_cut_by_itself(session: Session, runner: Runner) -> None:
    lengths = {}
    for mode in ("multi_turn", "multi_request"):
        runner.run_case(CaseId("scbench/kv", 1, mode, 300, 0, 1), "fp16")
    for key, sample in runner.samples.items():
        if isinstance(key, tuple) and key[0] == "scbench/kv" and key[3] == 300:
            lengths[key[-1]] = len(session.loaded.tokenizer.encode(sample.context))
    assert lengths["multi_turn"] < lengths["multi_request"] <= 300


def test_no_place_to_read_from_is_said_with_the_option(talker: LoadedModel) -> None:
    from kvcheck.core.errors import SpecError

    with pytest.raises(SpecError, match="no place is given") as error:
        runner_of(talker).run_case(CaseId("longbench/qasper", 1, "single", 300, 0, 1), "fp16")
    assert "--kv-data=hub" in str(error.value)
