"""One change to a full cache at a time: what the embedded model shows of it."""

from __future__ import annotations

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.core.errors import SpecError
from kvcheck.core.settings import Settings
from kvcheck.report import phenomena as report
from kvcheck.runner.case import driven
from kvcheck.zoo import phenomena
from kvcheck.zoo.phenomena import CHANGES, Changed, Seen


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(Settings())


@pytest.fixture(scope="module")
def seen(session: Session) -> dict[tuple[str, str], Seen]:
    """By change and task, over one context each."""
    engine = driven(session, Settings())
    changes = ("first", "keys_token_2", "farther_64", "middle_layer")
    return {(one.change, one.task): one for one in phenomena.measure(engine, 1, 512, changes)}


def test_a_dead_layer_is_seen_by_every_task(seen: dict[tuple[str, str], Seen]) -> None:
    assert all(seen["middle_layer", task].kl > 0.1 for task in phenomena.TASKS)


def test_a_lost_sink_is_not_seen_on_a_model_without_sinks(seen: dict[tuple[str, str], Seen], session: Session) -> None:
    assert abs(seen["first", "needle_multi"].kl) < 0.001
    looked = phenomena.anatomy(session.loaded, phenomena.prose(session, 512))
    assert len(looked.sink) == session.shape.layers
    assert max(looked.sink) < 0.05


def test_rounding_is_seen_by_prose_before_it_is_seen_by_answers(seen: dict[tuple[str, str], Seen]) -> None:
    assert seen["keys_token_2", "completion/prose"].kl > 10 * seen["keys_token_2", "needle_multi"].kl


@torch.inference_mode()
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_something_and_nothing_of_the_full_cache(change: str, session: Session) -> None:
    ids = torch.randint(3, 400, (1, 160), generator=torch.Generator().manual_seed(0))
    mine, full = (spec.runner(session.loaded).prefill(ids)[0] for spec in (Changed(change), phenomena.Probe()))
    same = [
        one.stored == other.stored and torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
        for one, other in zip(mine.layers, full.layers, strict=True)
    ]
    assert not all(same)
    one_layer = change in ("last_layer", "middle_layer", "one_head")
    assert sum(same) == (session.shape.layers - 1 if one_layer else 0)


def test_a_change_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match="change"):
        Changed("nothing")


def test_the_page_says_what_a_model_does_not_show() -> None:
    found = [Seen("first", "needle_multi", 0.0, 0.0001), Seen("silent", "needle_multi", 0.3, 0.2)]
    words = {name: CHANGES[name][0] for name in ("first", "silent")}
    looked = report.Looked("mini", phenomena.Anatomy((0.0, 0.25), (2.0, 1e6)), found)
    page = "\n".join(report.markdown([looked], words, "1 context"))
    assert "does not show (KL below 0.001 nats on every task): the first token is gone." in page
    assert "| `mini` | 2 | 0.00 to 0.25 | 1 | 2.0 to others are 0 |" in page
