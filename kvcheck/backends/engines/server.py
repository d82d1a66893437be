"""A server that runs: vLLM, SGLang, llama.cpp's, TensorRT-LLM's, `transformers serve`, by its URL.

It was set when it was started, by whoever started it. Its reference is another one, `reference=URL`: the same engine
and model, its KV cache at full. What is alike in their dialects is here, what differs in dialects.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Literal
from uuid import uuid4

from kvcheck.backends.engines import meeting
from kvcheck.backends.engines.base import (
    CANCELS,
    COUNTS,
    FLUSHES,
    MEANWHILE,
    PREFIX,
    SALTS,
    SCORES,
    Counts,
    EngineInfo,
    Held,
    Key,
    Opening,
    Prompt,
    Reply,
    Settings,
)
from kvcheck.backends.engines.dialects import DIALECTS, put, taken
from kvcheck.backends.engines.said import Said, flat, log_prob, prometheus
from kvcheck.core.errors import MethodFailed, MethodUnsupported, SpecError

TOGETHER = 32
"""Requests at a time, however many are asked."""
EARLY = (0.4, 0.2, 0.1, 0.6, 0.3)
"""Shares of the time to a first token after which a prompt is dropped, in turn."""
FLUSH_TRIES = 50
"""A flush is refused while anything runs, also what was cancelled a moment ago."""
KEYS = {
    "url": Key(str, cache=True, place=True),
    "reference": Key(str, place=True),
    "kind": Key(Literal[tuple(DIALECTS)]),
    "model": Key(str),
    "reuse": Key(bool, cache=True, full=False),
    "timeout": Key(float, place=True),
    "wait": Key(float, place=True),
}


def expect(settings: Settings) -> None:
    """Raise SpecError for times that are none."""
    for name in ("timeout", "wait"):
        if float(str(settings.get(name, 1))) <= 0:
            raise SpecError(f"server: {name}={settings[name]:g} is no time to wait", f"give seconds: {name}=60")


def full(settings: Settings) -> Settings:
    """The reference, and where there is none the same server: every prompt is read anew."""
    kept = {name: value for name, value in settings.items() if name != "reference"}
    return {**kept, "url": settings.get("reference", settings.get("url", meeting.HERE)), "reuse": False}


def alone(settings: Settings) -> str:
    """See EngineInfo.alone."""
    return "" if "reference" in settings else "the server has no reference=URL, the same one with its KV cache at full"


class Server:
    """One server, asked over HTTP. Requests stream, so that the first token and a cancel have a time."""

    def __init__(self, opening: Opening) -> None:
        settings = opening.settings
        one = meeting.met(settings)
        self.http, self.dialect, self.model = one.http, one.dialect, one.model
        self.folder = opening.model
        self.reuse = settings.get("reuse", True) is True
        self.space, self.sent, self.dropped = uuid4().hex, count(), count()
        self.pace = 0.02
        if "reference" in settings and "model" not in settings:
            meeting.expect_alike(self.http.url, str(settings["reference"]), self.http.timeout)
        if self.reuse and not self.dialect.salt and self.dialect.flush:
            self.flush()

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """See Served."""
        start = time.perf_counter()
        if len(prompts) == 1:
            return [self._answered(prompts[0], start)]
        with ThreadPoolExecutor(min(len(prompts), TOGETHER)) as pool:
            return list(pool.map(lambda one: self._answered(one, start), prompts))

    def _body(self, prompt: Prompt, **more: Any) -> dict[str, Any]:
        """What is sent for a prompt."""
        dialect = self.dialect
        body: dict[str, Any] = {**dialect.body, **more}
        if dialect.path.startswith("/v1/"):
            body["model"] = self.model
        put(body, dialect.prompt, self._text(prompt.ids) if dialect.texts else list(map(int, prompt.ids)))
        if "max_tokens" not in more and "sampling_params" not in more:
            put(body, dialect.limit, prompt.limit)
        if prompt.ends and dialect.ends:
            put(body, dialect.ends, sorted(prompt.ends))
        elif not prompt.ends and dialect.endless:
            put(body, dialect.endless, True)
        if dialect.salt:
            put(body, dialect.salt, f"{self.space}-{prompt.salt}" if self.reuse else f"{self.space}-{next(self.sent)}")
        elif not self.reuse:
            body |= dialect.anew
        return body

    def _answered(self, prompt: Prompt, start: float) -> Reply:
        if not self.reuse and not self.dialect.salt and not self.dialect.anew and self.dialect.flush:
            self.flush()
        said = Said(self.dialect)
        for event in self.http.events(self.dialect.path, self._body(prompt)):
            said.take(event, time.perf_counter() - start)
        reply = said.reply(prompt, self._ids)
        self._expect_read(said, prompt)
        self.pace = reply.first
        return reply

    def _expect_read(self, said: Said, prompt: Prompt) -> None:
        """Raise for a prompt that was not read as it was sent, or was not to come from a cache and did."""
        read, sent, where = said.read, len(prompt.ids), self.http.url
        if said.cut or (read is not None and read < sent):
            cut = "" if read is None else f": {read} of {sent} tokens were read"
            raise MethodFailed(f"{where} cuts prompts{cut}", "start it with a longer context")
        if read is not None and read > sent:
            bos = "it puts a BOS of its own in front" if read == sent + 1 else "something of its own is in front"
            raise MethodFailed(f"{where} read {read} tokens of a prompt of {sent}: {bos}", "send prompts as they are")
        if not self.reuse and said.cached and self.dialect.salt:
            raise MethodFailed(f"{where} read {said.cached} tokens from its prefix cache, of a prompt with a new salt")
        if not self.reuse and said.cached:
            raise MethodUnsupported(
                f"{where} read {said.cached} tokens from its prefix cache, which nothing tells {self.dialect.name} to "
                "leave out",
                "start it without one",
            )

    def _ids(self, text: str) -> list[int]:
        return list(meeting.tokenizer(self.folder).encode(text, add_special_tokens=False).ids)

    def _text(self, ids: Sequence[int]) -> str:
        """The text of a prompt without the token that its tokenizer opens it with: the server does that itself."""
        tokenizer = meeting.tokenizer(self.folder)
        opening = len(tokenizer.encode("", add_special_tokens=True).ids)
        return str(tokenizer.decode(list(ids)[opening:], skip_special_tokens=False))

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """See Served."""
        return [self._scored(ids, start) for ids, start in texts]

    def _scored(self, ids: Sequence[int], start: int) -> list[float]:
        dialect = self.dialect
        body = self._body(Prompt(ids, 1), **dialect.score) | {"stream": False}
        body.pop("stream_options", None)
        if "logprob_start_len" in body:
            body["logprob_start_len"] = start - 1
        told = (taken(self.http.asked(dialect.path, body), dialect.scored) or [])[start - len(ids) :]
        found = [log_prob(one, token) for one, token in zip(told, ids[start:], strict=False)]
        if len(found) != len(ids) - start or any(one is None for one in found):
            raise MethodFailed(f"{self.http.url} gave {len(found)} log-probabilities for {len(ids) - start} tokens")
        return [float(one) for one in found if one is not None]

    def weigh(self, prompt: Prompt) -> Held:
        """Not known from outside."""
        raise MethodUnsupported("a server tells blocks in use, not their bytes")

    def cancel(self, prompt: Prompt, tokens: int) -> bool:
        """See Served: the connection is closed."""
        from kvcheck.backends.engines.http import Dropped

        said = Said(self.dialect)
        patience = None if tokens else self.pace * EARLY[next(self.dropped) % len(EARLY)]
        events = self.http.events(self.dialect.path, self._body(prompt), patience)
        try:
            for event in events:
                said.take(event, 0.0)
                if said.done or said.heard >= max(tokens, 1):
                    break
        except Dropped:
            return True
        finally:
            events.close()  # type: ignore[attr-defined]
        return not said.done and (tokens > 0 or not said.heard)

    def counts(self) -> Counts:
        """See Served, from /metrics."""
        found, names = self._metrics(), self.dialect.counters
        told = {name: found[metric] for name, metric in names.items() if metric in found}
        if not told:
            raise MethodUnsupported(
                f"{self.http.url}/metrics tells nothing of {self.dialect.name}", self._on("counters")
            )
        block, blocks = told.get("block"), told.get("blocks")
        if block is not None and blocks is not None:
            blocks -= self.dialect.spare
            share = told.get("usage")
            in_use = told.get("blocks_used") if share is None else round(share * blocks)
            told |= {"room": blocks * block} | ({} if in_use is None else {"used": in_use * block})
        return Counts(**{name: value for name, value in told.items() if name in Counts.__dataclass_fields__})

    def _metrics(self) -> dict[str, float]:
        """Numbers by name, summed over labels; labels that are numbers as NAME.LABEL."""
        said = self.http.get("/metrics")
        if said.status_code != 200:
            raise MethodUnsupported(f"{self.http.url} has no /metrics", self._on("counters"))
        if said.text.lstrip().startswith("["):
            return flat(said.json()[-1]) if said.json() else {}
        return prometheus(said.text)

    def flush(self) -> None:
        """See Served."""
        for _ in range(FLUSH_TRIES):
            said = self.http.post(self.dialect.flush, {})
            if said.status_code == 404:
                raise MethodUnsupported(f"{self.http.url} has no {self.dialect.flush}", self._on("flush"))
            if said.status_code == 200 and '"success":false' not in said.text.replace(" ", "").lower():
                return
            time.sleep(0.1)
        raise MethodFailed(f"{self.http.url}{self.dialect.flush} is refused: {said.status_code} {said.text[:100]}")

    def _on(self, what: str) -> str:
        """How a server is made to tell."""
        flag = self.dialect.turn_on.get(what)
        return f"start {self.dialect.name} with {flag}" if flag else ""

    def close(self) -> None:
        """See Served."""
        self.http.close()


ENGINE = EngineInfo(
    name="server",
    summary=f"an OpenAI-compatible server that runs: {', '.join(DIALECTS)}",
    package="httpx",
    modules=("httpx",),
    extra="",
    keys=KEYS,
    block=16,
    dtypes=("bfloat16", "float32", "float16"),
    open=Server,
    can=frozenset({SCORES, CANCELS, FLUSHES, SALTS, COUNTS, MEANWHILE}),
    ways={PREFIX: lambda on: {"reuse": bool(on)}},
    expect=expect,
    full=full,
    alone=alone,
    meet=meeting.meet,
)
