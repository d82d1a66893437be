"""One-line faults planted into snapkv turn the gate red, and the message says what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLUGIN = """
import pytest
import torch


@pytest.hookimpl
def pytest_collection_finish():
    from kvcheck.cache import scoring
    from kvcheck.methods import snapkv
    from kvcheck.cache.layer import CacheLayer

    {fault}
"""

FAULTS = {
    "one_slot_too_few": """
    def prefix(self, layers, index, prompt):
        return self.cap(prompt) - self.window - 1
    snapkv.SnapKV.prefix = prefix
""",
    "values_by_the_wrong_index": """
    right = CacheLayer.keep
    def keep(self, index, spare=0):
        values = self.v
        self.v = None
        buffers = CacheLayer._buffers
        CacheLayer._buffers = lambda self: [buffer for buffer in buffers(self) if buffer is not None]
        try:
            right(self, index, spare)
        finally:
            CacheLayer._buffers = buffers
        values.keep((index + 1) % self.seen, spare)
        self.v = values
    CacheLayer.keep = keep
""",
    "the_second_sample_is_skipped": """
    right = scoring.top
    def top(scores, count):
        scores = scores.clone()
        scores[1:2] = 0
        return right(scores, count)
    scoring.top = top
""",
    "the_window_is_forgotten": """
    def compress(self, queries):
        method, prompt = self.method, self.stored
        if prompt <= method.cap(prompt):
            return
        prefix = prompt - method.window
        scores = scoring.window_scores(queries[:, :, -method.window :], self.keys, self.scaling)
        scores = scoring.pool(scores[:, :, :prefix], method.kernel, method.pooling)
        self.keep(scoring.top(scores, method.cap(prompt)))
    snapkv.SnapLayer.compress = compress
""",
}
SAID = {
    "one_slot_too_few": "slot",
    "values_by_the_wrong_index": "values",
    "the_second_sample_is_skipped": "snapkv",
    "the_window_is_forgotten": "protected",
}


def gate(folder, *options):
    command = [sys.executable, "-m", "pytest", "--pyargs", "kvcheck.suites", "--kv-method=snapkv", *options]
    command += ["--kv-tasks=kv,needle_multi", "--kv-lengths=512", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_turns_the_gate_red(name, tmp_path):
    body = FAULTS[name].strip("\n")
    (tmp_path / "planted.py").write_text(PLUGIN.replace("    {fault}", body))
    done = gate(tmp_path, "-p", "planted")
    assert done.returncode == 1, done.stdout + done.stderr
    assert SAID[name] in done.stdout


def test_without_a_fault_the_same_run_is_green(tmp_path):
    done = gate(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
