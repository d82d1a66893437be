"""CORM, KVMerger and LOOK-M against their sheets, written as loops over rows, heads and tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity
from toys import SHAPE, absorbed, cut, dense, feed, model_of, prompt, tokens, weights

from kvcheck.backends.transformers import Session
from kvcheck.cache import attention
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.record import MODES, CaseId
from kvcheck.core.settings import Settings
from kvcheck.methods import make
from kvcheck.models import LoadedModel, load
from kvcheck.runner.case import Runner
from kvcheck.tasks import TASKS

ROWS_AND_HEADS = [(row, head) for row in range(2) for head in range(SHAPE.kv_heads)]


def held_positions(layer, row: int, head: int) -> list[int]:
    return layer.positions[row, head][layer.valid[row, head]].tolist()


def group_weights(part, row: int, head: int) -> torch.Tensor:
    """(group, n, n): the weights of the query heads of one kv head."""
    return weights(part.queries, part.keys, 0)[row, 2 * head : 2 * head + 2]


# -- CORM --------------------------------------------------------------------------------------------------------------


def sharp(n: int):
    """A prompt whose attention is far from uniform."""
    parts = prompt(n)
    for part in parts:
        part.queries.mul_(4)
    return parts


def corm_by_hand(part, row: int, head: int, window: int, recent: int) -> list[int]:
    n = part.keys.shape[2]
    important = group_weights(part, row, head) >= (1 - 1e-3) / torch.arange(1, n + 1).view(1, n, 1)
    stays = []
    for key in range(n):
        asked = [query for query in range(n - window, n) if query >= key]
        minor = all(not bool(important[:, query, key].any()) for query in asked)
        if key >= n - recent or key >= n - window or not minor:
            stays.append(key)
    return stays


@pytest.mark.parametrize(("window", "recent"), [(8, 4), (4, 12)])
def test_corm_evicts_what_was_minor_for_all_of_the_last_queries(window: int, recent: int) -> None:
    parts = sharp(60)
    for layer, part in zip(absorbed(make(f"corm:window={window},recent={recent}"), parts).layers, parts, strict=True):
        for row, head in ROWS_AND_HEADS:
            wanted = corm_by_hand(part, row, head, window, recent)
            assert held_positions(layer, row, head) == wanted
            assert len(wanted) < 60


def test_corm_keeps_everything_under_uniform_attention() -> None:
    parts = prompt(60)
    for part in parts:
        part.keys.zero_()
    assert absorbed(make("corm:window=4,recent=4"), parts).layers[0].slots == 60


def test_a_longer_history_keeps_a_superset() -> None:
    parts = sharp(60)
    short, long = (absorbed(make(f"corm:window={window},recent=4"), parts).layers[0] for window in (4, 16))
    for row, head in ROWS_AND_HEADS:
        assert set(held_positions(short, row, head)) <= set(held_positions(long, row, head))


def test_corm_drops_a_key_while_decoding_once_no_recent_query_found_it_important() -> None:
    parts = sharp(80)
    cache = absorbed(make("corm:window=4,recent=4"), cut(parts, 0, 60))
    found = {}  # the last query that found a key important, of layer 0, row 0, kv head 0
    part = parts[0]
    for at in range(60, 80):
        before = [*held_positions(cache.layers[0], 0, 0), at]
        asked = part.queries[0, :2, at].double() @ part.keys[0, 0, before].double().T * 8**-0.5
        for place, key in enumerate(before):
            if bool((asked.softmax(1)[:, place] >= (1 - 1e-3) / len(before)).any()):
                found[key] = at
        feed(cache, cut(parts, at, at + 1))
        after = held_positions(cache.layers[0], 0, 0)
        for key in set(before) - set(after):
            assert found.get(key, key) < at + 1 - 4
        assert set(range(at - 3, at + 1)) <= set(after)
    assert len(after) < 60


# -- KVMerger ----------------------------------------------------------------------------------------------------------


def smooth(n: int):
    """A prompt whose neighbouring keys are alike."""
    parts = prompt(n)
    for part in parts:
        part.keys.copy_((part.keys.float().cumsum(2) / 3).half())
    return parts


def merged_by_hand(part, row: int, head: int, threshold: float, heavy: int, recent: int):
    keys, values = part.keys[row, head].double(), part.values[row, head].double()
    n, received = len(keys), group_weights(part, row, head).sum((0, 1))
    alone = set(received.topk(heavy).indices.tolist()) | set(range(n - recent, n))
    runs = [[0]]
    for at in range(1, n):
        alike = cosine_similarity(keys[at - 1], keys[at], dim=0) > threshold
        if alike and at not in alone and at - 1 not in alone:
            runs[-1].append(at)
        else:
            runs.append([at])
    slots = []
    for run in runs:
        pivot = max(run, key=lambda at: float(received[at]))
        far = torch.stack([(keys[at] - keys[pivot]).square().sum() for at in run])
        raw = torch.exp(-far / far.mean()) if float(far.mean()) > 0 else torch.ones(len(run))
        share = (raw / raw.sum()).double()
        slots.append((pivot, share @ keys[run], share @ values[run]))
    return slots


def test_kvmerger_puts_one_weighted_slot_in_the_place_of_every_run() -> None:
    parts = smooth(60)
    cache = absorbed(make("kvmerger:threshold=0.8,heavy=5,recent=6"), parts)
    for layer, part in zip(cache.layers, parts, strict=True):
        for row, head in ROWS_AND_HEADS:
            slots = merged_by_hand(part, row, head, 0.8, 5, 6)
            assert held_positions(layer, row, head) == [pivot for pivot, _, _ in slots]
            assert len(slots) < 55
            valid = layer.valid[row, head]
            for mine, at in ((layer.keys, 1), (layer.values, 2)):
                wanted = torch.stack([slot[at] for slot in slots]).float()
                torch.testing.assert_close(mine[row, head][valid].float(), wanted, atol=4e-3, rtol=2e-3)


def test_a_threshold_above_one_merges_nothing() -> None:
    parts = smooth(41)
    cache = absorbed(make("kvmerger:threshold=1.05"), cut(parts, 0, 40))
    for mine, part in zip(feed(cache, cut(parts, 40, 41)), parts, strict=True):
        wanted = dense(part.queries[:, :, 40:], part.keys, part.values, 40).float()
        torch.testing.assert_close(mine, wanted, atol=2e-3, rtol=2e-3)


def test_identical_neighbours_become_one_slot_of_the_same_key_and_value() -> None:
    parts = prompt(40)
    for part in parts:
        part.keys[:, :, 10:20] = part.keys[:, :, 10:11]
        part.values[:, :, 10:20] = part.values[:, :, 10:11]
    layer = absorbed(make("kvmerger:threshold=0.999,heavy=1,recent=5"), parts).layers[0]
    assert layer.slots < 40
    keys = layer.keys[0, 0][layer.valid[0, 0]]
    place = next(at for at, position in enumerate(held_positions(layer, 0, 0)) if 10 <= position < 20)
    torch.testing.assert_close(keys[place], parts[0].keys[0, 0, 10])


def test_a_lower_threshold_leaves_fewer_slots() -> None:
    counts = [absorbed(make(f"kvmerger:threshold={e}"), smooth(60)).layers[0].slots for e in (0.95, 0.8, 0.5)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


# -- LOOK-M ------------------------------------------------------------------------------------------------------------


def look_by_hand(part, row: int, head: int, first: set[int], heavy: int, recent: int, merge: str):
    keys, values = part.keys[row, head].double(), part.values[row, head].double()
    n, received = len(keys), group_weights(part, row, head).sum((0, 1))
    old = list(range(n - recent))
    ranked = sorted(old, key=lambda at: (at not in first, -float(received[at])))
    stays = sorted(set(ranked[:heavy]) | first | set(range(n - recent, n)))
    sums = {at: [(keys[at], values[at])] for at in stays}
    for at in set(range(n)) - set(stays):
        near = max(stays, key=lambda other: float(cosine_similarity(keys[at], keys[other], dim=0)))
        half = 0.5 if merge == "pivot" else 0.0
        sums[near].append((keys[at] * (1 - half) + keys[near] * half, values[at] * (1 - half) + values[near] * half))
    return stays, {at: [torch.stack(part).mean(0) for part in zip(*sums[at], strict=True)] for at in stays}


@pytest.mark.parametrize("merge", ["pivot", "average"])
def test_look_m_merges_what_leaves_into_the_nearest_that_stays(merge: str) -> None:
    parts = prompt(50)
    cache = absorbed(make(f"look_m:text_prior=false,heavy=10,recent=8,merge={merge}"), parts)
    for layer, part in zip(cache.layers, parts, strict=True):
        for row, head in ROWS_AND_HEADS:
            stays, slots = look_by_hand(part, row, head, {0, 1, 2, 3}, 10, 8, merge)
            assert held_positions(layer, row, head) == stays
            valid = layer.valid[row, head]
            for mine, at in ((layer.keys, 0), (layer.values, 1)):
                wanted = torch.stack([slots[position][at] for position in stays]).float()
                torch.testing.assert_close(mine[row, head][valid].float(), wanted, atol=4e-3, rtol=2e-3)


IMAGE = 7


def loaded() -> LoadedModel:
    return LoadedModel(attention.use(model_of()), None, "toy", "f00d", None)


def with_images(rows: int, length: int) -> torch.Tensor:
    ids = tokens(rows, length)
    ids[ids == IMAGE] = 8
    ids[:, 10:40] = IMAGE
    return ids


def test_all_text_stays_in_every_head_and_images_leave() -> None:
    ids = with_images(2, 60)
    ids[1, 35:40] = 9
    cache, _ = make(f"look_m:heavy=4,recent=10,image_token={IMAGE}").runner(loaded()).prefill(ids)
    for layer in cache.layers:
        for row, head in ROWS_AND_HEADS:
            text = set((ids[row] != IMAGE).nonzero().flatten().tolist())
            assert set(held_positions(layer, row, head)) == text


def test_image_slots_fill_the_budget_that_text_leaves() -> None:
    cache, _ = make(f"look_m:heavy=30,recent=10,image_token={IMAGE}").runner(loaded()).prefill(with_images(2, 60))
    assert cache.layers[0].slots == 40


def test_a_text_only_model_is_refused_with_what_would_do() -> None:
    with pytest.raises(MethodUnsupported, match="text-only model") as error:
        make("look_m").runner(loaded())
    assert "text_prior=false" in str(error.value)


def test_a_prompt_without_images_is_refused() -> None:
    runner = make(f"look_m:image_token={IMAGE}").runner(loaded())
    with pytest.raises(MethodUnsupported, match="no image slot"):
        runner.prefill(torch.full((1, 30), 9))


def test_only_with_the_text_prior_the_runner_must_prefill() -> None:
    assert make("look_m:text_prior=false").info.shares_prefill
    method = make(f"look_m:image_token={IMAGE}")
    assert not method.info.shares_prefill
    assert not replace(method, heavy=4).info.shares_prefill
    assert replace(method, text_prior=False).info.shares_prefill
    with pytest.raises(MethodUnsupported, match="not told which slots are images"):
        loaded().model(with_images(1, 60), past_key_values=method.build(SHAPE))


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.of(load("mini", torch.device("cpu"), torch.float32), Settings())


@pytest.mark.parametrize("mode", MODES)
def test_the_engine_tells_which_slots_are_images(session: Session, mode: str) -> None:
    case = CaseId("kv", TASKS.get("kv").info.version, mode, 512, seed=0, n=2)
    encode = session.loaded.tokenizer.encode
    contexts = [encode(TASKS.get("kv").generate(0, at, 512, session.loaded.tokenizer).context) for at in range(2)]
    image = max(set(contexts[0]), key=contexts[0].count)
    record = Runner(session, session.settings).run_case(case, f"look_m:heavy=1,recent=1,image_token={image}")
    images = [context.count(image) for context in contexts]
    assert min(images) > 20
    assert record.memory is not None
    assert [len(sample.turns) for sample in record.samples] == [1 if mode == "single" else 4] * 2
    gone = record.memory.seen - record.memory.kept
    assert gone == pytest.approx(sum(images) / 2, abs=4), "images, of which the question has a few, and no text"


@pytest.mark.parametrize("text", ["corm:window=0", "kvmerger:threshold=2", "look_m:merge=weighted", "look_m:heavy=0"])
def test_values_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        make(text)
