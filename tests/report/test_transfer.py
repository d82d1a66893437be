"""Whether a verdict on one model holds on another, from the records of both."""

from __future__ import annotations

import re

import pytest

from kvcheck.core.errors import MissingBaseline
from kvcheck.report import transfer
from kvcheck.report.recorded import Recorded

MODELS = ("mini", "smollm2")
EVICTS = ("snapkv", "h2o", "tova", "streaming_llm")
ROUNDS = ("fp8", "kivi", "flexgen", "think")


def record(spec: str, accuracy: float, kl: float | None) -> Recorded:
    """One task that every model has, of KL as given, and two others."""
    tasks = {} if kl is None else {"kv": kl, "needle": 2 * kl, f"own {accuracy}": 9.0}
    return Recorded(spec, {"needle": accuracy}, (), kl, 0.5, 0.5, tasks)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Recorded]]:
    """Evicting costs the more the later in EVICTS on both models; rounding in the opposite order on the second."""
    found: dict[str, dict[str, Recorded]] = {model: {"fp16": record("fp16", 1.0, 0.0)} for model in MODELS}
    for at, spec in enumerate(EVICTS):
        for model in MODELS:
            found[model][spec] = record(spec, 0.5 - 0.1 * at, 1.0 + at)
    for at, spec in enumerate(ROUNDS):
        found["mini"][spec] = record(spec, 1.0 - 0.01 * at, 0.01 * (1 + at))
        found["smollm2"][spec] = record(spec, 0.9 + 0.01 * at, 0.1 - 0.01 * at)
    found["mini"]["quest"] = record("quest", 0.9, 0.2)
    monkeypatch.setattr(transfer, "recorded", found.__getitem__)
    return found


def test_only_what_both_models_have_is_compared(known: dict[str, dict[str, Recorded]]) -> None:
    found = {one.spec: one for one in transfer.methods(MODELS)}
    assert set(found) == {*EVICTS, *ROUNDS}
    assert found["h2o"].lost == pytest.approx((60.0, 60.0))
    assert found["h2o"].kl == (2.0, 2.0)
    assert found["h2o"].middle == (4.0, 4.0)
    assert found["kivi"].same == pytest.approx((1.5 * 0.02, 1.5 * 0.09))
    assert transfer.shared(MODELS) == ["kv", "needle", "own 1.0"]


def by_kind() -> dict[str, transfer.Alike]:
    return {one.kind: one for one in transfer.correlations(transfer.methods(MODELS))}


def test_ranks_are_told_apart_by_what_methods_do(known: dict[str, dict[str, Recorded]]) -> None:
    found = by_kind()
    evicts, rounds = found["those that leave tokens out"], found["those that round or prune channels"]
    assert (evicts.count, evicts.lost, evicts.kl) == (4, pytest.approx(1.0), pytest.approx(1.0))
    assert (rounds.count, rounds.lost, rounds.kl) == (4, pytest.approx(-1.0), pytest.approx(-1.0))
    assert (evicts.middle, rounds.same) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert 0 < (found["all methods"].lost or 0) < 1


def test_how_much_more_a_loss_is_on_the_other_model_is_said(known: dict[str, dict[str, Recorded]]) -> None:
    found = by_kind()
    assert found["those that leave tokens out"].grows == (1.0, 1.0, 1.0)
    assert found["those that round or prune channels"].grows == pytest.approx((1.75, 3.5, 10.0), rel=0.1)


def test_the_page_names_the_method_that_changes_its_place_most(known: dict[str, dict[str, Recorded]]) -> None:
    known["smollm2"]["fp8"] = record("fp8", 0.1, 50.0)
    page = "\n".join(transfer.markdown(MODELS, transfer.methods(MODELS)))
    assert "of 8 places with 1 for the mildest: `fp8` (1 on `mini`, 8 on `smollm2`)." in page


def test_what_is_fp16_by_construction_is_left_out(known: dict[str, dict[str, Recorded]]) -> None:
    for model in MODELS:
        known[model]["offload"] = record("offload", 1.0, 0.0)
    assert "offload" not in {one.spec for one in transfer.methods(MODELS)}


def test_a_method_of_two_kinds_counts_among_all_only(known: dict[str, dict[str, Recorded]]) -> None:
    for model in MODELS:
        known[model]["snapkv+kivi:bits=4"] = record("snapkv+kivi:bits=4", 0.5, 1.0)
    assert {one.spec: one.kind for one in transfer.methods(MODELS)}["snapkv+kivi:bits=4"] == "both"
    assert [one.count for one in by_kind().values()] == [9, 4, 4]


def test_of_too_few_methods_no_rank_is_said(known: dict[str, dict[str, Recorded]]) -> None:
    for spec in EVICTS[1:]:
        del known["smollm2"][spec]
    text = "\n".join(transfer.text(MODELS, transfer.methods(MODELS)))
    assert re.search("those that leave tokens out +1 +too few +too few", text)


def test_the_page_names_both_models_and_every_method(known: dict[str, dict[str, Recorded]]) -> None:
    page = "\n".join(transfer.markdown(MODELS, transfer.methods(MODELS)))
    assert all(f"`{spec}`" in page for spec in (*MODELS, *EVICTS, *ROUNDS))
    assert "Spearman" in page


def test_a_model_without_records_is_named_with_the_command(known: dict[str, dict[str, Recorded]]) -> None:
    del known["smollm2"]["fp16"]
    with pytest.raises(MissingBaseline, match="no record of fp16 on smollm2") as raised:
        transfer.methods(MODELS)
    assert "--kv-model=smollm2" in str(raised.value.hint)
