"""What a grid takes on paper: `python -m kvcheck.sweep.cost` prints the tables of docs/reference/sweep_cost.md.

LongBench, SCBench and RULER for 28 methods x 4 models of 8 B with a limit of 131,072 tokens on GPUs like an H200. Rows,
answer limits and modes are those of the data sets in kvcheck/tasks; seconds are those of docs/reference/speed.md, and
beyond 32,768 tokens reckoned from them; groups are given out by the scheduler itself (schedule.py), on a clock instead
of workers. What is an assumption is a constant here, and says so.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

from kvcheck.core.record import CaseId
from kvcheck.sweep.pools import Pool
from kvcheck.sweep.schedule import Group, Schedule
from kvcheck.sweep.worker import Done, Job

MODELS, METHODS, LIMIT, HOUR = 4, 28, 131_072, 3600
GPUS = (1, 8, 16, 32, 64, 128, 256, 512)
OWN_PREFILL = 9
"""Methods that read the prompt in a way of their own, and so share no prefill: the table "On a CPU" of speed.md."""
TTFT = {8192: 0.2479, 32768: 1.38}
TPOT = {8192: 0.0208, 32768: 0.0239}
"""Seconds of fp16 at a length, one sequence, as measured: Llama 3.1 8B in bfloat16 on an H200, speed.md."""
STEP = (1.03, 2.33, 2.14, 0.96, 1.20, 3.27, 1.65)
"""A decode step as a multiple of fp16's, of the 7 methods that were measured (at 32,768 tokens; `flexgen` and `tova` at
8,192). Assumption: the mean of the other 21 is theirs."""
LENGTHS = {"longbench": 10_000, "scbench": LIMIT, "ruler": LIMIT}
"""Tokens of a context. Assumption: LongBench's rows have about 10,000 on average, of SCBench all reach the limit."""
TURNS = {"longbench": 1, "scbench": 5, "ruler": 1}
"""Questions of a context. Assumption: SCBench has 5 (its own script asks no more)."""
MODES = {"longbench": 1, "scbench": 2, "ruler": 1}
"""multi_request, and multi_turn where there is one."""
RULER_ROWS = 500
"""Contexts of a task of RULER, as its authors take."""
AROUND = 0.1
"""Seconds around a block: the proof that the model is unchanged, audit, copies, grading. Assumption, not measured."""
LOADING = 60.0
"""Seconds until a worker has another model. Assumption."""
TAKING = 0.008
"""Seconds for which one block keeps the process that gives out work. Measured: 13 ms of a CPU to take, send and write a
record of 500 contexts, so 7 on average while it grows from none. Assumption: 1 ms more for the disk to take it."""
BODY, HEAD, WEIGHTS = 6.9796e9, 0.5253e9, 15.01e9
"""Llama 3.1 8B: parameters that every token is multiplied with, those of the head; bytes of both."""


FACTORS = (*STEP, *[sum(STEP) / len(STEP)] * (METHODS - len(STEP)))
PIECES = 4
"""Pieces of a group's contexts that the clock knows."""


@dataclass(frozen=True)
class Part:
    """One data set on one model, in seconds of one context on one GPU: its prompt, and all answers of fp16 to it in one
    mode. least: the same two by the roofline."""

    suite: str
    case: CaseId
    prompt: float
    answers: float
    least: tuple[float, float]

    @property
    def modes(self) -> int:
        """In which it is asked."""
        return MODES[self.suite]

    @property
    def hours(self) -> tuple[float, ...]:
        """(shared prefills, own prefills, decoding, around, all, by the roofline), on one model."""
        asked = self.modes * OWN_PREFILL
        spent = [self.prompt, self.prompt * asked, self.answers * self.modes * sum(FACTORS)]
        spent += [AROUND * self.modes * METHODS]
        floor = self.least[0] * (1 + asked) + self.least[1] * self.modes * METHODS
        return tuple(one * self.case.n / HOUR for one in (*spent, sum(spent), floor))


def prefill(tokens: int) -> float:
    """Seconds of a dense prompt: a·n + b·n² through the two lengths that were measured."""
    (n, s), (m, t) = sorted(TTFT.items())
    square = (t / m - s / n) / (m - n)
    return tokens * (s / n - square * n) + square * tokens**2


def step(tokens: int) -> float:
    """Seconds of fp16's decode step: a line through the two lengths that were measured."""
    (n, s), (m, t) = sorted(TPOT.items())
    return s + (t - s) * (tokens - n) / (m - n)


def floors(tokens: int) -> tuple[float, float]:
    """(prompt, decode step of the full cache) by the roofline of an H200."""
    from kvcheck.cache.shape import ModelShape
    from kvcheck.measure.roofline import DEVICES, Model

    shape = ModelShape(layers=32, heads=32, kv_heads=8, head_dim=128, itemsize=2)
    model, device = Model(shape, int(WEIGHTS), int(BODY), int(HEAD)), DEVICES["NVIDIA H200"]
    one = model.decode(1, shape.dense_bytes(1, tokens), tokens)
    return model.prefill(tokens).seconds(device), one.seconds(device)


def rows() -> Iterator[tuple[str, str, int, int]]:
    """(suite, data set, contexts, answer tokens at most) of the three benchmarks."""
    from kvcheck.tasks import members
    from kvcheck.tasks.benchmarks import DATA_SETS
    from kvcheck.tasks.ruler import counting, niah, qa, tracing

    for one in DATA_SETS.values():
        suite = one.name.partition("/")[0]
        if suite in ("longbench", "scbench") and not one.name.endswith("_e"):
            most = one.max_new_tokens
            yield suite, one.name, one.count, most if isinstance(most, int) else max(most.values())
    limits = {"vt": tracing.NEW_TOKENS, "cwe": counting.CWE_NEW_TOKENS, "fwe": counting.FWE_NEW_TOKENS}
    for name in members("ruler"):
        task = name.partition("/")[2]
        yield "ruler", name, RULER_ROWS, qa.NEW_TOKENS if task[:2] == "qa" else limits.get(task, niah.NEW_TOKENS)


def parts() -> list[Part]:
    """Every data set on one model. Answers are as long as they may be."""
    found = []
    for suite, name, contexts, answer in rows():
        length, steps = LENGTHS[suite], TURNS[suite] * answer
        least = floors(length)
        case = CaseId(name, 1, "multi_request", length, 0, contexts)
        found.append(Part(suite, case, prefill(length), step(length) * steps, (least[0], least[1] * steps)))
    return found


class Ledger:
    """Stands for a book: it counts contexts. settings: the model alone."""

    refused = None

    def __init__(self, model: int) -> None:
        self.path, self.settings = model, SimpleNamespace(model=str(model))
        self.counts: Counter[tuple[CaseId, str]] = Counter()

    def done(self, case: CaseId, method: str) -> int:
        """Contexts of it."""
        return self.counts[case, method]

    so_far = done

    def take(self, case: CaseId, method: str, done: Done) -> bool:
        """A piece more."""
        self.counts[case, method] += piece(case)
        return self.counts[case, method] >= case.n


def piece(case: CaseId) -> int:
    """Contexts that are measured at a time."""
    return -(-case.n // PIECES)


class Clock(Pool):
    """Workers that take the time that their work takes, on a clock of their own; each keeps its last prefills."""

    def __init__(self, count: int, known: Sequence[Part]) -> None:
        super().__init__(count)
        self.now, self.busy = 0.0, list[tuple[float, int]]()
        self.parts = {part.case.task: part for part in known}
        self.models: dict[int, str] = {}
        self.prefills: dict[int, object] = {}
        self.start()

    def _start(self, slot: int) -> None:
        self.idle.add(slot)

    def submit(self, slot: int, job: Job) -> None:
        """Until then it is busy."""
        self.idle.discard(slot)
        part, model, done = self.parts[job.case.task], job.settings.model, cast(int, job.so_far)
        seconds = 0.0 if self.models.get(slot) == model else LOADING
        each = AROUND + part.answers * FACTORS[int(job.method)]
        if int(job.method) >= METHODS - OWN_PREFILL:
            each += part.prompt
        elif self.prefills.get(slot) != (model, job.case.task, done):
            self.prefills[slot] = (model, job.case.task, done)
            each += part.prompt
        self.models[slot] = model
        seconds += each * min(piece(job.case), job.case.n - done)
        heapq.heappush(self.busy, (self.now + seconds, slot))

    def wait(self) -> list[tuple[int, Done | None]]:
        """The next one that is done."""
        self.now, slot = heapq.heappop(self.busy)
        self._ready(slot)
        return [(slot, Done(0))]

    def close(self) -> None:
        """Nothing to end."""


def makespan(known: Sequence[Part], gpus: int) -> float:
    """Hours until all models are measured, by the scheduler that `kvcheck sweep` has."""
    waiting = list[Group]()
    for ledger in map(Ledger, range(MODELS)):
        for part in sorted(known, key=lambda part: -part.case.length * part.case.n):
            modes = ("multi_request", "multi_turn")[: part.modes]
            cases = [replace(part.case, mode=mode) for mode in modes]
            entries = [(case, str(method)) for case in cases for method in range(METHODS)]
            waiting.append(Group(cast(Any, ledger), entries))
    clock = Clock(gpus, known)
    Schedule(waiting).run(clock)
    return clock.now / HOUR


def hours(known: Sequence[Part]) -> list[str]:
    """The first table of the page: GPU hours."""
    lines = ["| GPU hours, 4 models | contexts | shared prefills | own prefills | decoding | around | all | roofline |"]
    lines += ["|---|" + "---:|" * 7]
    for suite in (*LENGTHS, "all"):
        some = [one for one in known if suite in ("all", one.suite)]
        sums = [MODELS * sum(column) for column in zip(*(one.hours for one in some), strict=True)]
        contexts = MODELS * sum(one.case.n for one in some)
        lines.append(f"| {suite} | {contexts:,} | " + " | ".join(f"{one:,.0f}" for one in sums) + " |")
    return lines


def growth(known: Sequence[Part], counts: Sequence[int] = GPUS) -> list[str]:
    """The second table of the page: hours by number of GPUs."""
    total = MODELS * sum(one.hours[4] for one in known)
    blocks = MODELS * METHODS * sum(one.case.n * one.modes for one in known)
    lines = ["| GPUs | hours | of linear | writing, of one core |", "|---:|---:|---:|---:|"]
    for count in counts:
        taken = makespan(known, count)
        lines.append(f"| {count} | {taken:,.1f} | {total / count / taken:.0%} | {blocks * TAKING / HOUR / taken:.1%} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*hours(parts()), "", *growth(parts())]))
