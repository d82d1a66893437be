"""No context goes through the model twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers.prefill import Memo
from kvcheck.core.record import MODES, CaseId
from kvcheck.methods.snapkv import SnapKV
from kvcheck.runner.case import Runner

METHODS = ("fp16", "streaming_llm:window=12,sink=2", "snapkv:budget=16,window=4", "kivi:group=16,residual=16")


@pytest.fixture
def prompts(session: Session) -> Iterator[list[int]]:
    """Rows of every forward that is as long as a context."""
    seen: list[int] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows, tokens = (args[0] if args else kwargs["input_ids"]).shape
        if tokens >= 40:
            seen.append(rows)

    handle = session.loaded.model.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    handle.remove()


def test_a_context_is_prefilled_once_for_all_methods_and_modes(
    make_runner: Callable[..., Runner], prompts: list[int], case: Callable[..., CaseId]
) -> None:
    runner = make_runner(methods=METHODS)
    for mode in MODES:
        for method in METHODS:
            runner.run_case(case(mode, n=6), method)
    assert sum(prompts) == runner.backend.prefiller.forwards == 6


def test_queries_are_recorded_only_where_a_method_reads_them(
    make_session: Callable[..., Session], case: Callable[..., CaseId]
) -> None:
    session = make_session(methods=("fp16",))
    runner = Runner(session, session.settings)
    runner.run_case(case(n=2), "fp16")
    without = session.memo.held
    runner.run_case(case(n=2), "snapkv:budget=16,window=4")
    assert session.prefiller.forwards == 4
    assert session.memo.held > without


def test_another_length_or_seed_is_another_context(
    session: Session, runner: Runner, case: Callable[..., CaseId]
) -> None:
    runner.run_case(case(n=2), "fp16")
    runner.run_case(case(n=2, length=48), "fp16")
    runner.run_case(case(n=2, seed=1), "fp16")
    assert session.prefiller.forwards == 6


def test_a_full_memo_costs_time_and_nothing_else(
    make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    roomy, tight = make_runner(), make_runner()
    tight.backend.memo.limit = 0
    for mode in MODES:
        wanted = roomy.run_case(case(mode), "fp16"), roomy.run_case(case(mode), METHODS[2])
        assert wanted == (tight.run_case(case(mode), "fp16"), tight.run_case(case(mode), METHODS[2]))
    assert (roomy.backend.prefiller.forwards, tight.backend.prefiller.forwards) == (6 + 6, 6 * 6)


def test_a_method_that_writes_into_what_it_absorbs_harms_nobody_else(
    runner: Runner, case: Callable[..., CaseId], methods: dict[str, Any]
) -> None:
    class Vandal(SnapKV):
        info = replace(SnapKV.info, verbatim=False)

        def layer(self, shape: Any, index: int) -> Any:
            layer = super().layer(shape, index)
            compress = layer.compress

            def wreck(queries: torch.Tensor) -> None:
                compress(queries)
                layer.keys.mul_(0.5), layer.values.mul_(0.5), queries.mul_(0)

            layer.compress = wreck
            return layer

    methods["vandal"] = Vandal
    before = [runner.run_case(case(mode), "snapkv:budget=16,window=4") for mode in MODES]
    for mode in MODES:
        runner.run_case(case(mode), "vandal")
    assert [runner.run_case(case(mode), "snapkv:budget=16,window=4") for mode in MODES] == before


def test_the_memo_forgets_what_was_used_longest_ago() -> None:
    memo = Memo(10)
    memo.put("a", 1, 4), memo.put("b", 2, 4)
    assert memo.get("a") == 1
    memo.put("c", 3, 4)
    assert (memo.get("a"), memo.get("b"), memo.get("c"), memo.held) == (1, None, 3, 8)
    memo.put("d", 4, 11)
    assert (memo.get("d"), memo.held) == (None, 8)
    memo.put("a", 5, 6)
    assert (memo.get("a"), memo.held) == (5, 10)
