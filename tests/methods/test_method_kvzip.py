"""KVzip against its paper and official code: scores of a repetition written as loops, and a budget that all share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from toys import model_of, tokens, weights

from kvcheck.cache import attention
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.kvzip import LEAD, PART, WHOLE
from kvcheck.models import LoadedModel

SPOKEN = {WHOLE: [7, 8, 9], PART: [10, 11], "\n": [5]}
"""What a tokenizer makes of the questions."""


def loaded(longest: int | None = 2048) -> LoadedModel:
    encoder = SimpleNamespace(encode=lambda text: list(SPOKEN[text]))
    return LoadedModel(attention.use(model_of()), encoder, "toy", "f00d", longest)


def prefilled(text: str, ids: torch.Tensor, model: LoadedModel | None = None):
    return make(text).runner(model or loaded()).prefill(ids)


def held_positions(layer, row: int, head: int) -> list[int]:
    return layer.positions[row, head][layer.valid[row, head]].tolist()


def scores_by_hand(model: LoadedModel, ids: torch.Tensor, sink: int, chunk: int) -> list[list[list[float]]]:
    """Of one prompt: per layer and kv head, the scores of the tokens behind the first, by one forward per chunk."""
    prompt, runner = ids.shape[1], make("fp16").runner(model)
    found = [[[], []] for _ in range(runner.shape.layers)]
    for start in range(sink, prompt, chunk):
        part = ids[0, start : start + chunk].tolist()
        asked = SPOKEN[WHOLE] if start == sink else [*SPOKEN[PART], *ids[0, max(0, start - LEAD) : start].tolist()]
        fed = [*asked, *SPOKEN["\n"], *part]
        cache = runner.build()
        with cache.recording() as layers:
            runner.feed(cache, torch.tensor([[*ids[0].tolist(), *fed]]))
        for layer, seen in enumerate(layers):
            at = [*range(sink), *range(start, start + len(part)), *range(prompt, prompt + len(fed))]
            paid = weights(seen.queries[:, :, prompt:], seen.keys[:, :, at], sink + len(part))[0]
            for head in range(2):
                for token in range(len(part)):
                    most = max(
                        float(paid[query, row, sink + token])
                        for query in (2 * head, 2 * head + 1)
                        for row in range(len(fed))
                    )
                    found[layer][head].append(most)
    return found


def kept_by_hand(scores: list[list[list[float]]], sink: int, budget: int) -> dict[tuple[int, int], list[int]]:
    every = [
        (-score, token, layer, head)
        for layer, heads in enumerate(scores)
        for head, row in enumerate(heads)
        for token, score in enumerate(row)
    ]
    kept = {(layer, head): list(range(sink)) for layer in range(len(scores)) for head in range(2)}
    for _, token, layer, head in sorted(every)[: len(kept) * (budget - sink)]:
        kept[layer, head].append(sink + token)
    return {where: sorted(positions) for where, positions in kept.items()}


@pytest.mark.parametrize(("sink", "chunk"), [(4, 2000), (1, 36), (3, 15), (2, 5)])
def test_every_head_keeps_what_a_repetition_looks_at_most(sink: int, chunk: int) -> None:
    model, ids = loaded(), tokens(2, 48)
    cache, _ = prefilled(f"kvzip:budget=20,sink={sink},chunk={chunk}", ids, model)
    for row in range(2):
        scores = scores_by_hand(model, ids[row : row + 1], sink, chunk)
        for (layer, head), wanted in kept_by_hand(scores, sink, 20).items():
            assert held_positions(cache.layers[layer], row, head) == wanted


def test_the_budget_is_met_over_all_heads_of_all_layers_and_not_in_each() -> None:
    method, ids = make("kvzip:budget=20"), tokens(2, 60)
    runner = method.runner(loaded())
    cache, _ = runner.prefill(ids)
    for row in range(2):
        counts = [layer.kept_keys.counts[row] for layer in cache.layers]
        assert sum(map(sum, counts)) == 3 * 2 * 20
        assert min(map(min, counts)) >= 4
        assert len({sum(each) for each in counts}) > 1
    for decoded in range(3):
        assert held(cache).kv == method.kv_bytes(runner.shape, 2, 60, decoded)
        runner.feed(cache, tokens(2, 1, seed=decoded))


def test_the_prompt_is_read_as_by_the_full_cache_and_nothing_of_the_repetition_stays() -> None:
    model, ids, later = loaded(), tokens(2, 40), tokens(2, 5, seed=3)
    full, wanted = prefilled("fp16", ids, model)
    for text in ("kvzip:budget=10", "kvzip:budget=1.0"):
        cache, logits = prefilled(text, ids, model)
        assert torch.equal(logits, wanted)
        assert [(layer.seen, layer.prompt) for layer in cache.layers] == [(40, 40)] * 3
        assert all(layer.wanted is None for layer in cache.layers)
    runner = make("fp16").runner(model)
    torch.testing.assert_close(runner.feed(cache, later, 5), runner.feed(full, later, 5))


def test_what_is_kept_is_the_prompt_bit_for_bit() -> None:
    model, ids = loaded(), tokens(1, 40)
    full, _ = prefilled("fp16", ids, model)
    cache, _ = prefilled("kvzip:budget=10", ids, model)
    for layer, true in zip(cache.layers, full.layers, strict=True):
        for head in range(2):
            at = held_positions(layer, 0, head)
            for name in ("keys", "values"):
                mine = getattr(layer, name)[0, head][layer.valid[0, head]]
                assert torch.equal(mine, getattr(true, name)[0, head, at])


def test_later_questions_play_no_part() -> None:
    """What is kept follows from the prompt alone: other rows beside it, or other prompts before it, change nothing."""
    model, ids = loaded(), tokens(3, 40)
    runner = make("kvzip:budget=12").runner(model)
    together, _ = runner.prefill(ids)
    runner.feed(together, tokens(3, 4, seed=5))
    alone, _ = runner.prefill(ids[1:2])
    for layer, one in zip(together.layers, alone.layers, strict=True):
        for head in range(2):
            assert held_positions(layer, 1, head)[:-4] == held_positions(one, 0, head)


def test_a_prompt_within_the_budget_is_kept_whole_and_read_once() -> None:
    model, fed = loaded(), []
    model.model.register_forward_pre_hook(lambda *_: fed.append(1))
    cache, _ = prefilled("kvzip:budget=40", tokens(2, 40), model)
    assert [layer.stored for layer in cache.layers] == [40] * 3
    assert len(fed) == 1
    prefilled("kvzip:budget=39,chunk=18", tokens(2, 40), model)
    assert len(fed) == 1 + 1 + 2


def test_each_chunk_is_asked_for_by_the_tokens_before_it() -> None:
    ids = tokens(2, 30)
    runner = make("kvzip:chunk=10").runner(loaded())
    assert runner.repetition(ids, slice(4, 14)).tolist() == [[7, 8, 9, 5, *row[4:14]] for row in ids.tolist()]
    later = [[10, 11, *row[6:14], 5, *row[14:24]] for row in ids.tolist()]
    assert runner.repetition(ids, slice(14, 24)).tolist() == later


def test_chunks_are_shorter_where_the_model_has_less_room_and_refused_where_it_has_none() -> None:
    asked = len(SPOKEN[PART]) + LEAD + 1
    runner = make("kvzip").runner(loaded(longest=100))
    assert runner.size(60) == 40 - asked
    assert make("kvzip").runner(loaded(longest=None)).size(60) == 2000
    assert make("kvzip:chunk=7").runner(loaded()).size(60) == 7
    with pytest.raises(MethodUnsupported, match="leave no room"):
        runner.prefill(tokens(1, 100 - asked))


def test_a_cache_by_itself_cannot_choose() -> None:
    model = loaded()
    runner = make("kvzip:budget=10").runner(model)
    runner.feed(runner.build(), tokens(1, 10))
    with pytest.raises(KvcheckError, match="read the prompt again"):
        runner.feed(runner.build(), tokens(1, 11))


@pytest.mark.parametrize("text", ["budget=0", "budget=4", "sink=0", "chunk=0", "budget=1.5"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"kvzip:{text}")
