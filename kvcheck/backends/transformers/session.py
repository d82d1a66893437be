"""The in-process engine: one model in this process, and the cases that are run with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from kvcheck.backends.base import OnBlock, Progress, Timer
from kvcheck.backends.transformers import bench, kernel
from kvcheck.backends.transformers.bench import CPU_BYTES
from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.isolation import Isolation, isolated
from kvcheck.backends.transformers.memo import Memo
from kvcheck.backends.transformers.meter import Meter, joined, joined_weights, peak_bytes, weigh
from kvcheck.backends.transformers.prefill import Prefiller
from kvcheck.backends.transformers.states import StatePrefiller
from kvcheck.backends.transformers.turns import Block
from kvcheck.cache.host import Host
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import StateHost, serve
from kvcheck.core import env
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.record import CLEAR, CaseId, CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, TurnRecord, Weight
from kvcheck.core.settings import BATCH, ROUNDS, Settings
from kvcheck.core.spec import Spec
from kvcheck.measure import clocks, latency
from kvcheck.methods.adapters.foreign import Foreign
from kvcheck.models import LoadedModel, Loading, load, pick_device, pick_dtype, share_threads, synthetic
from kvcheck.models.devices import layout
from kvcheck.models.parallel import team
from kvcheck.runner.prompts import Ask, Prompter, prompter
from kvcheck.tasks.base import Sample, Task

FOREIGN = ("positions", "the cache is not made of kvcheck's layers, so which tokens it kept was not looked at")
IDLE = ("compression", "by its parameters the method keeps everything at this length")
CONTEXTS = 4
ROWS = 32


def find_method(text: str) -> Method:
    """The method that a spec names. Raises SpecError."""
    from kvcheck.methods import make

    return make(text)


def find_task(case: CaseId, settings: Settings) -> Task:
    """The task of a case. Raises SpecError for an unknown one, another version, or a mode that it does not have."""
    from kvcheck.tasks import find

    task = find(case.task, settings.data, settings.compat, alone=case.mode == "multi_request")
    if task.info.version != case.version:
        raise SpecError(f"{case}: the task {case.task} is at version {task.info.version}", "record the baseline again")
    if case.mode not in task.info.modes:
        raise SpecError(f"{case}: the task {case.task} has no mode {case.mode}", f"it has {', '.join(task.info.modes)}")
    return task


@dataclass
class Session:
    """One model, ready to run cases with any method.

    memo: prefills of contexts, shared between the methods and modes of a task and length; samples: likewise.
    hosts: the methods at home on the model, by spec. carrying: prefills of a model with more than a full KV cache.
    proved: (method, length, query_aware) whose caches have been audited in all rows; later ones are in one row.
    """

    loaded: LoadedModel
    settings: Settings
    shape: ModelShape
    prefiller: Prefiller
    memo: Memo
    isolation: Isolation
    carrying: StatePrefiller | None = None
    samples: dict[Hashable, Sample] = field(default_factory=dict)
    proved: set[Hashable] = field(default_factory=set)
    hosts: dict[str, Host] = field(default_factory=dict)

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
        memo, isolation = Memo(_room(loaded.device)), Isolation(loaded)  # before any method's module is imported
        wants = any("queries" in find_method(text).info.needs for text in settings.methods)
        carrying = None if loaded.states is None else StatePrefiller(loaded, memo)
        return cls(loaded, settings, loaded.shape, Prefiller(loaded, memo, wants), memo, isolation, carrying)

    @property
    def model_name(self) -> str:
        """What the user typed."""
        return self.loaded.name

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and tokenizer."""
        return self.loaded.fingerprint

    # -- cases ---------------------------------------------------------------------------------------------------------

    @isolated
    def run_case(
        self,
        case: CaseId,
        method_spec: str,
        on_block: OnBlock | None = None,
        progress: Progress | None = None,
        so_far: CaseRecord | None = None,
    ) -> CaseRecord:
        """Answer the questions of a case, block by block.

        After every block of contexts `on_block` gets the record so far, and ends the case by returning True. so_far:
        what an interrupted run has of the case; its contexts are not measured again. Raises ContextTooLong,
        MethodFailed, MethodUnsupported, SpecError.
        """
        synthetic.refuse(self.model_name, case.task)
        task = find_task(case, self.settings)
        guard = Guard(str(Spec.parse(method_spec)), str(case))
        host = self._host(method_spec, guard)
        proved = (guard.method, case.length, self._aware(case.mode))
        meter = Meter(host.method, host.shape, guard, audited=proved in self.proved)
        asking = self._prompter(task, case)
        if not task.info.exact:
            self._sample(task, case, case.n - 1)  # a row too many is said before any is run
        record, done = so_far, list(so_far.samples) if so_far is not None else []
        if so_far is not None:
            meter.resume(so_far)
            if self._ends(on_block is not None and on_block(so_far)):
                return so_far
        for indices in self._left(case, task, {sample.index for sample in done}):
            samples = [self._sample(task, case, index) for index in indices]
            block = self._block(samples, asking, host, guard, meter)
            for sample, asks in zip(samples, block.run(), strict=True):
                turns = tuple(_turn(sample, ask, asking) for ask in asks)
                done.append(SampleRecord(sample.index, sample.digest, turns))
            meter.audited = True
            self.proved.add(proved)
            if record is None:
                with guard("measuring peak memory"):
                    meter.peak = peak_bytes(host, block.ids[:1])
            record = self._record(task, asking, done, meter, len(done) == case.n)
            if progress is not None:
                progress(len(done), case.n)
            if self._ends(on_block is not None and on_block(record)):
                break
        if record is None:
            raise KvcheckError(f"{case} has no samples", f"{option('n')} 1 is the least")
        return record

    def _left(self, case: CaseId, task: Task, done: set[int]) -> Iterator[list[int]]:
        """The contexts that are still to be measured, block by block."""
        for block in _blocks(case, self.shape, self.loaded.device) if task.info.exact else _singly(case):
            left = [index for index in block if index not in done]
            if left:
                yield left

    def _ends(self, clear: bool) -> bool:
        """Whether the case may end: of several processes, the first one decides."""
        together = self.loaded.team
        return clear if together is None else together.gather(clear)[0]

    def _whole(self, memory: MemoryRecord) -> MemoryRecord:
        """What all processes hold of the model's caches."""
        together = self.loaded.team
        return memory if together is None else joined(together.gather(memory))

    def _weights(self, meter: Meter) -> dict[int, Weight]:
        """What all processes hold of each context."""
        together = self.loaded.team
        return meter.weights if together is None else joined_weights(together.gather(meter.weights))

    def _prompter(self, task: Task, case: CaseId) -> Prompter:
        """What makes token ids of the task's samples. Raises SpecError where a chat template is wanted and missing."""
        loaded = self.loaded
        return prompter(task, case, self._sample(task, case, 0), loaded.tokenizer, loaded.max_length, self.settings)

    def _switches(self, task: Task, prompter: Prompter) -> tuple[tuple[str, str], ...]:
        """What decides the scores of a public benchmark; of a task of our own, only what is not as usual."""
        chat = prompter.chat.digest
        found = [("chat", chat)] * bool(chat) + [("history", "gold")] * prompter.gold
        if not task.facts:
            return tuple(found)
        encoder, dtype = self.loaded.tokenizer, str(self.loaded.model.dtype).removeprefix("torch.")
        by = "" if self.settings.attention == "auto" else f" {self.settings.attention}"
        usual = {"chat": "no", "history": "own", "decoding": f"greedy {dtype}{by}"}
        usual["stop"] = ",".join(map(str, sorted(encoder.eos)))
        return tuple(sorted({**task.facts, **usual, **dict(found)}.items()))

    def _record(
        self, task: Task, prompter: Prompter, done: list[SampleRecord], meter: Meter, complete: bool
    ) -> CaseRecord:
        """What the case has produced so far."""
        meter.expect_difference(self.loaded.model.dtype, len(done))
        info, held, case, weights = task.info, meter.record(), prompter.case, self._weights(meter)
        memory = None if held is None else self._whole(held)
        idle = memory is not None and meter.method.info.frees_memory and memory.kv_bytes >= memory.dense_bytes
        return CaseRecord(
            case=case,
            method=meter.guard.method,
            model=self.fingerprint,
            capability=info.capability,
            query_aware=self._aware(case.mode),
            binary=info.binary,
            chance=info.chance,
            samples=tuple(replace(sample, weight=weights.get(sample.index)) for sample in done),
            memory=memory,
            stopped="all samples" if complete else CLEAR,
            not_measured=((IDLE,) if idle else ()) + ((FOREIGN,) if isinstance(meter.method, Foreign) else ()),
            switches=self._switches(task, prompter),
        )

    def _block(self, samples: list[Sample], prompter: Prompter, host: Host, guard: Guard, meter: Meter) -> Block:
        """The contexts as token ids, with everything that runs them."""
        case = prompter.case
        ids = torch.tensor([self._ids(sample, prompter, host) for sample in samples], device=self.loaded.device)
        indices = tuple(sample.index for sample in samples)
        return Block(
            prefiller=self.carrying if self.carrying and isinstance(host, StateHost) else self.prefiller,
            prompter=prompter,
            host=host,
            guard=guard,
            watch=meter.watch,
            key=_key(case, indices, prompter.exact),
            ids=ids,
            samples=samples,
            aware=self._aware(case.mode) and host.method.info.stage != "prompt",  # it shortens contexts only
            most=_rows(case, self.shape, self.loaded.device),
            apart=meter.apart,
        )

    def _ids(self, sample: Sample, prompter: Prompter, host: Host) -> list[int]:
        """The context of a sample as it is fed, with what its images show."""
        ids = prompter.context(sample)
        if self.loaded.vision is None:
            return ids
        if sample.images and host.method.info.stage == "prompt":
            raise MethodUnsupported(
                f"{host.method.spec} shortens text, and the context has images", f"{option('tasks')} with text only"
            )
        return self.loaded.vision.placed(ids, sample.images)

    def _host(self, spec: str, guard: Guard) -> Host:
        """The method at home on the model, made once. Raises SpecError, MethodUnsupported."""
        if spec not in self.hosts:
            method = find_method(spec)
            serve(method, self.loaded)
            method.check(self.shape)
            with guard("being set up"):
                self.hosts[spec] = method.host(self.loaded)
        return self.hosts[spec]

    def _aware(self, mode: str) -> bool:
        """Whether the first question is visible when the cache is compressed."""
        return {"yes": True, "no": False}.get(self.settings.query_aware, mode != "multi_request")

    def _sample(self, task: Task, case: CaseId, index: int) -> Sample:
        """A sample, generated once for all modes and methods."""
        key = _key(case, index, task.info.exact)
        if key not in self.samples:
            if len(self.samples) >= 4096:
                self.samples.clear()
            self.samples[key] = task.generate(case.seed, index, case.length, self.loaded.tokenizer)
        return self.samples[key]

    # -- latency -------------------------------------------------------------------------------------------------------

    @isolated
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
        env.alone()
        bench.fits(self.loaded, length)
        guard = Guard(str(Spec.parse(method_spec)), f"the latency measurement at {length} tokens")
        ids, rows = bench.prompt(self.loaded, length), bench.rows(self.loaded, length, batch)
        together = self.loaded.team
        unwatched = nullcontext() if together is None else together.unwatched()
        beside = Guard("fp16", f"{guard.where} of {guard.method}")
        self._make_room()
        with guard("being timed"), clocks.sampling(ids.device) as found, unwatched:
            mine, fp16 = (bench.side(self._host(text, guard), ids, rows) for text in (method_spec, "fp16"))
            timed = latency.interleave(length, mine, beside("being timed")(fp16), timer, rounds)
        return bench.described(timed, rows, found)

    @isolated
    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """What a context of this length takes with the method: bytes held, and the peak where the device can tell."""
        bench.fits(self.loaded, length)
        guard = Guard(str(Spec.parse(method_spec)), f"the memory measurement at {length} tokens")
        host = self._host(method_spec, guard)
        self._make_room()
        with guard("being weighed"):
            memory = weigh(host, bench.prompt(self.loaded, length))
        return self._whole(memory)

    def _make_room(self) -> None:
        """What is measured on a GPU has its memory alone: the prefills of cases, a quarter of it, are made again."""
        if self.loaded.device.type == "cuda":
            self.memo.clear()


def _turn(sample: Sample, ask: Ask, prompter: Prompter) -> TurnRecord:
    """Grade one answer."""
    from kvcheck.tasks.metrics import score

    turn = sample.turns[ask.turn]
    answer = prompter.answer(turn, ask)
    graded = score(turn.metric, answer, turn.references, turn.options)
    return TurnRecord(graded, answer, turn.subtask, turn.depth, ask.nll, ask.agree, ask.kl)


def _blocks(case: CaseId, shape: ModelShape, device: torch.device) -> Iterator[range]:
    """Sample indices, some contexts at a time: CONTEXTS, fewer where their caches, queries and forks would not fit."""
    each = shape.dense_bytes(1, case.length) * (3 + shape.group)
    size = max(1, min(CONTEXTS, _room(device) // max(1, each)))
    for start in range(0, case.n, size):
        yield range(start, min(start + size, case.n))


def _key(case: CaseId, which: Hashable, exact: bool) -> Hashable:
    """What names the contexts `which` (indices) of a case, whatever the method; and whatever the mode.

    Not where contexts are rows of a data set (TaskInfo.exact), which are cut otherwise when they are read alone.
    """
    key = (case.task, case.version, case.seed, case.length, which)
    return key if exact else (*key, case.mode)


def _singly(case: CaseId) -> Iterator[range]:
    """Sample indices one by one: the rows of a data set differ in length, and nothing is padded."""
    for index in range(case.n):
        yield range(index, index + 1)


def _rows(case: CaseId, shape: ModelShape, device: torch.device) -> int:
    """Rows that are fed together: ROWS, fewer where twice their full caches would not fit."""
    return max(1, min(ROWS, _room(device) // max(1, 2 * shape.dense_bytes(1, case.length))))


def _room(device: torch.device) -> int:
    """Bytes for the shared prefills, and again for a block in work: 1.5 GiB on the CPU, a quarter of a GPU.

    It does not depend on what else runs, so that the same machine always stops after the same samples.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return CPU_BYTES
