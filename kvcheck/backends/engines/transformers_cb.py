"""transformers' continuous batching with its paged KV cache, in this process. transformers is imported with a model.

Settings are fields of ContinuousBatchingConfig, and attn_implementation. Those of a GPU (graphs, compilation, the
decode path of flash attention, asynchronous batching) are none here. Facts and figures: docs/reference/engines.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    FLUSHES,
    POOL,
    PREFIX,
    WEIGHS,
    Counts,
    EngineInfo,
    Held,
    Key,
    Opening,
    Prompt,
    Reply,
    Settings,
    steps_until,
)
from kvcheck.core.errors import MethodFailed, MethodUnsupported
from kvcheck.core.record import EXCEEDS

BLOCK = 256
"""Tokens of a page, as the engine has it where nothing is said."""
ROOM = 16384
"""Tokens of the pool where nothing is said: the engine would take 60% of the machine's memory."""
PIECE = 1024
"""Tokens of a batch where nothing is said: the mask that it keeps has this many rows for each token of the pool."""
PATIENCE = 30.0
"""Seconds that its thread is given to do what it was told, beside a forward pass."""
_SIZE, _NUMBER, _BATCH, _ATTENTION = "page_size", "num_blocks", "max_batch_tokens", "attn_implementation"
KEYS = {
    _SIZE: Key(int, cache=True),
    _NUMBER: Key(int, cache=True),
    "max_memory_percent": Key(float, cache=True),
    "allow_block_sharing": Key(bool, cache=True, full=False),
    "cpu_offload_space": Key(float, cache=True),
    "cpu_offload_space_safety_threshold": Key(float, cache=True),
    _BATCH: Key(int),
    "max_requests_per_batch": Key(int),
    "scheduler_type": Key(Literal["fifo", "prefill_first"]),
    "safety_margin": Key(float),
    _ATTENTION: Key(Literal["sdpa", "eager"]),
}
WAYS: dict[str, Callable[[int], Settings]] = {
    PREFIX: lambda on: {"allow_block_sharing": bool(on)},
    CHUNK: lambda tokens: {_BATCH: tokens},
    POOL: lambda blocks: {_NUMBER: blocks},
}


@dataclass
class _Watch:
    """What is seen of forward passes, in the engine's thread, before each: when they began, and what a request holds.

    request: the id whose blocks are looked at. end_at: after how many passes it is cancelled. tokens: in each pass.
    """

    request: str = ""
    end_at: int | None = None
    began: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


class TransformersCB:
    """One manager with its thread. All requests that wait are batched; a lone one is in batches of its own."""

    def __init__(self, opening: Opening) -> None:
        import torch
        from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
        from transformers.utils import logging as theirs

        from kvcheck.models.devices import share_threads

        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # what it logs is raised here, too
        theirs.disable_progress_bar()
        share_threads()
        given: dict[str, Any] = dict(opening.settings)
        attention = given.pop(_ATTENTION, "sdpa")
        if not {_NUMBER, "max_memory_percent"} & set(given):
            given[_NUMBER] = -(-ROOM // given.get(_SIZE, BLOCK))
        self.batch = int(given.setdefault(_BATCH, PIECE))
        config = ContinuousBatchingConfig(
            **given, return_logprobs=True, auto_switch_to_flash=False, use_async_batching=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            opening.model, dtype=getattr(torch, opening.dtype), attn_implementation=attention, local_files_only=True
        )
        self.watch = _Watch()
        self.hook = model.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1)
        self.manager = model.init_continuous_batching(greedy, config)
        self._start()

    def _start(self) -> None:
        """Start the engine's thread from one that is a daemon, which makes it one: it must not outlive the process."""
        starter = Thread(target=self.manager.start, daemon=True)
        starter.start()
        starter.join()
        self._until(lambda: self.manager.batch_processor is not None, "start")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for the engine's thread. Raises what ended it, and MethodFailed where it does not do it in time."""
        end = time.monotonic() + PATIENCE
        while not done():
            if (broken := self.manager.background_thread_status.fatal_error) is not None:
                raise broken
            if time.monotonic() > end:
                raise MethodFailed(f"transformers' generation loop did not {what} within {PATIENCE:g} s")
            time.sleep(0.002)

    def _before_pass(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Called before each forward pass, when its blocks are given out. What it raises would end the engine."""
        watch = self.watch
        watch.began.append(time.perf_counter())
        watch.tokens.append(given["input_ids"].shape[-1])
        if watch.request:
            watch.held.append(self._bytes_of(watch.request))
            if watch.end_at == len(watch.began):
                self.manager.cancel_request(watch.request)

    def _bytes_of(self, request: str) -> int:
        """Of the blocks in a request's tables."""
        allocators = self.manager.batch_processor.cache.cache_allocators.values()
        return sum(len(one.block_table.get(request, ())) * one.bytes_per_block for one in allocators)

    def _send(self, prompt: Prompt) -> str:
        """Hand a request in. Raises MethodFailed where the engine takes none any more."""
        name = self.manager.add_request(
            list(prompt.ids), max_new_tokens=prompt.limit, record_timestamps=True, eos_token_id=sorted(prompt.ends)
        )
        if name is None:
            broken = self.manager.background_thread_status.fatal_error
            raise MethodFailed(f"transformers takes no requests any more: {broken}")
        return str(name)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Between two batches: what is sent in here is seen together."""
        with self.manager.pause():
            yield
            self.watch.began.clear()

    def _results(self, names: Sequence[str]) -> dict[str, Any]:
        """What these requests came to. Raises MethodFailed for one that was not served."""
        found: dict[str, Any] = {}
        while len(found) < len(names):
            one = self.manager.get_result(timeout=1.0)
            if one is not None and one.error is not None:
                raise MethodFailed(
                    f"transformers did not serve a prompt of {len(one.prompt_ids)} tokens: {one.error}",
                    f"a larger pool: {_NUMBER}, of {_SIZE} tokens each",
                )
            if one is not None:
                found[one.request_id] = one
            elif not self.manager.is_running():
                raise MethodFailed(f"transformers' generation loop ended with {len(names) - len(found)} open requests")
        return found

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See Served. `chunks` counts the forward passes until the first token: exact for a prompt that is alone."""
        self.watch = _Watch()
        with self._sending():
            start = time.perf_counter()
            names = [self._send(one) for one in prompts]
        found = self._results(names)
        replies = []
        for one, name in zip(prompts, names, strict=True):
            out = found[name]
            tokens, first = tuple(out.generated_tokens), out.timestamps[0]
            chunks = sum(start <= began < first for began in self.watch.began)
            ended = bool(tokens) and tokens[-1] in one.ends
            times = first - start, out.lifespan[1] - start
            replies.append(Reply(tokens, tuple(out.logprobs), ended, chunks, *times))
        return replies

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """The engine tells the log-probabilities of what it says only."""
        raise MethodUnsupported("transformers' continuous batching gives no log-probabilities of a prompt")

    def weigh(self, prompt: Prompt) -> Held:
        """See Served: blocks in the request's tables when the last token of its prompt, and of its answer, is fed."""
        self.watch = _Watch()
        with self._sending():
            self.watch.request = self._send(prompt)
        self._results([self.watch.request])
        read, at = 0, 0
        while read < len(prompt.ids) and self.watch.tokens[at] > 1:
            read, at = read + self.watch.tokens[at], at + 1
        behind, end = self.watch.held[max(0, at - 1)], self.watch.held[-1]
        allocators = self.manager.batch_processor.cache.cache_allocators.values()
        each = sum(one.bytes_per_block // one.tokens_per_page for one in allocators)
        return Held(behind, behind // each, end, end // each)

    def cancel(self, prompt: Prompt, tokens: int) -> bool:
        """See Served. Nothing is said of a request that was cancelled: it is waited for until none is open."""
        after = max(1, steps_until(prompt, tokens, self.batch))  # it is ended in a pass
        self.watch = _Watch(end_at=after)
        with self._sending():
            self.watch.request = self._send(prompt)
        processor = self.manager.batch_processor
        self._until(lambda: len(self.watch.began) >= after and not processor.has_pending_requests(), "cancel a request")
        return self.manager.get_result(timeout=0.01) is None

    def counts(self) -> Counts:
        """It tells none."""
        raise MethodUnsupported("transformers' continuous batching has no counters of what it has done")

    def flush(self) -> None:
        """Forget the blocks that are kept for other requests, as the engine does where memory is short."""
        with self.manager.pause():
            self.manager.batch_processor.cache.evict_cached_blocks()

    def close(self) -> None:
        """End the thread, whatever it is at, and drop the pool."""
        self.hook.remove()
        self.manager.stop(block=True, timeout=PATIENCE, hard_stop=True)
        self.manager.destroy()


ENGINE = EngineInfo(
    name="transformers_cb",
    summary="transformers' continuous batching over a paged KV cache, in this process",
    package="transformers",
    least="5.23",
    modules=("torch", "transformers"),
    keys=KEYS,
    block=BLOCK,
    paged=_SIZE,
    dtypes=("float32", "bfloat16"),
    open=TransformersCB,
    can=frozenset({WEIGHS, CANCELS, FLUSHES}),
    claims=lambda settings: EXCEEDS,  # it keeps what it computes in: float32 is more than 16 bits
    ways=WAYS,
)
