"""A backend that is no transformers process: it asks table_server.py. A copy becomes a conftest.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from kvcheck import Answer, MethodFailed
from kvcheck.core import paths

HERE = Path(__file__).parent


class Words:
    """The tokenizer of the embedded model, without the model."""

    bos, eos = (0,), frozenset({1})

    def __init__(self):
        self._tokenizer = Tokenizer.from_file(str(paths.bundle("fixtures") / "mini" / "tokenizer.json"))

    def encode(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self._tokenizer.decode(list(ids))


class Table:
    """What is asked over the socket."""

    model_name, fingerprint, max_length, decoding = "table", "7ab1e07ab1e07ab1", 4096, "looked up"

    def __init__(self):
        self.lacks = {
            "fork": "the table has whole prompts",
            "log_probs": "the table has no probabilities",
            "memory": "a table caches nothing",
            "latency": "the seconds of a socket say nothing of a method",
        }
        self.encoder = Words()
        command = [sys.executable, str(HERE / "table_server.py"), str(HERE / "table.json")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        port = int(server.stdout.readline())
        self._lines = socket.create_connection(("127.0.0.1", port)).makefile("rw", encoding="utf-8")

    def answer(self, method_spec, prompts):
        return [self._asked(method_spec, ids) for ids, limit in prompts]

    def _asked(self, method_spec, ids):
        self._lines.write(json.dumps({"prompt": ids}) + "\n")
        self._lines.flush()
        said = json.loads(self._lines.readline())
        if "error" in said:
            raise MethodFailed(f"{method_spec}: {said['error']}")
        return Answer(tuple(said["answer"]), ended=True)


def pytest_kvcheck_open(settings):
    return Table()


def pytest_sessionfinish():
    (HERE / "torch.txt").write_text(str("torch" in sys.modules))
