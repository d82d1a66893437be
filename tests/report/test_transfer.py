"""Whether a verdict on one model holds on another, from the records of both."""

from __future__ import annotations

import pytest

from kvcheck.core.errors import MissingBaseline
from kvcheck.report import transfer
from kvcheck.report.recorded import Recorded

MODELS = ("mini", "smollm2")
EVICTS = ("snapkv", "h2o", "tova", "streaming_llm")
ROUNDS = ("fp8", "kivi", "flexgen", "think")


def record(spec: str, accuracy: float, kl: float | None) -> Recorded:
    return Recorded(spec, {"needle": accuracy}, (), kl, 0.5, 0.5)


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


def test_ranks_are_told_apart_by_what_methods_do(known: dict[str, dict[str, Recorded]]) -> None:
    rows = {words: rest for words, *rest in transfer.correlations(transfer.methods(MODELS))}
    assert rows["those that leave tokens out"] == [4, pytest.approx(1.0), pytest.approx(1.0)]
    assert rows["those that round or prune channels"] == [4, pytest.approx(-1.0), pytest.approx(-1.0)]
    assert 0 < rows["all methods"][2] < 1


def test_of_too_few_methods_no_rank_is_said(known: dict[str, dict[str, Recorded]]) -> None:
    for spec in EVICTS[1:]:
        del known["smollm2"][spec]
    text = "\n".join(transfer.text(MODELS, transfer.methods(MODELS)))
    assert "those that leave tokens out               1         too few  too few" in text


def test_the_page_names_both_models_and_every_method(known: dict[str, dict[str, Recorded]]) -> None:
    page = "\n".join(transfer.markdown(MODELS, transfer.methods(MODELS)))
    assert all(f"`{spec}`" in page for spec in (*MODELS, *EVICTS, *ROUNDS))
    assert "Spearman" in page


def test_a_model_without_records_is_named_with_the_command(known: dict[str, dict[str, Recorded]]) -> None:
    del known["smollm2"]["fp16"]
    with pytest.raises(MissingBaseline, match="no record of fp16 on smollm2") as raised:
        transfer.methods(MODELS)
    assert "--kv-model=smollm2" in str(raised.value.hint)
