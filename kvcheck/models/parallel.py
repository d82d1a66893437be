"""Tensor parallel: one model shared out over the processes that torchrun started, which work in step.

Every process holds some heads of every layer, and the caches of those. All of them run the same cases on the same
tokens, so before every forward they meet: a process that failed says so there, and the others stop instead of waiting
for it. What they say to each other goes over a group of its own (gloo), so that it never mixes with the sums of the
model's layers.
"""

from __future__ import annotations

import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from transformers.cache_utils import DynamicLayer

from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import kinds
from kvcheck.core import env
from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.models import vision

if TYPE_CHECKING:
    from kvcheck.models.pretrained import Config

T = TypeVar("T")
Order = tuple[str, tuple[Any, ...]]
"""The name of a call and its arguments."""

WAIT = 300.0
"""Seconds that a layer waits for the other processes: they are in the same forward, so one that takes longer failed."""
IDLE = timedelta(days=7)
"""Between forwards there is no limit: torchrun ends them all where one dies, and a case has --kv-timeout."""
GOING, DONE, FAILED = range(3)


class OutOfStep(KvcheckError):
    """Another process is not where this one is: it failed, or has ended the case."""


@dataclass(frozen=True)
class Report:
    """How the work of one process ended. when: seconds since the epoch; error: None where it went well."""

    rank: int
    when: float
    error: KvcheckError | None
    parted: bool


class Team:
    """The processes of one torchrun.

    rank, size: of this process, of all. lost: why they cannot work together any more, "" while they can.
    """

    def __init__(self, control: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lost = ""
        self.device = torch.device("cpu")
        self._control = control
        self._parted = self._busy = False
        self._watched = True

    @classmethod
    def join(cls) -> Team:
        """Meet the other processes. Raises SpecError where torch lacks what it takes."""
        if not (dist.is_available() and dist.is_gloo_available()):
            raise SpecError("this build of torch has no gloo, which processes meet by", "run pytest without torchrun")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=WAIT))
        return cls(dist.new_group(backend="gloo", timeout=IDLE))

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(self, command: Order | None = None) -> Order | None:
        """What the first process says, in all of them; the others wait for it here."""
        box = [command]
        with _undisturbed():
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def leave(self) -> None:
        """The first process has no more orders. In the middle of work nothing is said: torchrun ends the others."""
        if not self._busy:
            self.order(None)
            dist.destroy_process_group()

    # -- work ----------------------------------------------------------------------------------------------------------

    def together(self, work: Callable[[], T]) -> T:
        """Do work that every process does at the same time; what failed in one of them is raised in all.

        The first failure is raised: what the others say is that they waited in vain. Raises KvcheckError at once where
        the processes have lost each other before.
        """
        if self.lost:
            raise KvcheckError(f"the processes have lost each other: {self.lost}", "start torchrun again")
        self._busy, self._parted = True, False
        result, failure = None, None
        try:
            result = work()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a time limit is no Exception, and must not part the processes
            failure = error
        with _undisturbed():
            reports = self._settle(failure)
        self._busy = False
        failed = [report for report in reports if report.error is not None]
        if not failed:
            return result  # type: ignore[return-value]
        first = min(failed, key=lambda report: (report.parted, report.when))
        if first.rank == self.rank and failure is not None:
            raise failure
        raise first.error from failure  # type: ignore[misc]

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order, in all of them. Raises OutOfStep."""
        with _undisturbed():
            self._meet(GOING)
            return self._exchange(value)

    def watch(self, model: torch.nn.Module) -> None:
        """Let the processes meet before every forward of the model, and compare what they are about to feed."""

        def meet(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            if self._watched:
                ids = args[0] if args else kwargs["input_ids"]
                self._meet(GOING, zlib.crc32(ids.cpu().numpy().tobytes()))

        model.register_forward_pre_hook(meet, with_kwargs=True)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Forwards without a meeting, to be timed: a process that fails is then noticed after WAIT seconds."""
        self._watched = False
        try:
            yield
        finally:
            self._watched = True

    def _settle(self, failure: BaseException | None) -> list[Report]:
        """Tell each other how the work ended."""
        when = time.time()
        if not self._parted:
            try:
                self._meet(DONE if failure is None else FAILED)
            except OutOfStep as error:
                failure = failure or error
        told = None if failure is None else self._told(failure)
        reports = self._exchange(Report(self.rank, when, told, isinstance(failure, OutOfStep)))
        if any(report.error is not None for report in reports) and not all(self._exchange(self._sound())):
            causes = [report for report in reports if report.error is not None]
            self.lost = str(min(causes, key=lambda one: (one.parted, one.when)).error)
        return reports

    def _told(self, failure: BaseException) -> KvcheckError:
        """A failure as the other processes raise it."""
        who = f"process {self.rank + 1} of {self.size}"
        if isinstance(failure, KvcheckError):
            return type(failure)(f"{who}: {failure.message}", failure.hint)
        return MethodFailed(f"{who}: {type(failure).__name__}: {failure}".rstrip(": "))

    def _meet(self, sign: int, digest: int = 0) -> None:
        """Wait for all processes. Raises OutOfStep where one of them is elsewhere, then and from then on."""
        mine = torch.tensor([sign, digest])
        if not self._parted:
            found = [torch.empty_like(mine) for _ in range(self.size)]
            with _undisturbed():
                dist.all_gather(found, mine, group=self._control)
            self._parted = any(not torch.equal(mine, other) for other in found)
        if self._parted:
            raise OutOfStep(
                "the processes do not do the same: one has failed, or they were fed different tokens",
                "what a method does must not depend on chance or on the process that it runs in",
            )

    def _exchange(self, value: T) -> list[T]:
        """As gather, where it is sure that all processes are here."""
        found: list[T] = [value] * self.size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def _sound(self) -> bool:
        """Whether the sums of the layers still arrive, after a failure."""
        one = torch.ones(1, device=self.device)
        try:
            dist.all_reduce(one)
        except RuntimeError:
            return False
        return int(one) == self.size


@lru_cache(maxsize=1)
def team() -> Team | None:
    """The processes of this torchrun, joined on the first call; None without it."""
    return Team.join() if env.processes() > 1 else None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back the time limit's signal: an exchange is made whole or not at all, in every process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def refuse(name: str, config: Config, size: int) -> None:
    """Raise MethodUnsupported for a model that cannot be shared out over `size` processes."""
    if vision.sees(config):
        raise MethodUnsupported(
            f"model {name!r} ({config.model_type}) has a tower for images, which is not shared out",
            f"run pytest without torchrun; {option('device')}=spread puts whole layers on several GPUs",
        )
    shape = ModelShape.of(config)
    for count, what in ((shape.kv_heads, "kv heads"), (shape.heads, "query heads")):
        if count % size:
            fits = [str(number) for number in range(2, count + 1) if shape.kv_heads % number == 0]
            raise MethodUnsupported(
                f"model {name!r} has {count} {what}, which {size} processes cannot share out evenly",
                f"torchrun --nproc-per-node {' or '.join(fits)}" if fits else "run pytest without torchrun",
            )
    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        raise MethodUnsupported(
            f"transformers has no tensor parallel plan for model {name!r} ({config.model_type})",
            f"run pytest without torchrun; {option('device')}=spread puts whole layers on several GPUs",
        )
    if set(kinds(config)) != {DynamicLayer}:
        raise MethodUnsupported(
            f"model {name!r} ({config.model_type}) carries more than a full KV cache, which is not shared out",
            f"run pytest without torchrun; {option('device')}=spread puts whole layers on several GPUs",
        )


def sharding(size: int) -> dict[str, object]:
    """What from_pretrained is told. Raises SpecError where accelerate is missing, which newer transformers ask for."""
    from transformers.distributed import DistributedConfig

    if "tp_size" not in {field.name for field in fields(DistributedConfig)}:
        return {"tp_plan": "auto"}  # before 5.16
    if find_spec("accelerate") is None:
        raise SpecError(
            "transformers loads a model in parts through accelerate, which is not here", "pip install accelerate"
        )
    return {"distributed_config": DistributedConfig(tp_size=size, tp_plan="auto")}
