"""Parts of .ci/gpu that are no command of kvcheck: facts of the machine, the table so far, the slowest decode step."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcheck.backends.transformers import Session

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy", "scipy", "pytest", "rapidfuzz")
ROWS = 30
"""Operations that are listed, the most expensive first."""
WARM = 3
"""Steps before the one that is looked at: the first ones make room and choose kernels."""


def facts(device: str) -> int:
    """What the machine is; 3 where there is nothing to measure on, 1 where `kvcheck doctor` is not content."""
    import torch

    from kvcheck.cli import commands

    print(datetime.now(timezone.utc).isoformat(timespec="seconds"), sys.version, flush=True)
    for command in (["nvidia-smi"], ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"]):
        try:
            subprocess.run(command, check=False)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", flush=True)
    for name in PACKAGES:
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not there")
    content = commands.main(["doctor"])
    if device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing is measured")
        return 3
    return content


def table(path: str) -> int:
    """What `kvcheck speed` has measured so far, as Markdown."""
    from kvcheck.report import speed
    from kvcheck.store.run_file import read_run

    run = read_run(path)
    print(*speed.markdown(run), sep="\n")
    return 0 if run.cases else 1


def step(path: str, device: str) -> int:
    """Operation by operation, a decode step of the method that is slowest beside fp16, and one of fp16."""
    from kvcheck.backends.transformers import Session
    from kvcheck.core.settings import Settings
    from kvcheck.report.speed import timed
    from kvcheck.store.run_file import read_run

    run = read_run(path)
    rows = [(one, row) for row in run.cases if row.method != "fp16" and (one := timed(row, "tpot")) is not None]
    if not rows:
        print("no row with a decode step: nothing to look at")
        return 1
    one, row = max(rows, key=lambda pair: pair[0].ratio)
    print(f"slowest beside fp16: {row.method} at {one.length} tokens, {one.ratio:.2f} times fp16's step")
    session = Session.open(Settings(model=run.header.model_name, methods=(row.method,), device=device))
    for method in (row.method, "fp16"):
        print(f"\n{method}, one token behind {one.length}\n{_profiled(session, method, one.length)}", flush=True)
    return 0


def _profiled(session: Session, method: str, length: int) -> str:
    """The table of torch's profiler for one step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from kvcheck.backends.transformers import bench
    from kvcheck.methods import make

    loaded = session.loaded
    runner, cuda = make(method).runner(loaded), loaded.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.inference_mode():
        cache, logits = runner.prefill(bench.prompt(loaded, length))
        token = logits.argmax(-1, keepdim=True)
        for _ in range(WARM):
            token = runner.feed(cache, token)[:, -1].argmax(-1, keepdim=True)
        if cuda:
            torch.cuda.synchronize()
        with profile(activities=activities) as found:
            runner.feed(cache, token)
            if cuda:
                torch.cuda.synchronize()
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60))


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.exit({"facts": facts, "table": table, "step": step}[name](*rest))
