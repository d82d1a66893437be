"""llama.cpp in this process, through llama.h as llama-cpp-py-sync binds it. The library is loaded with a model.

Settings are fields of llama_context_params, and cache_prompt, which is llama-server's: the cells of a prompt that is
over are kept, and the longest beginning that a new one has in common with them is not read again. Prompts are batched
and make room for each other as in that server. Facts and measured figures: docs/reference/engines.md.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    FLUSHES,
    POOL,
    PREFIX,
    SCORES,
    WEIGHS,
    Counts,
    EngineInfo,
    Held,
    Key,
    Opening,
    Prompt,
    Reply,
    Settings,
)
from kvcheck.backends.engines.llamacpp_gguf import file
from kvcheck.core import env, threads
from kvcheck.core.errors import MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.record import EXCEEDS, FREES

ROUND = 256
"""Cells that the engine rounds a pool up to."""
TYPES = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
FLASH = {"auto": -1, "disabled": 0, "enabled": 1}
DEFAULTS = {"n_ctx": 16384, "n_seq_max": 4, "n_batch": 512, "n_ubatch": 512}
"""Where nothing is said. The engine would take 512 cells, and hand 2,048 tokens on in physical batches of 512."""
ALIKE = 0.1
"""Of a prompt: with less of its beginning in common, the cells of another one are not taken over, as in the server."""
NO_ROOM = 1
"""What llama_decode answers where it finds no cells; then nothing has changed."""
_K, _V, _FLASH, _PROMPT, _THREADS = "type_k", "type_v", "flash_attn_type", "cache_prompt", "n_threads"
KEYS = {
    _K: Key(TYPES, cache=True, full="f16"),
    _V: Key(TYPES, cache=True, full="f16"),
    "n_ctx": Key(int, cache=True),
    "kv_unified": Key(bool, cache=True, full=True),
    "swa_full": Key(bool, cache=True, full=True),
    _PROMPT: Key(bool, cache=True, full=False),
    "n_seq_max": Key(int),
    "n_batch": Key(int),
    "n_ubatch": Key(int),
    _FLASH: Key(Literal["auto", "disabled", "enabled"]),
    "rope_freq_base": Key(float),
    "rope_freq_scale": Key(float),
    _THREADS: Key(int),
}
WAYS: dict[str, Callable[[int], Settings]] = {
    PREFIX: lambda on: {_PROMPT: bool(on)},
    CHUNK: lambda tokens: {"n_batch": tokens, "n_ubatch": tokens},
    POOL: lambda cells: {"n_ctx": max(ROUND, cells // ROUND * ROUND)},
}


def expect(settings: Settings) -> None:
    """Raise SpecError for settings that the engine refuses, or that leave nothing to it."""
    quantized = str(settings.get(_V, "f16")) not in ("f16", "f32", "bf16")
    if quantized and settings.get(_FLASH) == "disabled":
        raise SpecError("llamacpp: a quantized type_v needs flash attention", f"leave {_FLASH} out")
    for name in ("n_ctx", "n_seq_max", "n_batch", "n_ubatch", _THREADS):
        if name in settings and int(str(settings[name])) < 1:
            raise SpecError(f"llamacpp: {name}={settings[name]} is too small", "give 1 or more")


def claims(settings: Settings) -> str:
    """What the settings claim to hold: fewer bytes than 16 bits a number, or more."""
    found = {str(settings.get(name, "f16")) for name in (_K, _V)}
    if "f32" in found:
        return EXCEEDS
    return FREES if found - {"f16", "bf16"} else ""


@dataclass
class Library:
    """llama.cpp, with what it logged last. said: kept, for the engine calls it."""

    ffi: Any
    llama: Any
    types: dict[str, int]
    lines: deque[str]
    said: Any = None

    def reason(self) -> str:
        """The last error that it logged."""
        return next((line for line in reversed(self.lines) if line), "it says nothing")


@lru_cache(maxsize=1)
def library() -> Library:
    """Load it. Raises MethodUnsupported where the system's C library is older than the one it was built with."""
    from llama_cpp_py_sync import _cffi_bindings as bindings

    try:
        found = Library(bindings.get_ffi(), bindings.get_lib(), {}, deque(maxlen=20))
    except RuntimeError as error:
        raise MethodUnsupported(
            f"llama.cpp's library cannot be loaded: {error}",
            "its wheel needs glibc 2.38 or newer: Ubuntu 24.04, Debian 13",
        ) from error

    def said(level: int, text: Any, _: Any) -> None:
        if level >= found.llama.GGML_LOG_LEVEL_WARN:
            found.lines.append(found.ffi.string(text).decode(errors="replace").strip())

    found.said = found.ffi.callback("void(enum ggml_log_level, const char *, void *)")(said)
    found.llama.llama_log_set(found.said, found.ffi.NULL)
    found.llama.llama_backend_init()
    found.types.update((name, getattr(found.llama, f"GGML_TYPE_{name.upper()}")) for name in get_args(TYPES))
    return found


@dataclass
class Request:
    """A prompt on its way. ids: what is read, the tokens that were said included where it began again. slot: the
    sequence that it has. done: ids whose cells are there."""

    prompt: Prompt
    ids: list[int]
    slot: int = -1
    done: int = 0
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    chunks: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def over(self) -> bool:
        """Whether its answer is whole."""
        return len(self.tokens) >= self.prompt.limit or bool(self.tokens and self.tokens[-1] in self.prompt.ends)


class LlamaCpp:
    """A model with one context. kept: by slot, the ids whose cells it holds while no request has it, oldest first."""

    def __init__(self, opening: Opening) -> None:
        self.lib = library()
        self.ffi, self.llama = self.lib.ffi, self.lib.llama
        self.settings: dict[str, Any] = {**DEFAULTS, **opening.settings}
        place = opening.gguf or file(opening.model, opening.fingerprint, opening.dtype)
        about = self.llama.llama_model_default_params()
        about.n_gpu_layers = 0
        self.model = self.llama.llama_model_load_from_file(str(place).encode(), about)
        self.context = self.ffi.NULL
        if self.model == self.ffi.NULL:
            raise RuntimeError(self.lib.reason())
        self.words = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(self.model))
        self.context = self.llama.llama_init_from_model(self.model, self._parameters())
        if self.context == self.ffi.NULL:
            self.close()
            raise RuntimeError(self.lib.reason())
        self.memory = self.llama.llama_get_memory(self.context)
        self.kept: dict[int, list[int]] = {slot: [] for slot in range(self.settings["n_seq_max"])}
        self.running: list[Request] = []

    def _parameters(self) -> Any:
        given = dict(self.settings)
        given.pop(_PROMPT, None)
        given[_FLASH] = FLASH[str(given.get(_FLASH, "enabled"))]
        given |= {name: self.lib.types[str(given.get(name, "f16"))] for name in (_K, _V)}
        share = int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, threads.cores() // max(1, env.workers()))
        given.setdefault(_THREADS, share)
        found = self.llama.llama_context_default_params()
        for name, value in given.items():
            setattr(found, name, value)
        found.n_threads_batch = found.n_threads
        return found

    # -- requests ------------------------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        """Give a request a free slot: the one that holds most of its beginning, else an empty or the oldest one."""
        busy = {one.slot for one in self.running}
        shared = {slot: _common(ids, request.ids) for slot, ids in self.kept.items() if slot not in busy}
        alike = {slot: count if count >= ALIKE * len(request.ids) else 0 for slot, count in shared.items()}
        request.slot = max(shared, key=lambda slot: (alike[slot], not self.kept[slot]))
        request.done = shared[request.slot]
        if not self.llama.llama_memory_seq_rm(self.memory, request.slot, request.done, -1):
            self._empty(request.slot)  # a cache that cannot go back to there
            request.done = 0
        self.running.append(request)

    def _empty(self, slot: int) -> None:
        self.llama.llama_memory_seq_rm(self.memory, slot, -1, -1)
        self.kept[slot] = []

    def _release(self, request: Request, keep: bool = True) -> None:
        """Take a request out; with cache_prompt its cells stay."""
        self.running.remove(request)
        del self.kept[request.slot]
        if keep and self.settings.get(_PROMPT):
            self.kept[request.slot] = request.ids[: request.done]
        else:
            self._empty(request.slot)

    def _step(self) -> None:
        """One batch: a token of each request that answers, then prompts as far as there is room in it."""
        room, rows, ends = self.settings["n_batch"], [], []
        for one in sorted(self.running, key=lambda one: not one.tokens):
            piece = one.ids[one.done : one.done + room]
            rows += [(token, one.done + at, one.slot, False) for at, token in enumerate(piece)]
            room -= len(piece)
            if piece and one.done + len(piece) == len(one.ids):
                rows[-1] = (*rows[-1][:3], True)
                ends.append(one)
        answered = self._decode(rows)
        for _, position, slot, _ in rows:
            next(one for one in self.running if one.slot == slot).done = position + 1
        for one, logits in zip(ends, answered, strict=True):
            token = int(logits.argmax())
            one.tokens.append(token)
            one.log_probs.append(float(_log_softmax(logits)[token]))
            one.last = time.perf_counter()
            one.first = one.first or one.last
            one.ids.append(token)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[np.ndarray]:
        """Feed (token, position, slot, wanted) -> logits of those that are wanted. Raises NoRoom and MethodFailed."""
        batch = self.llama.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for at, (token, position, slot, wanted) in enumerate(rows):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
            code = self.llama.llama_decode(self.context, batch)
        finally:
            self.llama.llama_batch_free(batch)
        if code == NO_ROOM:
            raise NoRoom
        if code:
            raise MethodFailed(f"llama_decode answers {code}: {self.lib.reason()}")
        ends = [at for at, row in enumerate(rows) if row[3]]
        return [np.frombuffer(self.ffi.buffer(self._logits(at), 4 * self.words), "<f4").copy() for at in ends]

    def _logits(self, at: int) -> Any:
        found = self.llama.llama_get_logits_ith(self.context, at)
        if found == self.ffi.NULL:
            raise MethodFailed(f"llama.cpp has no logits of token {at} of its batch: {self.lib.reason()}")
        return found

    def _make_room(self, waiting: deque[Request]) -> bool:
        """Forget what is kept of prompts that are over, else let the request that came last begin again later: has it?

        Raises MethodFailed where a lone request has no room.
        """
        busy = {one.slot for one in self.running}
        idle = [slot for slot, ids in self.kept.items() if ids and slot not in busy]
        for slot in idle:
            self._empty(slot)
        if idle:
            return False
        last = self.running[-1]
        self._release(last, keep=False)
        if not self.running:
            raise MethodFailed(
                f"llama.cpp has no room for {len(last.ids)} tokens in {self.settings['n_ctx']} cells",
                "a larger pool: n_ctx",
            )
        last.done = 0
        waiting.appendleft(last)
        return True

    def _run(self, requests: Sequence[Request], until: Callable[[], bool] = lambda: False) -> None:
        """Step until all are over, or as long as is said. Where one had to begin again, none comes in before another
        one is over."""
        waiting, crowded = deque(requests), False
        while waiting or self.running:
            while waiting and len(self.running) < len(self.kept) and not (crowded and self.running):
                self._admit(waiting.popleft())
            unanswered = [one for one in (*self.running, *waiting) if not one.tokens]
            try:
                self._step()
            except NoRoom:
                crowded |= self._make_room(waiting)
                continue
            for one in unanswered:
                one.chunks += 1
            for one in [one for one in self.running if one.over]:
                self._release(one)
                crowded = False
            if until():
                return

    # -- see Served ----------------------------------------------------------------------------------------------------

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See Served. `chunks` counts the batches until the first token: exact for a prompt that is alone."""
        start = time.perf_counter()
        requests = [Request(one, list(one.ids)) for one in prompts]
        self._run(requests)
        return [
            Reply(
                tuple(one.tokens),
                tuple(one.log_probs),
                one.tokens[-1] in one.prompt.ends,
                one.chunks,
                one.first - start,
                one.last - start,
            )
            for one in requests
        ]

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """See Served, in a slot that nothing is kept in."""
        self.flush()
        found, room = [], self.settings["n_batch"]
        for ids, start in texts:
            rows = [(token, at, 0, start <= at + 1 < len(ids)) for at, token in enumerate(ids)]
            try:
                logits = [one for at in range(0, len(rows), room) for one in self._decode(rows[at : at + room])]
            except NoRoom:
                raise MethodFailed(f"llama.cpp has no room for {len(ids)} tokens in n_ctx") from None
            finally:
                self._empty(0)
            found.append([float(_log_softmax(row)[token]) for row, token in zip(logits, ids[start:], strict=True)])
        return found

    def weigh(self, prompt: Prompt) -> Held:
        """See Served: the saved state of its sequence, with some bytes about each cell."""
        self.flush()
        request = Request(Prompt(prompt.ids, prompt.limit + 1), list(prompt.ids))  # it stops before what it says last
        self._run([request], lambda: bool(request.tokens))
        behind = self.llama.llama_state_seq_get_size(self.context, request.slot)
        self._run([], lambda: len(request.tokens) == prompt.limit)
        end = self.llama.llama_state_seq_get_size(self.context, request.slot)
        slots = request.done
        self._release(request, keep=False)
        return Held(behind, len(prompt.ids), end, slots)

    def cancel(self, prompt: Prompt, tokens: int) -> bool:
        """See Served: its sequence is removed, as a server does with a connection that was dropped."""
        request = Request(prompt, list(prompt.ids))
        self._run([request], lambda: len(request.tokens) >= tokens)
        if request not in self.running:
            return False
        self._release(request, keep=False)
        return len(request.tokens) == tokens

    def counts(self) -> Counts:
        """It has no scheduler of its own."""
        raise MethodUnsupported("llama.cpp is a library: there is no scheduler that counts what it does")

    def flush(self) -> None:
        """See Served."""
        for slot in self.kept:
            self._empty(slot)

    def close(self) -> None:
        """Free the context, then the model."""
        if self.context != self.ffi.NULL:
            self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)
        self.context = self.ffi.NULL


class NoRoom(Exception):
    """There are no cells for a batch."""


def _common(kept: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that both begin with; the last of `ids` is read in any case, for something must be answered from."""
    pairs = zip(kept, ids[:-1], strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(kept), len(ids) - 1))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    moved = logits.astype(np.float64) - logits.max()
    return np.asarray(moved - np.log(np.exp(moved).sum()))


ENGINE = EngineInfo(
    name="llamacpp",
    summary="llama.cpp, in this process",
    package="llama-cpp-py-sync",
    least="0.11739",
    modules=("llama_cpp_py_sync", "gguf"),
    extra="llamacpp",
    keys=KEYS,
    block=1,
    dtypes=("float32", "float16"),
    open=LlamaCpp,
    can=frozenset({SCORES, WEIGHS, CANCELS, FLUSHES}),
    expect=expect,
    claims=claims,
    ways=WAYS,
)
