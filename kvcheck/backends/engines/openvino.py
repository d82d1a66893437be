"""OpenVINO GenAI's continuous batching, in this process. The package is imported when a model is opened.

Settings in capitals are properties of the device, the others fields of SchedulerConfig; `cache_eviction_config.` and
`sparse_attention_config.` reach into what these hold. Facts and measured figures: docs/reference/engines.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    COUNTS,
    DENSE,
    MOVES,
    NEWEST,
    POOL,
    PREFIX,
    ROOMY,
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
    steps_until,
)
from kvcheck.backends.engines.openvino_ir import folder
from kvcheck.core import env, threads
from kvcheck.core.errors import MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.record import EXCEEDS, FREES

BLOCK = 32
"""Tokens of a block on a CPU."""
PIECE = 256
"""Tokens that are read in a step where nothing is said."""
GIB = 1
"""Of the pool where nothing is said."""
PRECISIONS = Literal["f16", "f32", "bf16", "u8", "u4"]
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_KV, _K, _V, _DTYPE, _THREADS = (
    "KV_CACHE_PRECISION",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "INFERENCE_PRECISION_HINT",
    "INFERENCE_NUM_THREADS",
)
_EVICTION, _CRUSH, _SPARSE = (
    "cache_eviction_config.",
    "cache_eviction_config.kvcrush_config.",
    "sparse_attention_config.",
)
_SWITCHES = {_EVICTION: "use_cache_eviction", _SPARSE: "use_sparse_attention"}
"""What must be on for nested settings to be read."""
_SIZES = {"start_size": 32, "recent_size": 128, "max_cache_size": 672}
"""Of the eviction, as the engine has them where nothing is said."""
KEYS = {
    _KV: Key(PRECISIONS, cache=True, full="f16"),
    _K: Key(PRECISIONS, cache=True),
    _V: Key(PRECISIONS, cache=True),
    "KEY_CACHE_GROUP_SIZE": Key(int, cache=True),
    "VALUE_CACHE_GROUP_SIZE": Key(int, cache=True),
    _DTYPE: Key(Literal["f32", "bf16", "f16"]),
    _THREADS: Key(int),
    "max_num_batched_tokens": Key(int),
    "dynamic_split_fuse": Key(bool),
    "max_num_seqs": Key(int),
    "cache_size": Key(int, cache=True),
    "num_kv_blocks": Key(int, cache=True),
    "enable_prefix_caching": Key(bool, cache=True),
    "use_cache_eviction": Key(bool, cache=True),
    f"{_EVICTION}start_size": Key(int, cache=True),
    f"{_EVICTION}recent_size": Key(int, cache=True),
    f"{_EVICTION}max_cache_size": Key(int, cache=True),
    f"{_EVICTION}aggregation_mode": Key(Literal["SUM", "NORM_SUM", "ADAPTIVE_RKV"], cache=True),
    f"{_EVICTION}apply_rotation": Key(bool, cache=True),
    f"{_EVICTION}snapkv_window_size": Key(int, cache=True),
    f"{_CRUSH}budget": Key(int, cache=True),
    f"{_CRUSH}anchor_point_mode": Key(Literal["RANDOM", "ZEROS", "ONES", "MEAN", "ALTERNATING"], cache=True),
    f"{_CRUSH}rng_seed": Key(int, cache=True),
    "use_sparse_attention": Key(bool, cache=True),
    f"{_SPARSE}mode": Key(Literal["TRISHAPE", "XATTENTION"], cache=True),
    f"{_SPARSE}num_last_dense_tokens_in_prefill": Key(int, cache=True),
    f"{_SPARSE}num_retained_start_tokens_in_cache": Key(int, cache=True),
    f"{_SPARSE}num_retained_recent_tokens_in_cache": Key(int, cache=True),
    f"{_SPARSE}xattention_threshold": Key(float, cache=True),
    f"{_SPARSE}xattention_block_size": Key(int, cache=True),
    f"{_SPARSE}xattention_stride": Key(int, cache=True),
}


def expect(settings: Settings) -> None:
    """Raise SpecError for settings that the engine would pass over."""
    for prefix, switch in _SWITCHES.items():
        nested = [name for name in settings if name.startswith(prefix)]
        if nested and settings.get(switch) is not True:
            raise SpecError(f"openvino reads {nested[0]} only with {switch}=true", f"add {switch}=true")
    if _KV in settings and _K in settings and _V in settings:
        raise SpecError(f"{_K} and {_V} leave nothing to {_KV}", f"leave {_KV} out")


def precisions(settings: Settings) -> tuple[str, str]:
    """Of keys and of values."""
    both = str(settings.get(_KV, KEYS[_KV].full))
    return str(settings.get(_K, both)), str(settings.get(_V, both))


def claims(settings: Settings) -> str:
    """What the settings claim to hold: fewer bytes than 16 bits a number, or more.

    Eviction does not claim it: in a context that is shorter than what it keeps, it has nothing to do.
    """
    found = precisions(settings)
    if "f32" in found:
        return EXCEEDS
    return FREES if {"u8", "u4"} & set(found) else ""


def uses(settings: Settings) -> frozenset[str]:
    """See EngineInfo.uses."""
    sparse = settings.get("use_sparse_attention") and settings.get(f"{_SPARSE}mode") == "XATTENTION"
    evicts, moves = settings.get("use_cache_eviction"), settings.get(f"{_EVICTION}apply_rotation")
    return frozenset([ROOMY] * bool(evicts) + [MOVES] * bool(evicts and moves) + [DENSE] * bool(sparse))


WAYS: dict[str, Callable[[int], Settings]] = {
    PREFIX: lambda on: {"enable_prefix_caching": bool(on)},
    CHUNK: lambda tokens: {"max_num_batched_tokens": tokens},
    POOL: lambda blocks: {"cache_size": 0, "num_kv_blocks": blocks},
    ROOMY: lambda tokens: {f"{_EVICTION}max_cache_size": -(-tokens // BLOCK) * BLOCK},
    DENSE: lambda _: {f"{_SPARSE}xattention_threshold": 1.0},
    NEWEST: lambda tokens: {f"{_EVICTION}recent_size": tokens // BLOCK * BLOCK},
    MOVES: lambda on: {f"{_EVICTION}apply_rotation": bool(on)},
}


class OpenVino:
    """One pipeline. Its requests are answered in steps; all that wait are batched."""

    def __init__(self, opening: Opening) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai = openvino, openvino_genai
        self.opening, self.settings = opening, opening.settings
        self.requests = 0
        self.scorer: OpenVino | None = None
        place = folder(opening.model, opening.fingerprint)
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(place), self._scheduler(), "CPU", self._properties(opening.dtype)
        )

    def _properties(self, dtype: str) -> dict[str, Any]:
        """Settings of the device. Keys and values each have their own precision where one of them is said."""
        share = int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, threads.cores() // max(1, env.workers()))
        found = {_DTYPE: DTYPES[dtype], _THREADS: share}
        found |= {name: value for name, value in self.settings.items() if name.isupper()}
        if _K in found or _V in found:
            found.pop(_KV, None)
            found[_K], found[_V] = precisions(self.settings)
        return found

    def _scheduler(self) -> Any:
        config = self.genai.SchedulerConfig()
        if not {"cache_size", "num_kv_blocks"} & set(self.settings):
            config.cache_size = GIB
        for name, value in self.settings.items():
            if not name.isupper() and "." not in name:
                setattr(config, name, value)
        if self.settings.get("use_cache_eviction"):
            config.cache_eviction_config = self._eviction()
        if self.settings.get("use_sparse_attention"):
            found = self._nested(_SPARSE)
            if "mode" in found:
                found["mode"] = getattr(self.genai.SparseAttentionMode, found["mode"])
            config.sparse_attention_config = self.genai.SparseAttentionConfig(**found)
        return config

    def _eviction(self) -> Any:
        found = {**_SIZES, "aggregation_mode": "NORM_SUM", **self._nested(_EVICTION)}
        found["aggregation_mode"] = getattr(self.genai.AggregationMode, found["aggregation_mode"])
        if crush := self._nested(_CRUSH):
            if "anchor_point_mode" in crush:
                crush["anchor_point_mode"] = getattr(self.genai.KVCrushAnchorPointMode, crush["anchor_point_mode"])
            found["kvcrush_config"] = self.genai.KVCrushConfig(**crush)
        return self.genai.CacheEvictionConfig(**found)

    def _nested(self, prefix: str) -> dict[str, Any]:
        """The settings right below a prefix, by their own names."""
        found = {name.removeprefix(prefix): value for name, value in self.settings.items() if name.startswith(prefix)}
        return {name: value for name, value in found.items() if "." not in name}

    def _send(self, ids: Sequence[int], limit: int, ends: frozenset[int], echo: bool = False) -> Any:
        """Hand a request in. Nothing of the model's generation_config.json counts: greedy, without penalties."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.logprobs, config.echo = limit, False, 1, echo
        config.ignore_eos = not ends
        if ends:
            config.eos_token_id, config.stop_token_ids = min(ends), set(ends)
        import numpy as np

        self.requests += 1
        return self.pipeline.add_request(self.requests, self.ov.Tensor(np.array([ids], dtype=np.int64)), config)

    def _result(self, handle: Any, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Tokens and log-probabilities of a request that is over. Raises MethodFailed where it was not served."""
        if handle.get_status() == self.genai.GenerationStatus.IGNORED:
            raise MethodFailed(f"openvino did not serve a prompt of {len(ids)} tokens: its pool has no room for it")
        (found,) = handle.read_all()
        return tuple(found.generated_ids), tuple(found.generated_log_probs)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See Served. `chunks` counts the steps until the first token: exact for a prompt that is alone."""
        start = time.perf_counter()
        handles = [self._send(one.ids, one.limit, one.ends) for one in prompts]
        steps, first, last = 0, [(0, 0.0)] * len(prompts), [0.0] * len(prompts)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            steps, now = steps + 1, time.perf_counter() - start
            for at, handle in enumerate(handles):
                if not first[at][0] and handle.can_read():
                    first[at] = (steps, now)
                if not last[at] and handle.get_status() != self.genai.GenerationStatus.RUNNING:
                    last[at] = now
        replies = []
        for one, handle, (chunks, soon), late in zip(prompts, handles, first, last, strict=True):
            tokens, log_probs = self._result(handle, one.ids)
            replies.append(Reply(tokens, log_probs, bool(tokens) and tokens[-1] in one.ends, chunks, soon, late))
        return replies

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """See Served: the engine echoes a prompt with its log-probabilities, and generates nothing.

        Of what comes from the prefix cache it echoes none: beside that, texts are scored in a pipeline without one.
        """
        if self.settings.get("enable_prefix_caching"):
            if self.scorer is None:
                plain = {name: value for name, value in self.settings.items() if name != "enable_prefix_caching"}
                self.scorer = OpenVino(replace(self.opening, settings=plain))
            return self.scorer.score(texts)
        handles = [self._send(ids, 0, frozenset(), echo=True) for ids, _ in texts]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        found = []
        for (ids, start), handle in zip(texts, handles, strict=True):
            tokens, log_probs = self._result(handle, ids)
            if tokens != tuple(ids) or len(log_probs) != len(tokens):
                raise MethodFailed(f"openvino echoed {len(log_probs)} log-probabilities for {len(ids)} tokens")
            found.append(list(log_probs[start:]))
        return found

    def weigh(self, prompt: Prompt) -> Held:
        """See Served: the share of the pool that is in use, times its bytes, step by step."""
        if "u4" in precisions(self.settings):
            raise MethodUnsupported("openvino-genai counts u4 as a byte for each number, which takes half of one")
        handle = self._send(prompt.ids, prompt.limit, prompt.ends)
        behind, used = 0.0, 0.0
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            metrics = self.pipeline.get_metrics()
            used = metrics.cache_usage / 100 * metrics.kv_cache_size_in_bytes
            if not behind and handle.can_read():
                behind = used
        self._result(handle, prompt.ids)
        slots = -(-len(prompt.ids) // BLOCK) * BLOCK
        each = round(behind / slots)  # usage is told in single precision
        kept = round(used / each / BLOCK) * BLOCK
        return Held(each * slots, slots, each * kept, kept)

    def cancel(self, prompt: Prompt, tokens: int) -> bool:
        """See Served: after as many steps as it takes."""
        piece = int(str(self.settings.get("max_num_batched_tokens", PIECE)))
        handle = self._send(prompt.ids, prompt.limit, prompt.ends)
        for _ in range(steps_until(prompt, tokens, piece)):
            self.pipeline.step()
        running = bool(self.pipeline.has_non_finished_requests())
        handle.cancel()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return running

    def counts(self) -> Counts:
        """See Served: the bytes of its pool, which is made for the first prompt. It counts no steps."""
        return Counts(pool=self.pipeline.get_metrics().kv_cache_size_in_bytes)

    def flush(self) -> None:
        """The engine has no such call."""
        raise MethodUnsupported("openvino-genai empties its prefix cache only with the pipeline")

    def close(self) -> None:
        """Drop the pipeline with its pool."""
        if self.scorer is not None:
            self.scorer.close()
        del self.pipeline


ENGINE = EngineInfo(
    name="openvino",
    summary="OpenVINO GenAI's continuous batching, in this process",
    package="openvino-genai",
    modules=("openvino", "openvino_genai"),
    extra="openvino",
    keys=KEYS,
    block=BLOCK,
    dtypes=tuple(DTYPES),
    open=OpenVino,
    can=frozenset({SCORES, WEIGHS, CANCELS, COUNTS}),
    expect=expect,
    claims=claims,
    ways=WAYS,
    uses=uses,
)
