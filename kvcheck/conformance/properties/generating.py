"""What `generate` does with a cache: its own loop, rows that are padded, drafts that are taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from kvcheck.cache import forward
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import Batch
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.models import small
from kvcheck.conformance.others import expect_all, is_foreign, owner, pieces
from kvcheck.conformance.subject import NotServed, Subject, equal, fail
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.adapters.foreign import BatchRunner

WORDS = 5
"""Tokens that are generated."""
DRAFT = 3
"""Tokens that an assistant drafts at a time."""


@property_test(skip_reason=other_prompt, share=0.5)
def generate_answers_as_tokens_fed_by_hand(subject: Subject) -> None:
    """`model.generate` with the cache gives the logits that the same tokens give when they are fed one by one."""
    ids = subject.tokens(subject.draw.prompt)
    with started(subject, ids) as cache:
        found = generated(subject.loaded.model, ids, cache)
    words = found.sequences[:, ids.shape[1] :]
    mine, first = subject.prefill(ids, subject.together)
    by_hand = [first.unsqueeze(1), subject.one_by_one(mine, words[:, :-1], subject.together)]
    equal(torch.stack(found.logits, 1), torch.cat(by_hand, 1), "generate, and the same tokens fed by hand")


@property_test(skip_reason=other_prompt, share=0.5)
def verified_drafts_are_the_tokens_of_generate(subject: Subject) -> None:
    """Assisted decoding: drafts that are verified in a block, and taken back where they are wrong, change no answer.

    Asked of caches that keep all they are fed as it came in: of others a block may differ from its tokens.
    """
    if not is_foreign(subject):
        raise NotServed("kvcheck's own caches cannot be cropped")
    ids = subject.tokens(subject.draw.prompt, rows=1)
    verified = subject.tokens(DRAFT + 2, rows=1, salt=1).split((DRAFT + 1, 1), dim=1)
    expect_all(subject, ids, *verified)
    model = subject.loaded.model
    with started(subject, ids) as cache:
        if not getattr(cache, "is_croppable", True):
            raise NotServed("the cache has no crop")
        wanted = generated(model, ids, cache).sequences
    assistant: Any = small(subject.draw.architecture, seed=1).model
    assistant.set_attn_implementation("sdpa")
    assistant.generation_config.num_assistant_tokens = DRAFT
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    with started(subject, ids) as cache:
        mine = generated(model, ids, cache, assistant_model=assistant).sequences
    if mine.tolist() != wanted.tolist():
        fail(f"with drafts it answers {mine[0, ids.shape[1] :].tolist()}, without {wanted[0, ids.shape[1] :].tolist()}")


@property_test(skip_reason=other_prompt, share=0.5)
def rows_padded_on_the_left_answer_as_alone(subject: Subject) -> None:
    """Prompts of unequal length in one batch, padded on the left as `generate` does it, answer as each does alone.

    Asked of caches that keep all they are fed as it came in: of others padding may take the place of tokens.
    """
    if not is_foreign(subject):
        raise NotServed("kvcheck's own caches refuse a padded batch")
    runner, rows = owner(subject).together(), subject.several
    ids, follow, steps = subject.texts(rows=rows)
    expect_all(subject, *pieces(ids, follow, steps))
    padding = [min(row * (1 + subject.draw.cut % 7), ids.shape[1] - 1) for row in range(rows)]
    if not any(padding):
        raise NotServed("a prompt of one token cannot be padded")
    mask = torch.arange(ids.shape[1]) >= torch.tensor(padding).unsqueeze(1)
    together = _life(subject, runner, mask, ids, follow, steps)
    for row, count in enumerate(padding):
        alone = subject.life(ids[[row], count:], follow[[row]], steps[[row]], runner=runner)
        equal([each[[row]] for each in together], alone, f"row {row} behind {count} tokens of padding, and alone")


def _life(subject: Subject, runner: BatchRunner, mask: torch.Tensor, *texts: torch.Tensor) -> list[torch.Tensor]:
    """A padded prompt, a follow-up block and steps -> the logits of all three."""
    try:
        cache, first = runner.prefill(texts[0], mask)
    except (MethodUnsupported, NotImplementedError, ValueError) as error:
        raise NotServed(f"it refuses padding: {error}") from error
    return [first, subject.feed(cache, texts[1], runner), subject.one_by_one(cache, texts[2], runner)]


@contextmanager
def started(subject: Subject, ids: torch.Tensor) -> Iterator[Cache]:
    """A fresh cache for prompts (R, n), with the model set to attend through it. Raises NotServed."""
    if is_foreign(subject):
        runner = owner(subject)
        batch = runner.start(ids.shape[1], Batch)
        with runner.driving(batch):
            yield batch.cache
    else:
        kind = type(subject.runner)
        if kind.prefill is not MethodRunner.prefill or kind.feed is not MethodRunner.feed:
            raise NotServed("it reads a prompt, or what follows, by a runner of its own, not by generate")
        yield subject.native(subject.runner.build())


def generated(model: PreTrainedModel, ids: torch.Tensor, cache: Cache, **given: object) -> Any:
    """Greedy answers of WORDS tokens, with the logits of each."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=WORDS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **{forward.of(model).carries: cache},
        **given,
    )
