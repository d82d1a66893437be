"""How kinds of servers are spoken to, as a table: what each is sent, and where it says what. Facts, not code.

Places in JSON are names and numbers with dots between them; `*` takes all of a list. Sources: the engines' own
documentation and code, November 2026 (vLLM 0.32, llama.cpp b11739, SGLang 0.5.23, TensorRT-LLM 1.3, transformers 5.24).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dialect:
    """One kind of server.

    owner: whom /v1/models says models belong to; "" where it does not tell, and `sign` is (path, text that it has).
    path: what takes a prompt. body: what is sent with each. prompt, limit, ends, endless: places of the ids (a text
    where `texts`), the length of the answer, the ids that end it, and the flag that lets it run to its limit.

    In the events that come back: tokens and log_probs of what is new (of all so far where `whole`), finish: why it
    ended, one of `stops` for an end token; read, cached: tokens of the prompt, and those of them from a cache; cut:
    true where the prompt was cut.

    salt: the field that keeps tenants apart. anew: what is sent so that nothing comes from a cache. flush: path that
    empties it. score: what is sent for log-probabilities of a prompt, scored: where they come. tokenize: (path, body,
    place of the ids); the text goes into the field that is empty. version: (path, place). longest: (path, place) of the
    tokens of a context. counters: names in /metrics of kvcheck.backends.engines.base.Counts; `usage` is a share,
    `blocks` what it is of, `spare` blocks of these are never in use. turn_on: what a server is started with to tell
    what it keeps to itself, by what is missing.
    """

    name: str
    owner: str
    path: str
    body: Mapping[str, Any]
    prompt: str
    limit: str
    tokens: str
    finish: str
    read: str
    ends: str = ""
    endless: str = ""
    texts: bool = False
    whole: bool = False
    log_probs: str = ""
    stops: frozenset[str] = frozenset({"stop"})
    cached: str = ""
    cut: str = ""
    salt: str = ""
    anew: Mapping[str, Any] = field(default_factory=dict)
    flush: str = ""
    score: Mapping[str, Any] = field(default_factory=dict)
    scored: str = ""
    tokenize: tuple[str, Mapping[str, Any], str] | None = None
    version: tuple[str, str] | None = None
    longest: tuple[str, str] | None = None
    sign: tuple[str, str] | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    spare: int = 0
    turn_on: Mapping[str, str] = field(default_factory=dict)


_OPENAI: Mapping[str, Any] = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
_USAGE = "usage.prompt_tokens_details.cached_tokens"

DIALECTS = {
    one.name: one
    for one in (
        Dialect(
            name="vllm",
            owner="vllm",
            path="/v1/completions",
            body={**_OPENAI, "logprobs": 1, "return_token_ids": True, "add_special_tokens": False, "seed": 0},
            prompt="prompt",
            limit="max_tokens",
            ends="stop_token_ids",
            endless="ignore_eos",
            tokens="choices.0.token_ids",
            log_probs="choices.0.logprobs.token_logprobs",
            finish="choices.0.finish_reason",
            read="usage.prompt_tokens",
            cached=_USAGE,
            salt="cache_salt",
            flush="/reset_prefix_cache",
            score={"prompt_logprobs": 0, "max_tokens": 1},
            scored="choices.0.prompt_logprobs",
            tokenize=("/tokenize", {"prompt": "", "add_special_tokens": False}, "tokens"),
            version=("/version", "version"),
            longest=("/v1/models", "data.0.max_model_len"),
            counters={
                "steps": "vllm:iteration_tokens_total_count",
                "preempted": "vllm:num_preemptions_total",
                "drafted": "vllm:spec_decode_num_draft_tokens_total",
                "accepted": "vllm:spec_decode_num_accepted_tokens_total",
                "usage": "vllm:kv_cache_usage_perc",
                "blocks": "vllm:cache_config_info.num_gpu_blocks",
                "block": "vllm:cache_config_info.block_size",
            },
            spare=1,
            turn_on={"cached": "--enable-prompt-tokens-details", "flush": "VLLM_SERVER_DEV_MODE=1"},
        ),
        Dialect(
            name="sglang",
            owner="sglang",
            path="/generate",
            body={"stream": True, "return_logprob": True, "sampling_params": {"temperature": 0}},
            prompt="input_ids",
            limit="sampling_params.max_new_tokens",
            ends="sampling_params.stop_token_ids",
            endless="sampling_params.ignore_eos",
            whole=True,
            tokens="output_ids",
            log_probs="meta_info.output_token_logprobs.*.0",
            finish="meta_info.finish_reason.type",
            read="meta_info.prompt_tokens",
            cached="meta_info.cached_tokens",
            salt="extra_key",
            flush="/flush_cache",
            score={"sampling_params": {"temperature": 0, "max_new_tokens": 1}, "logprob_start_len": 0},
            scored="meta_info.input_token_logprobs",
            tokenize=("/tokenize", {"prompt": "", "add_special_tokens": False}, "tokens"),
            version=("/get_server_info", "version"),
            longest=("/v1/models", "data.0.max_model_len"),
            counters={
                "preempted": "sglang:num_retracted_requests_total",
                "used": "sglang:num_used_tokens",
                "room": "sglang:max_total_num_tokens",
            },
            turn_on={"counters": "--enable-metrics"},
        ),
        Dialect(
            name="llamacpp",
            owner="llamacpp",
            path="/completion",
            body={"temperature": 0, "stream": True, "n_probs": 1, "return_tokens": True, "cache_prompt": True},
            prompt="prompt",
            limit="n_predict",
            endless="ignore_eos",
            tokens="tokens",
            log_probs="completion_probabilities.*.logprob",
            finish="stop_type",
            stops=frozenset({"eos", "word"}),
            read="tokens_evaluated",
            cached="timings.cache_n",
            cut="truncated",
            anew={"cache_prompt": False},
            tokenize=("/tokenize", {"content": "", "add_special": False}, "tokens"),
            version=("/props", "build_info"),
            longest=("/props", "default_generation_settings.n_ctx"),
            counters={
                "steps": "llamacpp:n_decode_total",
                "accepted": "llamacpp:spec_decode_num_accepted_tokens_total",
            },
            turn_on={"counters": "--metrics"},
        ),
        Dialect(
            name="tensorrt_llm",
            owner="tensorrt_llm",
            path="/v1/completions",
            body={**_OPENAI, "logprobs": 1, "detokenize": False, "add_special_tokens": False},
            prompt="prompt",
            limit="max_tokens",
            ends="stop_token_ids",
            endless="ignore_eos",
            tokens="choices.0.token_ids",
            log_probs="choices.0.logprobs.token_logprobs",
            finish="choices.0.finish_reason",
            read="usage.prompt_tokens",
            cached=_USAGE,
            version=("/version", "version"),
            counters={
                "blocks_used": "kvCacheStats.usedNumBlocks",
                "blocks": "kvCacheStats.maxNumBlocks",
                "block": "kvCacheStats.tokensPerBlock",
            },
            turn_on={"counters": "enable_iter_perf_stats: true"},
        ),
        Dialect(
            name="transformers",
            owner="",
            sign=("/openapi.json", "/load_model"),
            path="/v1/completions",
            body={"temperature": 0, "stream": True},
            prompt="prompt",
            limit="max_tokens",
            texts=True,
            tokens="choices.0.text",
            finish="choices.0.finish_reason",
            read="usage.prompt_tokens",
        ),
    )
}
"""By name, as `kind` takes them."""


@dataclass(frozen=True)
class Launch:
    """How a server of a kind is started in an environment of its own (`kvcheck engine start`).

    modules: what that environment's python must have; `words` are given to that python then. program: an executable
    beside that python which is run instead. words: what stands before the user's own arguments. host, port: the flags
    of the address. ready: the path that says 200 once it serves. pip: what installs it. example: arguments that it
    needs at least.
    """

    words: tuple[str, ...]
    example: str
    pip: str = ""
    modules: tuple[str, ...] = ()
    program: str = ""
    host: str = "--host"
    port: str = "--port"
    ready: str = "/health"


LAUNCHES = {
    "vllm": Launch(
        words=("-m", "vllm.entrypoints.openai.api_server"),
        modules=("vllm",),
        pip="vllm",
        example="--model FOLDER --enable-prompt-tokens-details",
    ),
    "sglang": Launch(
        words=("-m", "sglang.launch_server"),
        modules=("sglang",),
        pip="sglang",
        example="--model-path FOLDER --enable-metrics",
    ),
    "llamacpp": Launch(words=(), program="llama-server", example="-m FILE.gguf --metrics"),
    "transformers": Launch(
        words=("-m", "transformers.cli.transformers", "serve"),
        modules=("transformers", "fastapi", "uvicorn", "openai"),
        pip="transformers[serving]",
        example="FOLDER --continuous-batching",
    ),
}
"""By kind. Sources as above; only `transformers` was started for real, from 5.24."""


def taken(said: Any, place: str) -> Any:
    """What stands at a place, None where nothing does.

    >>> taken({"a": [{"b": 1}, {"b": 2}]}, "a.*.b")
    [1, 2]
    """
    for at, part in enumerate(parts := place.split(".")):
        if part == "*" and isinstance(said, list):
            return [taken(one, ".".join(parts[at + 1 :])) for one in said]
        if isinstance(said, dict):
            said = said.get(part)
        elif isinstance(said, list) and part.isdigit() and int(part) < len(said):
            said = said[int(part)]
        else:
            return None
    return said


def put(body: dict[str, Any], place: str, value: Any) -> None:
    """Write a value to a place; what is on the way there is copied, not changed.

    >>> put(body := {"a": {"b": 1}}, "a.c", 2); body
    {'a': {'b': 1, 'c': 2}}
    """
    first, _, rest = place.partition(".")
    if not rest:
        body[first] = value
        return
    body[first] = dict(body.get(first) or {})
    put(body[first], rest, value)
