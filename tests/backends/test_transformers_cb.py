"""transformers' continuous batching for real, on the embedded model; what is known of it without, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcheck.backends.engines import specs
from kvcheck.backends.engines.base import Opening, Prompt, Reply
from kvcheck.backends.engines.transformers_cb import ENGINE, TransformersCB
from kvcheck.core import paths
from kvcheck.core.errors import MethodFailed, SpecError
from kvcheck.core.settings import Settings
from kvcheck.plugin import parse

MINI = paths.bundle("fixtures") / "mini"
PAGE, PIECE, N = 32, 32, 4
"""Tokens of a page, of a piece of a prompt, and of an answer."""
SMALL = {"page_size": PAGE, "num_blocks": 8, "max_batch_tokens": PIECE}
TEXT = [0, *(5 + 7 * at % 900 for at in range(99))]
"""A prompt of 100 tokens: three pages and a part of a fourth."""


def opened(**settings: int | bool | float | str) -> TransformersCB:
    """The engine on the embedded model."""
    return TransformersCB(Opening(MINI, "a print", "float32", {**SMALL, **settings}))


@pytest.fixture(scope="module")
def shared() -> Iterator[TransformersCB]:
    """An engine with a prefix cache."""
    engine = opened(allow_block_sharing=True)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: TransformersCB) -> TransformersCB:
    """The same, with nothing kept."""
    shared.flush()
    return shared


def asked(engine: TransformersCB, ids: list[int]) -> Reply:
    """Its answer to one prompt."""
    return engine.answer([Prompt(ids, N)])[0]


# -- without the engine ------------------------------------------------------------------------------------------------


def test_the_reference_shares_no_blocks_and_has_the_pool_of_a_usual_run() -> None:
    spec = specs.checked("transformers_cb:page_size=32,num_blocks=4,allow_block_sharing=true,max_batch_tokens=64")
    assert str(specs.full(spec)) == "transformers_cb:allow_block_sharing=false,max_batch_tokens=64"


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("transformers_cb:block_size=32", "no setting 'block_size'", "page_size"),
        ("transformers_cb:scheduler_type=lifo", "scheduler_type=lifo is not fifo", "prefill_first"),
        ("transformers_cb:page_size=many", "page_size=many is not an int", "give an int"),
    ],
)
def test_what_it_does_not_have_is_refused_with_what_it_has(typed: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse.method(typed)
    assert caught.match(hint)


def test_blocks_are_as_large_as_the_settings_say() -> None:
    assert [ENGINE.block_of(settings) for settings in ({}, {"page_size": 32})] == [256, 32]


def test_a_version_before_the_first_that_will_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "5.2.0")
    with pytest.raises(SpecError, match=r"needs transformers 5\.23 or newer, this is 5\.2\.0") as caught:
        specs.chosen(Settings(methods=("transformers_cb",)))
    assert caught.match("pip install 'transformers>=5.23'")


# -- with it -----------------------------------------------------------------------------------------------------------


def expected(ids: list[int]) -> Reply:
    """transformers' own greedy answer in float32, without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(MINI), dtype=torch.float32).eval()
    tokens: list[int] = []
    log_probs = []
    for _ in range(N):
        with torch.inference_mode():
            scores = torch.log_softmax(model(torch.tensor([ids + tokens])).logits[0, -1], -1)
        tokens.append(int(scores.argmax()))
        log_probs.append(float(scores.max()))
    return Reply(tuple(tokens), tuple(log_probs), False)


def test_it_answers_as_transformers_without_paging(engine: TransformersCB) -> None:
    found, theirs = asked(engine, TEXT), expected(TEXT)
    assert found.tokens == theirs.tokens
    assert found.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)


def test_an_answer_ends_with_the_end_token(engine: TransformersCB) -> None:
    second = asked(engine, TEXT).tokens[1]
    (found,) = engine.answer([Prompt(TEXT, N, frozenset({second}))])
    assert found.ended
    assert found.tokens[-1] == second
    assert len(found.tokens) <= 2


def test_a_prompt_is_read_in_pieces_and_in_fewer_where_its_beginning_is_kept(engine: TransformersCB) -> None:
    assert [asked(engine, TEXT).chunks for _ in range(2)] == [4, 1]
    engine.flush()
    assert asked(engine, TEXT).chunks == 4


def test_prompts_that_are_sent_together_share_passes(engine: TransformersCB) -> None:
    alone = [asked(engine, ids) for ids in (TEXT[:40], TEXT[1:50])]
    engine.flush()
    together = engine.answer([Prompt(TEXT[:40], N), Prompt(TEXT[1:50], N)])
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert sum(one.chunks or 0 for one in together) > sum(one.chunks or 0 for one in alone)


def test_bytes_are_those_of_its_pages(engine: TransformersCB) -> None:
    held = engine.weigh(Prompt(TEXT[:64], PAGE))
    each = 4 * 2 * 4 * 64 * 4  # layers, keys and values, heads, numbers, bytes of float32
    assert (held.prompt_slots, held.prompt_bytes) == (64, 64 * each)
    assert (held.end_slots, held.end_bytes) == (96, 96 * each)


def test_what_is_cancelled_gives_its_pages_back(engine: TransformersCB) -> None:
    want = asked(engine, TEXT)
    assert all(engine.cancel(Prompt(TEXT[1:], 60), after) for after in (1, 2, 8))
    assert not engine.cancel(Prompt(TEXT[:20], 1), 1)
    engine.flush()
    assert engine.manager.batch_processor.cache.compute_free_capacity() == 1.0
    assert asked(engine, TEXT).tokens == want.tokens


def test_a_prompt_that_the_pool_has_no_room_for_ends_the_engine() -> None:
    engine = opened(num_blocks=2)
    with pytest.raises(MethodFailed, match="a prompt of 100 tokens: No requests can be scheduled") as told:
        asked(engine, TEXT)
    assert told.match("a larger pool: num_blocks, of page_size tokens each")
    with pytest.raises((MethodFailed, RuntimeError)):
        asked(engine, TEXT[:20])
    engine.close()
