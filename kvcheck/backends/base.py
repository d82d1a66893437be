"""What an engine under test must offer, and nothing more: the protocol `Backend`, which kvcheck/runner drives.

Nothing here speaks of tensors, caches or models: an engine may as well be a server at the other end of a socket. There
are two kinds. One that can prefill a context and fork what came of it offers `work`; one that cannot offers `answer`,
which takes whole prompts, and names "fork" among what it `lacks`. What a backend lacks becomes "not measured" in every
record, with the reason that it gives; nobody calls it. Samples, prompts, grading, judging and recording are kvcheck's.

A backend of your own is opened by the hook pytest_kvcheck_open (kvcheck/plugin/hookspecs.py):

    class Server:
        model_name, fingerprint, max_length, decoding = "my-model", "0123456789abcdef", 32768, "greedy"
        lacks = {"fork": "it takes whole prompts", "log_probs": "it gives none", "memory": "it does not tell",
                 "latency": "other requests share it"}

        def __init__(self, url):
            self.encoder = MyTokenizer()

        def answer(self, method_spec, prompts):
            return [Answer(self._post(method_spec, ids, limit), ended=True) for ids, limit in prompts]

One that works, over a socket: tests/backends/table_backend.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from kvcheck.core.record import CaseId, CaseRecord, LatencyRecord, MemoryRecord
from kvcheck.runner.case import OnBlock, Progress
from kvcheck.runner.seam import Answer, Context, Drift, Encoder, Measured, Question


class Timer(Protocol):
    """Runs a target some times, as pytest-benchmark's `benchmark.pedantic` does."""

    def __call__(self, target: Callable[[], object], *, rounds: int, iterations: int, warmup_rounds: int) -> object: ...


class Group(Protocol):
    """Questions of equal length that were fed together and wait for their answers."""

    questions: list[Question]


G = TypeVar("G", bound=Group)


class Contexts(Protocol[G]):
    """A backend's hold on some contexts: prefilled and forked as the questions need it."""

    def expect(self, questions: Sequence[Question], opening: bool) -> None:
        """These questions come next: what they share can be computed now. opening: right behind the contexts."""
        ...

    def ask(self, questions: list[Question]) -> G:
        """Feed questions right behind their contexts, each from a fork, or with its context as one prompt."""
        ...

    def drift(self, group: G) -> Sequence[Drift]:
        """How the reference answer of each question looks from here. The group is left as it is."""
        ...

    def fork(self, group: G) -> G:
        """A copy of a group, which goes on when the group itself has been answered."""
        ...

    def generate(self, group: G, keep: bool) -> list[G]:
        """Write `answer` and `ended` into every question, greedily, up to its limit.

        keep: return the questions in groups from which they can go on; else the list is empty.
        """
        ...

    def go_on(self, group: G, rows: list[int], questions: list[Question]) -> G:
        """Feed the next questions of these rows of an answered group, which are of equal length."""
        ...


class Work(Protocol):
    """One method at work on one case.

    together: contexts of equal length that it takes at a time. most: questions at a time. aware: whether the first
    question of a context is visible when that is compressed; it goes into the record.
    """

    together: int
    most: int
    aware: bool

    def resume(self, record: CaseRecord) -> None:
        """What has been measured of the case before; what comes is as if it had not been interrupted."""
        ...

    def contexts(self, key: object, contexts: Sequence[Context]) -> Contexts[Any]:
        """Take contexts. key: names them, and is the same for every method and mode."""
        ...

    def measured(self, contexts: int) -> Measured:
        """What was measured beside the answers, after a block; contexts: how many have been answered in all."""
        ...


class Backend(Protocol):
    """One model behind an engine that runs methods on it, opened with the settings of the run.

    model_name: what the user typed. fingerprint: identifies configuration, weights and tokenizer; baselines are kept
    under it. encoder: its tokenizer; what decides its ids, such as versions of packages, it may say in `facts`.
    max_length: tokens of prompt and answer, None for no limit. decoding: how answers are made ("greedy float32"), for
    the records of public benchmarks. lacks: what it cannot do, each with the reason. It may name "fork" (it is an
    AnsweringBackend, else a ForkingBackend), "log_probs" (of an AnsweringBackend), "memory" and "latency" (else it has
    measure_memory and measure_latency, see Measures).
    """

    @property
    def model_name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def max_length(self) -> int | None: ...

    @property
    def decoding(self) -> str: ...

    @property
    def lacks(self) -> Mapping[str, str]: ...


class ForkingBackend(Backend, Protocol):
    """It prefills contexts once and forks what came of them."""

    def work(self, case: CaseId, method_spec: str, aware: bool) -> AbstractContextManager[Work]:
        """Set a method to work on a case. aware: the first question is to be visible when the cache is compressed.

        Raises MethodFailed, MethodUnsupported, SpecError, here and in all that the work does.
        """
        ...


class AnsweringBackend(Backend, Protocol):
    """It takes whole prompts."""

    def answer(self, method_spec: str, prompts: Sequence[tuple[list[int], int]]) -> Sequence[Answer]:
        """Answer prompts greedily: (token ids, tokens of the answer at most)."""
        ...

    def log_probs(self, method_spec: str, pairs: Sequence[tuple[list[int], list[int]]]) -> Sequence[Sequence[float]]:
        """For (prompt, continuation) pairs of token ids, the log-probability of each token of the continuation."""
        ...


class Measures(Protocol):
    """What a context costs with a method."""

    def measure_latency(self, method_spec: str, length: int, timer: Timer | None = None) -> tuple[LatencyRecord, ...]:
        """Time to first token and per output token at this context length, as ratios to fp16."""
        ...

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """Bytes held and peak memory of one context of this length."""
        ...


class Engine(Measures, Protocol):
    """Runs cases with a method on one model: a Runner with its backend, or one that does everything by itself."""

    @property
    def model_name(self) -> str:
        """What the user typed."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and tokenizer."""
        ...

    def run_case(
        self, case: CaseId, method_spec: str, on_block: OnBlock | None = None, progress: Progress | None = None
    ) -> CaseRecord:
        """Answer the questions of a case. Raises ContextTooLong, MethodFailed, MethodUnsupported, SpecError.

        An engine that also takes `so_far`, what an interrupted run has of the case, goes on behind it; of one that does
        not, such a case is measured anew.
        """
        ...
