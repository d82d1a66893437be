"""The real huggingface_hub against a Hub on this machine: pinned, cached, gated and renamed data sets."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow.json
import pyarrow.parquet
import pytest
from benchmark_help import rows

from kvcheck.core.paths import bundle
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks

ROWS = bundle("fixtures") / "data" / "benchmarks"
ONE = DATA_SETS["scbench/kv"]
FILE = "scbench_kv/test-00000-of-00001.parquet"
READ = """
import json
from kvcheck.core.errors import KvcheckError
from kvcheck.tasks.benchmarks import benchmark_tasks
try:
    print(json.dumps(benchmark_tasks("hub").get("scbench/kv").loader.rows.get(0)[1]["multi_turns"]))
except KvcheckError as error:
    print(error)
"""


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks about one data set. status: of every answer; code: what the Hub calls it."""

    def __init__(self, content: bytes, status: int = 200, code: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.status, self.code = content, status, code
        self.paths: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def do_HEAD(self) -> None:
        self._send(b"", len(self.server.content))

    def do_GET(self) -> None:
        tree = [{"type": "file", "path": FILE, "size": len(self.server.content), "oid": "0" * 40}]
        body = json.dumps(tree).encode() if self.path.startswith("/api/") else self.server.content
        self._send(body, len(body))

    def _send(self, body: bytes, length: int) -> None:
        hub = self.server
        known = "/microsoft/SCBench/" in self.path
        if known:  # it may ask for things of its own
            hub.paths.append(self.path)
        status = hub.status if known else 404
        if status >= 400:
            body = b'{"error": "no"}'
            length = len(body)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", hashlib.sha256(hub.content).hexdigest())
        self.send_header("X-Repo-Commit", ONE.revision)
        if hub.code:
            self.send_header("X-Error-Code", hub.code)
            self.send_header("X-Error-Message", "no")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """The local rows as the file of the Hub."""
    pyarrow.parquet.write_table(pyarrow.json.read_json(ROWS / "scbench" / "scbench_kv.jsonl"), tmp_path / "x")
    return (tmp_path / "x").read_bytes()


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[object]:
    """Read the first row in a process of its own, from a Hub that is there for so long; its paths and what was said."""

    def asked(hub: Hub) -> tuple[list[str], str]:
        Thread(target=hub.serve_forever, daemon=True).start()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}
        env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        try:
            done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, timeout=120)
        finally:
            hub.shutdown()
            hub.server_close()
        return hub.paths, done.stdout + done.stderr[-2000:] * (not done.stdout)

    return asked


def test_a_file_is_fetched_at_the_pinned_revision_and_once_only(content, ask):
    expected = next(iter(rows(benchmark_tasks(str(ROWS)).source, "scbench/kv")))["multi_turns"]
    paths, said = ask(Hub(content))
    assert json.loads(said) == expected
    assert any(path.endswith(f"/resolve/{ONE.revision}/{FILE}") for path in paths)
    assert all(ONE.revision in path for path in paths)
    paths, said = ask(Hub(content))
    assert json.loads(said) == expected
    assert not any("/resolve/" in path for path in paths)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated"),
        (401, "RepoNotFound", "was not found"),
        (404, "RevisionNotFound", "was not found"),
    ],
)
def test_a_gated_and_a_renamed_data_set_are_told_apart(status, code, message, content, ask):
    _, said = ask(Hub(content, status, code))
    assert f"microsoft/SCBench on the Hub {message}" in said
