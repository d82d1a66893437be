"""Requests to a server under test: none without a time limit, retries that end, and errors that say what to do.

It is asked where the user said, and nowhere else: redirects are not followed and no proxy is read from the environment.
A key for it comes from the environment, `KVCHECK_API_KEY`, and appears in no message.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from kvcheck.core.errors import KvcheckError, MethodFailed, SpecError

KEY = "KVCHECK_API_KEY"
BUSY = (429, 502, 503, 504)
"""Answers after which a request is sent again."""
TRIES = 4
PAUSE = 0.1
"""Seconds before the second try, twice as many before each further one, where the server does not say how many."""
LONGEST_PAUSE = 5.0
CONNECT = 5.0
"""Seconds in which a connection is made or is not."""
MOST = 64
"""Connections at a time."""


class Gone(MethodFailed):
    """Nobody answers, or no longer."""


class Dropped(Exception):
    """A request that was given up while nothing had been said yet."""


class Http:
    """A server. url: as the user gave it, with /v1 or without. timeout: seconds until the next bytes must be there."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError(f"server: url={url!r} is no URL", 'write url="http://127.0.0.1:8000/v1"')
        if parts.username or parts.password or parts.query:
            raise SpecError("server: a URL holds no key or password", f"export {KEY}=… and leave it out of the URL")
        self.url, self.timeout = url, timeout
        key = os.environ.get(KEY)
        self.client = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            timeout=httpx.Timeout(timeout, connect=min(CONNECT, timeout)),
            limits=httpx.Limits(max_connections=MOST),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def ready(self, wait: float) -> None:
        """Wait until /health says so. Raises SpecError where it does not in so many seconds."""
        until = time.monotonic() + wait
        while True:
            try:
                said: httpx.Response | None = self.client.get("/health", timeout=min(CONNECT, self.timeout))
            except httpx.TransportError:
                said = None
            if said is not None and said.status_code not in BUSY:
                return
            if time.monotonic() >= until:
                break
            time.sleep(PAUSE)
        if said is None:
            raise SpecError(
                f"server: nobody answers at {self.url}",
                f"start it, or name its address; wait={max(60, 2 * wait):g} gives it more seconds to be there",
            )
        raise SpecError(
            f"server: {self.url} is not ready after {wait:g} s: /health says {said.status_code}",
            f"wait={max(60, 10 * wait):g} gives it more seconds",
        )

    def get(self, path: str) -> httpx.Response:
        """What stands at a path, whatever its status."""
        return self._sent(lambda: self.client.get(path))

    def find(self, path: str) -> Any:
        """The JSON at a path, None where there is none."""
        found = self.get(path)
        if found.status_code != httpx.codes.OK:
            self._expect_allowed(found)
            return None
        return self._json(found.text, path)

    def post(self, path: str, body: Any) -> httpx.Response:
        """What is said to a body, whatever its status."""
        return self._sent(lambda: self.client.post(path, json=body))

    def asked(self, path: str, body: Any) -> Any:
        """The JSON that is said to a body. Raises MethodFailed where there is none."""
        said = self.post(path, body)
        self._expect_ok(said, path)
        return self._json(said.text, path)

    def events(self, path: str, body: Any, patience: float | None = None) -> Iterator[Any]:
        """What is said to a body, one event after the other.

        patience: seconds after which it is given up, if nothing has been said. Raises Dropped then, and MethodFailed
        for what is no event.
        """
        with self._streamed(path, body, patience) as said:
            for line in said.iter_lines():
                text = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    if text.startswith("{"):
                        raise MethodFailed(f"{self.url}{path}: {_short(text)}, and no events")
                    continue
                if text == "[DONE]":
                    return
                event = self._json(text, path)
                if isinstance(event, dict) and event.get("error"):
                    raise MethodFailed(f"{self.url}{path}: {_short(event['error'])}")
                yield event

    @contextmanager
    def _streamed(self, path: str, body: Any, patience: float | None) -> Iterator[httpx.Response]:
        given = self.client.timeout if patience is None else httpx.Timeout(self.timeout, read=patience)

        def send() -> httpx.Response:
            return self.client.send(self.client.build_request("POST", path, json=body, timeout=given), stream=True)

        try:
            said = send() if patience is not None else self._sent(send)
            try:
                if said.status_code != httpx.codes.OK:
                    said.read()
                    self._expect_ok(said, path)
                yield said
            finally:
                said.close()
        except httpx.TimeoutException as error:
            if patience is not None:
                raise Dropped from None
            raise self._gone(error) from error
        except httpx.TransportError as error:
            raise self._gone(error) from error

    def _sent(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send, and again while the server is busy. Raises Gone."""
        pause = PAUSE
        for left in reversed(range(TRIES)):
            try:
                said = send()
            except httpx.ConnectError as error:
                if not left:
                    raise self._gone(error) from error
            except httpx.TransportError as error:
                raise self._gone(error) from error
            else:
                if said.status_code not in BUSY or not left:
                    return said
                said.close()
                pause = _asked_pause(said, pause)
            time.sleep(min(pause, LONGEST_PAUSE))
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _gone(self, error: Exception) -> Gone:
        slow = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
        if slow:
            return Gone(
                f"{self.url} has said nothing for {self.timeout:g} s", f"timeout={4 * self.timeout:g} in the spec"
            )
        return Gone(
            f"{self.url} is gone ({type(error).__name__})",
            "start it again, then the same command with --kv-resume goes on where it stopped",
        )

    def _expect_allowed(self, said: httpx.Response) -> None:
        if said.status_code in (401, 403):
            raise SpecError(f"server: {self.url} lets nobody in without a key ({said.status_code})", f"export {KEY}=…")

    def _expect_ok(self, said: httpx.Response, path: str) -> None:
        self._expect_allowed(said)
        if said.status_code == httpx.codes.OK:
            return
        text, status = _short(said.text), said.status_code
        if status in BUSY:
            raise MethodFailed(f"{self.url}{path} has no time, after {TRIES} tries: {status} {text}")
        if status == 404:
            raise KvcheckError(f"{self.url} has no {path}", "another kind=, or another url=")
        raise MethodFailed(f"{self.url}{path} says {status}: {text}")

    def _json(self, text: str, path: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise MethodFailed(f"{self.url}{path} says no JSON: {_short(text)}") from None


def _asked_pause(said: httpx.Response, usual: float) -> float:
    """Seconds of Retry-After, else the usual ones."""
    try:
        return max(0.0, float(said.headers.get("retry-after", usual)))
    except ValueError:  # a date
        return usual


def _short(text: object) -> str:
    """On one line, not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:199]}…"
