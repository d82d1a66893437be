"""What a server says, read: answers that stream, log-probabilities of prompts, metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kvcheck.backends.engines.base import Prompt, Reply
from kvcheck.backends.engines.dialects import Dialect, taken
from kvcheck.core.errors import MethodFailed


class Said:
    """What a server has said to a prompt so far. heard: times that it told tokens. first, last: seconds."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.tokens: list[int] = []
        self.text = ""
        self.heard = 0
        self.log_probs: list[float] = []
        self.finish: str | None = None
        self.read: int | None = None
        self.cached: int | None = None
        self.cut = False
        self.first = self.last = 0.0

    @property
    def done(self) -> bool:
        """It has said why it ended."""
        return self.finish is not None

    def take(self, event: Any, now: float) -> None:
        """One more event."""
        dialect = self.dialect
        tokens = taken(event, dialect.tokens)
        log_probs = taken(event, dialect.log_probs) if dialect.log_probs else None
        if dialect.texts:
            self.text += tokens or ""
        elif dialect.whole:
            self.tokens, self.log_probs = tokens or self.tokens, log_probs or self.log_probs
        else:
            self.tokens += tokens or []
            self.log_probs += log_probs or []
        if tokens:
            self.heard += 1
            self.first, self.last = self.first or now, now
        finish = taken(event, dialect.finish)
        self.finish = finish if finish not in (None, "none") else self.finish
        self.read = taken(event, dialect.read) or self.read
        cached = taken(event, dialect.cached) if dialect.cached else None
        self.cached = self.cached if cached is None else cached
        self.cut = self.cut or bool(dialect.cut and taken(event, dialect.cut))

    def reply(self, prompt: Prompt, ids: Callable[[str], list[int]]) -> Reply:
        """All of it. Raises MethodFailed for what is none."""
        name = self.dialect.name
        tokens = ids(self.text) if self.dialect.texts else self.tokens
        log_probs = self.log_probs if self.dialect.log_probs else [0.0] * len(tokens)  # as if sure: tokens count
        if not self.done:
            raise MethodFailed(f"{name} ended in the middle of an answer, after {len(tokens)} tokens")
        if self.finish not in (*self.dialect.stops, "length", "limit"):
            raise MethodFailed(f"{name} ended an answer with {self.finish!r}, after {len(tokens)} tokens")
        if len(log_probs) != len(tokens) or not all(isinstance(one, (int, float)) for one in log_probs):
            raise MethodFailed(
                f"{name} gave {len(log_probs)} log-probabilities for {len(tokens)} tokens", "it must tell one of each"
            )
        ended = self.finish in self.dialect.stops and bool(prompt.ends)
        if ended and (not tokens or tokens[-1] not in prompt.ends):  # kept to itself
            tokens, log_probs = [*tokens, min(prompt.ends)], [*log_probs, 0.0]
        return Reply(tuple(tokens), tuple(log_probs), ended, None, self.first, self.last, self.cached)


def log_prob(told: Any, token: int) -> float | None:
    """Of a token of a prompt: [log-probability, id, …], or by id."""
    if isinstance(told, list) and told:
        return told[0]
    return taken(told, f"{token}.logprob")


def flat(told: Any, before: str = "") -> dict[str, float]:
    """Numbers of nested JSON by their places."""
    found: dict[str, float] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}.")
        elif isinstance(value, (int, float)):
            found[before + name] = float(value)
    return found


def prometheus(text: str) -> dict[str, float]:
    """Samples of the Prometheus text format, see Server._metrics."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?", line)
        if line.startswith("#") or match is None:
            continue
        name, labels, value = match[1], match[2] or "", match[3]
        found[name] = found.get(name, 0.0) + float(value)
        for label, said in re.findall(r'(\w+)="([\d.]+)"', labels):
            found[f"{name}.{label}"] = float(said)
    return found
