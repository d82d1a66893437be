"""KL and bytes along a long answer, on the embedded model and a tiny one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvcheck.backends.transformers import Session, drift
from kvcheck.backends.transformers.along import BLOCK, METHODS, Stretch, along
from kvcheck.core.errors import SpecError
from kvcheck.methods import make
from kvcheck.report import along as report

PROMPT, ENDS = 64, (2 * BLOCK, 3 * BLOCK + 20)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 60, (1, PROMPT + ENDS[-1]), generator=torch.Generator().manual_seed(0))


def of(session: Session, spec: str, ids: torch.Tensor) -> list[Stretch]:
    return list(along(session, spec, ids, PROMPT, ENDS))


def test_the_full_cache_stays_what_it_is(session: Session, ids: torch.Tensor) -> None:
    found = of(session, "fp16", ids)
    assert [one.upto for one in found] == list(ENDS)
    assert max(one.kl for one in found) < 1e-5  # in blocks and one by one, sums are in another order
    assert [one.bytes for one in found] == [1.0, 1.0]


def test_what_evicts_while_decoding_holds_less_and_less(session: Session, ids: torch.Tensor) -> None:
    evicts, compresses = of(session, "h2o:budget=32", ids), of(session, "snapkv:budget=32,window=8", ids)
    assert evicts[1].bytes < evicts[0].bytes < compresses[0].bytes < compresses[1].bytes
    assert min(one.kl for one in evicts) > 1e-3


def test_it_equals_a_computation_by_hand(session: Session, ids: torch.Tensor) -> None:
    spec = "streaming_llm:sink=2,window=16"
    with torch.inference_mode():
        rows = []
        for text in (spec, "fp16"):
            runner = make(text).runner(session.loaded)
            cache, _ = runner.prefill(ids[:, :PROMPT])
            rows.append(
                torch.cat([runner.feed(cache, ids[:, at : at + 1])[0] for at in range(PROMPT, PROMPT + ENDS[0])])
            )
    own, full = (torch.log_softmax(one.double(), -1) for one in rows)
    kl = (full.exp() * (full - own)).sum(-1).mean().item()
    assert of(session, spec, ids)[0].kl == pytest.approx(kl, rel=1e-3)


def test_a_text_or_a_model_without_room_is_refused(session: Session, ids: torch.Tensor) -> None:
    with pytest.raises(SpecError, match="234 tokens are needed: the text has 233, the model room for 512"):
        list(along(session, "fp16", ids[:, :-1], PROMPT, ENDS))
    with pytest.raises(SpecError, match="600 tokens are needed"):
        list(along(session, "fp16", torch.ones(1, 700, dtype=torch.long), 100, (500,)))


def test_the_methods_of_the_page_act_while_decoding_but_one() -> None:
    infos = [make(spec).info for spec in METHODS]
    idle = [spec for spec, one in zip(METHODS, infos, strict=True) if one.verbatim and not one.evicts_in_decode]
    assert idle == ["snapkv"]


def test_divergences_are_those_whose_mean_is_the_drift() -> None:
    dense, own = (drift.log_probs(torch.randn(5, 9, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    mean = sum(drift.divergences(dense, own)) / 5
    assert drift.between([1, 2, 3, 4], dense, own)[0].kl == pytest.approx(mean, abs=1e-6)


def test_the_page_has_both_tables(make_session: Callable[..., Session]) -> None:
    found = {"h2o": [Stretch(250, 0.5, 0.4), Stretch(500, 0.25, 0.3)]}
    page = "\n".join(report.markdown(found, (250, 500), "one text"))
    assert "| KL in tokens | 1 to 250 | 251 to 500 |" in page
    assert "| `h2o` | 0.5000 | 0.2500 |" in page
    assert "| `h2o` | 0.40 | 0.30 |" in page
