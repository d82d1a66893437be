"""Every bug of config does what it says, and its counterpart does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from counterpart_checks import MINI, SHAPE, absorbed, family, feed, prompt, read, runner_of, used, used_right, words

from kvcheck.core.errors import KvcheckError
from kvcheck.methods.kivi import KIVI
from kvcheck.methods.mixattention import MixAttention
from kvcheck.methods.snapkv import SnapKV
from kvcheck.zoo import config as zoo
from kvcheck.zoo.counterparts.long_rope import LongRope


@pytest.mark.parametrize(("kind", "right"), [(SnapKV, True), (zoo.EmptyCacheIsFalsy, False)])
def test_nothing_is_compressed(kind: type[SnapKV], right: bool) -> None:
    cache = absorbed(kind(budget=0.5, window=8), prompt(40))
    assert [layer.stored for layer in cache.layers] == ([20, 20] if right else [40, 40])
    runner = runner_of(kind(window=8))
    assert runner.prefill(words(2, 40))[0].layers[0].stored == (20 if right else 40)


@pytest.mark.parametrize(("kind", "right"), [(KIVI, True), (zoo.CacheConfigDictMutated, False)])
def test_the_second_cache_has_another_backend(kind: type[KIVI], right: bool) -> None:
    method, parts = kind(group=8, residual=8), prompt(40)
    first, second = (read(absorbed(method, parts))[0] for _ in range(2))
    assert torch.equal(first, read(absorbed(KIVI(group=8, residual=8), parts))[0])
    assert torch.equal(first, second) is right
    assert (len(method.build(replace(SHAPE, layers=5)).layers) == 5) is right


@pytest.mark.parametrize(("kind", "right"), [(MixAttention, True), (zoo.GroupWindowOnGlobalLayers, False)])
def test_layers_without_a_window_do_not_see_beyond_it(kind: type[MixAttention], right: bool) -> None:
    method = kind()
    window = method.layout.window
    for tokens in (window, window + 60):
        outs = []
        for change in (0, 1):
            parts = prompt(tokens, MINI, rows=1)
            for part in parts:
                part.values[:, :, 0] += change
            cache = method.build(MINI)
            outs.append([out[:, -1] for out in feed(cache, parts)])
            assert [layer.stored for layer in cache.layers] == list(method.slots(MINI, tokens, 0))
        for index, (one, two) in enumerate(zip(*outs, strict=True)):
            blind = tokens > window and (method.layout.slides(index) or not right)
            assert torch.equal(one, two) is blind


@pytest.mark.parametrize(("kind", "right"), [(LongRope, True), (zoo.RopeRegimeFromAllocatedSize, False)])
def test_a_larger_capacity_changes_a_short_text(kind: type[LongRope], right: bool) -> None:
    logits = [runner_of(kind(native=100, capacity=capacity)).prefill(words(1, 60))[1] for capacity in (100, 400)]
    assert torch.equal(*logits) is right
    assert torch.equal(logits[0], runner_of("fp16").prefill(words(1, 60))[1])


def test_a_long_text_is_turned_by_both_and_may_not_exceed_the_capacity() -> None:
    logits = [
        runner_of(kind(native=30, capacity=90)).prefill(words(1, 60))[1]
        for kind in (LongRope, zoo.RopeRegimeFromAllocatedSize)
    ]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], runner_of("fp16").prefill(words(1, 60))[1])
    with pytest.raises(KvcheckError, match="do not fit"):
        runner_of(LongRope(native=30, capacity=50)).prefill(words(1, 60))


@pytest.mark.parametrize("one", family("config"), ids=lambda one: one.name)
def test_ordinary_use_raises_nothing(one) -> None:
    for tokens in (1, 150):
        mine, right = used(one.spec, tokens), used_right(one.counterpart, tokens)
        assert [each.shape for each in mine] == [each.shape for each in right]
        assert all(bool(each.isfinite().all()) for each in right)
