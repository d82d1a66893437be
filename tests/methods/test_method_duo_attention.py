"""DuoAttention: what each kind of head sees and holds, and which heads the search takes."""

from __future__ import annotations

import json

import pytest
import torch
from toys import SHAPE, Live, absorbed, cut, feed, model_of, prompt, tokens, weights

from kvcheck.cache import attention
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import duo_attention, make
from kvcheck.methods.duo_attention import DuoAttention
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel

SINK, RECENT = 3, 9
MIXED = f"duo_attention:heads='10/01',sink={SINK},recent={RECENT}"


def loaded() -> LoadedModel:
    return LoadedModel(attention.use(model_of()), None, "toy", "f00d", 2048)


def by_hand(part, streams: tuple[bool, bool], first: int) -> torch.Tensor:
    """Attention rows from `first` on, (B, q, H, d): streaming heads see sinks and window only."""
    n, heads = part.keys.shape[2], []
    row, column = torch.arange(n).unsqueeze(1), torch.arange(n)
    seen = (column < SINK) | (row - column <= RECENT)
    for head in range(SHAPE.heads):
        share = weights(part.queries, part.keys, 0)[:, head]
        if streams[head // 2]:
            share = share * seen
            share = share / share.sum(-1, keepdim=True)
        heads.append(share @ part.values[:, head // 2].double())
    return torch.stack(heads, dim=2)[:, first:].float()


def test_the_prompt_and_what_follows_is_seen_whole_by_some_heads_and_through_a_window_by_the_others() -> None:
    parts = prompt(50)
    cache = make(MIXED).build(SHAPE)
    outs = [feed(cache, cut(parts, 0, 40)), *(feed(cache, cut(parts, at, at + 1)) for at in range(40, 50))]
    for layer, streams in enumerate([(False, True), (True, False)]):
        mine = torch.cat([out[layer] for out in outs], dim=1)
        torch.testing.assert_close(mine, by_hand(parts[layer], streams, 0), atol=2e-3, rtol=2e-3)


def test_a_prompt_is_seen_alike_in_blocks_of_any_size(monkeypatch) -> None:
    parts = prompt(50)
    whole = feed(make(MIXED).build(SHAPE), parts)
    monkeypatch.setattr(duo_attention, "BLOCK", 7)
    for one, other in zip(feed(make(MIXED).build(SHAPE), parts), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_memory_that_a_prompt_takes_does_not_grow_with_its_square(monkeypatch) -> None:
    """At 128k tokens a mask over all pairs of them would take 16 GiB, and a matrix of their distances 128."""
    monkeypatch.setattr(duo_attention, "BLOCK", 32)
    peaks = []
    for n in (512, 2048):
        cache, parts = make(MIXED).build(SHAPE), prompt(n, rows=1)
        with Live() as live:
            feed(cache, parts)
        peaks.append(live.peak)
    assert peaks[1] < 6 * peaks[0]  # four times the tokens


@pytest.mark.parametrize("n", [1, SINK + RECENT - 1, SINK + RECENT, SINK + RECENT + 1, 60])
def test_bytes_are_those_of_both_kinds_of_heads(n: int) -> None:
    method, parts = make(MIXED), prompt(n + 5)
    cache = absorbed(method, cut(parts, 0, n))
    assert audit(cache, cut(parts, 0, n), method).problems == ()
    for at in range(5):
        assert held(cache).kv == method.kv_bytes(SHAPE, 2, n, at)
        feed(cache, cut(parts, n + at, n + at + 1))


@pytest.mark.parametrize("text", ["duo_attention:heads=11/11,recent=2", f"duo_attention:heads=00/00,recent={60}"])
def test_all_retrieval_heads_or_a_window_that_holds_everything_are_the_full_cache(text: str) -> None:
    parts = prompt(50)
    outs = [feed(make(one).build(SHAPE), parts) for one in (text, "fp16")]
    for mine, full in zip(*outs, strict=True):
        torch.testing.assert_close(mine, full, atol=1e-5, rtol=1e-5)


def test_the_search_takes_the_heads_that_look_back_at_the_first_copy() -> None:
    model = loaded()
    found = make("duo_attention:sparsity=0.5").runner(model).method.pattern()
    assert sum(kept for row in found for kept in row) == 3
    text = torch.randint(61, (1, 512), generator=torch.Generator().manual_seed(0))
    cache = Fp16().build(SHAPE.of(model.model.config))
    with cache.recording() as layers:
        model.model(torch.cat([text, text], 1), past_key_values=cache)
    scores = {}
    for layer, part in enumerate(layers):
        share = weights(part.queries[:, :, 512:], part.keys, 512)[0, :, :, 4:512].sum(-1).mean(-1)
        for head in range(2):
            scores[layer, head] = float(share[2 * head : 2 * head + 2].mean())
    best = sorted(scores, key=scores.get)[3:]
    assert {(layer, head) for layer, row in enumerate(found) for head in range(2) if row[head]} == set(best)


def test_the_search_finds_the_same_twice_and_answers_through_its_runner() -> None:
    runners = [make("duo_attention:recent=0.2").runner(loaded()) for _ in range(2)]
    assert runners[0].method == runners[1].method
    cache, logits = runners[0].prefill(tokens(2, 40))
    assert bool(logits.isfinite().all())
    assert held(cache).kv == runners[0].method.kv_bytes(runners[0].shape, 2, 40, 0)


def test_gates_of_a_file_are_cut_at_the_sparsity(tmp_path) -> None:
    path = tmp_path / "gates.json"
    path.write_text(json.dumps([[0.9, 0.1], [0.4, 0.8]]))
    assert DuoAttention(heads=str(path), sparsity=0.5).pattern() == ((True, False), (False, True))
    assert DuoAttention(heads=str(path), sparsity=0.25).pattern() == ((True, False), (True, True))


def test_a_pattern_of_another_model_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="2 layers with 2 kv heads, the model has 3 with 2"):
        make(MIXED).build(SHAPE.of(model_of().config))


def test_a_pattern_that_cannot_be_read_is_refused(tmp_path) -> None:
    with pytest.raises(SpecError, match="is no pattern"):
        DuoAttention(heads=str(tmp_path / "none.json")).pattern()
