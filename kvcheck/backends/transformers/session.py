"""The backend of this process: one model, ready for any method."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import ClassVar

from kvcheck.backends.base import Timer
from kvcheck.backends.transformers import bench, kernel, prefill_store
from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.isolation import Isolation
from kvcheck.backends.transformers.meter import joined, weigh
from kvcheck.backends.transformers.prefill import Dense, Memo, Prefiller
from kvcheck.backends.transformers.states import StatePrefiller
from kvcheck.backends.transformers.work import CaseWork, space
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import StateRunner, serve
from kvcheck.core import env
from kvcheck.core.errors import MethodFailed, MethodsUnfed
from kvcheck.core.record import CaseId, LatencyRecord, MemoryRecord
from kvcheck.core.settings import BATCH, ROUNDS, Settings
from kvcheck.core.spec import Spec
from kvcheck.measure import clocks, latency
from kvcheck.methods.adapters.foreign import Foreign, smoke
from kvcheck.models import Encoder, LoadedModel, Loading, load, pick_device, pick_dtype, share_threads, synthetic
from kvcheck.models.devices import layout
from kvcheck.models.parallel import team


def find_method(text: str) -> Method:
    """The method that a spec names. Raises SpecError."""
    from kvcheck.methods import make

    return make(text)


@dataclass
class Session:
    """One model in this process, for a Runner to drive (kvcheck/backends/base.py).

    memo: prefills of contexts, shared between the methods and modes of a task and length.
    runners: the methods at home on the model, by spec. carrying: prefills of a model with more than a full KV cache.
    proved: (method, length, query_aware) whose caches have been audited in all rows; later ones are in one row.
    elsewhere: bytes that a prompt leaves outside of its cache, by (method, length). guards: what makes MethodFailed of
    that which goes wrong in a case.
    """

    loaded: LoadedModel
    settings: Settings
    shape: ModelShape
    prefiller: Prefiller
    memo: Memo[Dense]
    isolation: Isolation
    carrying: StatePrefiller | None = None
    lacks: ClassVar[dict[str, str]] = {}
    guards: ClassVar[type[Guard]] = Guard
    proved: set[Hashable] = field(default_factory=set)
    elsewhere: dict[Hashable, int] = field(default_factory=dict)
    runners: dict[str, MethodRunner] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: Settings) -> Session:
        """Load the model that the settings name. Raises SpecError, MethodUnsupported."""
        share_threads()
        device = pick_device(settings.device)
        how = Loading(settings.rope, bool(settings.trust_remote_code), layout(settings.device), team())
        loaded = load(settings.model, device, pick_dtype(settings.dtype, device), how)
        kernel.use(settings.attention, loaded)
        session = cls.of(loaded, settings)
        session.isolation.reopen = lambda: cls.open(settings)
        return session

    @classmethod
    def of(cls, loaded: LoadedModel, settings: Settings) -> Session:
        """A session with a model that is loaded already."""
        memo, isolation = Memo[Dense](space(loaded.device)), Isolation(loaded)  # before any method's module is imported
        wants = any("queries" in find_method(text).info.needs for text in settings.methods)
        carrying = None if loaded.states is None else StatePrefiller(loaded, memo)
        proof = isolation.proof
        store = prefill_store.opened(settings, loaded, proof.logits, proof.sums)
        return cls(loaded, settings, loaded.shape, Prefiller(loaded, memo, wants, store), memo, isolation, carrying)

    @property
    def model_name(self) -> str:
        """What the user typed."""
        return self.loaded.name

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and tokenizer."""
        return self.loaded.fingerprint

    @property
    def encoder(self) -> Encoder:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens that prompt and answer may have."""
        return self.loaded.max_length

    @property
    def decoding(self) -> str:
        """How answers are made, and by which kernel where one was asked for."""
        by = "" if self.settings.attention == "auto" else f" {self.settings.attention}"
        return f"greedy {str(self.loaded.model.dtype).removeprefix('torch.')}{by}"

    def expect_fed(self) -> None:
        """Feed each method from elsewhere a few tokens. Raises MethodsUnfed that names all that cannot be fed."""
        found = [(text, find_method(text)) for text in self.settings.methods]
        told = []
        for text, method in found:
            if not isinstance(method, Foreign):
                continue
            with suppress(MethodFailed), self.isolation.around(self, text):  # what it changes, its cases tell
                told += [reason] if (reason := smoke(method, self.loaded)) else []
        if told:
            raise MethodsUnfed("\n  ".join(told), "mend it, or leave it out; nothing was run")

    # -- cases ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def work(self, case: CaseId, method_spec: str, aware: bool) -> Iterator[CaseWork]:
        """Set a method to work on a case. Raises SpecError, MethodUnsupported, and MethodFailed at the end where it
        has changed what others are measured with."""
        with self.isolation.around(self, method_spec):
            synthetic.refuse(self.model_name, case.task)
            guard = self.guards(str(Spec.parse(method_spec)), str(case))
            runner = self.method_runner(method_spec, guard)
            prefiller = self.carrying if self.carrying and isinstance(runner, StateRunner) else self.prefiller
            yield CaseWork(self.loaded, prefiller, runner, guard, case, aware, self.proved, self.elsewhere)

    def method_runner(self, spec: str, guard: Guard) -> MethodRunner:
        """The method at home on the model, made once. Raises SpecError, MethodUnsupported."""
        if spec not in self.runners:
            method = find_method(spec)
            serve(method, self.loaded)
            method.check(self.shape)
            with guard("being set up"):
                self.runners[spec] = method.runner(self.loaded)
        return self.runners[spec]

    # -- latency -------------------------------------------------------------------------------------------------------

    def measure_latency(
        self,
        method_spec: str,
        length: int,
        timer: Timer | None = None,
        rounds: int = ROUNDS,
        batch: int = BATCH,
    ) -> tuple[LatencyRecord, ...]:
        """Time to first token, per output token, and per step of a batch of copies of the context, against fp16.

        timer: see kvcheck/measure/latency.py. batch: sequences decoded together at most, fewer where their full caches
        would not fit. Raises KvcheckError under several workers.
        """
        with self.isolation.around(self, method_spec):
            env.alone()
            bench.fits(self.loaded, length)
            guard = Guard(str(Spec.parse(method_spec)), f"the latency measurement at {length} tokens")
            ids, rows = bench.prompt(self.loaded, length), bench.rows(self.loaded, length, batch)
            together = self.loaded.team
            unwatched = nullcontext() if together is None else together.unwatched()
            beside = Guard("fp16", f"{guard.where} of {guard.method}")
            self._make_room()
            with guard("being timed"), clocks.sampling(ids.device) as found, unwatched:
                mine, fp16 = (bench.side(self.method_runner(text, guard), ids, rows) for text in (method_spec, "fp16"))
                timed = latency.interleave(length, mine, beside("being timed")(fp16), timer, rounds)
        return bench.described(timed, rows, found)

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """What a context of this length takes with the method: bytes held, and the peak where the device can tell."""
        with self.isolation.around(self, method_spec):
            bench.fits(self.loaded, length)
            guard = Guard(str(Spec.parse(method_spec)), f"the memory measurement at {length} tokens")
            runner = self.method_runner(method_spec, guard)
            self._make_room()
            with guard("being weighed"):
                memory = weigh(runner, bench.prompt(self.loaded, length))
            together = self.loaded.team
            return memory if together is None else joined(together.gather(memory))

    def _make_room(self) -> None:
        """What is measured on a GPU has its memory alone: the prefills of cases, a quarter of it, are made again."""
        if self.loaded.device.type == "cuda":
            self.memo.clear()
