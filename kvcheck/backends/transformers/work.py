"""One method at work on one case: its contexts, and what it holds of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from kvcheck.backends.transformers.bench import CPU_BYTES
from kvcheck.backends.transformers.contexts import Contexts
from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.meter import Meter, joined, joined_weights, peak_bytes
from kvcheck.backends.transformers.prefill import Prefiller
from kvcheck.cache.method import Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.front import option
from kvcheck.core.record import FREES, IDLE, CaseId, CaseRecord, MemoryRecord
from kvcheck.methods.adapters.foreign import Foreign
from kvcheck.models import LoadedModel
from kvcheck.runner.seam import Context, Measured

FOREIGN = (
    "positions",
    "the cache is not made of kvcheck's layers: its rows were run one by one, and which tokens it kept is not known",
)
NOTHING_TO_DO = (IDLE, "by its parameters the method keeps everything at this length")
LONG = 2**17
"""Tokens of a prompt at which no budget keeps everything."""
CONTEXTS = 4
ROWS = 32


@dataclass
class CaseWork:
    """See kvcheck.backends.base.Work.

    proved: (method, length, aware) whose caches have been audited in all rows; later ones are in one row. last: the
    contexts that were taken last. elsewhere: bytes that a prompt leaves outside of its cache, by (method, length).
    """

    loaded: LoadedModel
    prefiller: Prefiller
    runner: MethodRunner
    guard: Guard
    case: CaseId
    aware: bool
    proved: set[Hashable]
    elsewhere: dict[Hashable, int]
    together: int = field(init=False)
    most: int = field(init=False)
    meter: Meter = field(init=False)
    last: Contexts | None = None

    def __post_init__(self) -> None:
        self.meter = Meter(self.runner.method, self.runner.shape, self.guard, audited=self._proof in self.proved)
        self.meter.runner = self.runner
        self.meter.elsewhere = self.elsewhere.get((self.guard.method, self.case.length))
        length, shape, room = self.case.length, self.loaded.shape, space(self.loaded.device)
        # fewer contexts where their caches, queries and forks would not fit, and rows where twice their full caches
        self.together = max(1, min(CONTEXTS, room // max(1, shape.dense_bytes(1, length) * (3 + shape.group))))
        self.most = max(1, min(ROWS, room // max(1, 2 * shape.dense_bytes(1, length))))

    @property
    def _proof(self) -> Hashable:
        """What is shown by an audit of all rows."""
        return self.guard.method, self.case.length, self.aware

    def resume(self, record: CaseRecord) -> None:
        """Go on behind the contexts of a record."""
        self.meter.resume(record)

    def contexts(self, key: Hashable, contexts: Sequence[Context]) -> Contexts:
        """Take contexts. Raises MethodUnsupported for images that the method or the model has no eye for."""
        self.last = Contexts(
            prefiller=self.prefiller,
            runner=self.runner,
            guard=self.guard,
            watch=self.meter.watch,
            ended=self.meter.ended,
            key=key,
            ids=torch.tensor([self._ids(context) for context in contexts], device=self.loaded.device),
            indices=tuple(context.index for context in contexts),
            aware=self.aware and self.runner.method.info.stage != Stage.PROMPT,  # it shortens contexts only
            most=self.most,
            eos=self.loaded.tokenizer.eos,
            apart=self.meter.apart,
        )
        return self.last

    def _ids(self, context: Context) -> list[int]:
        """A context as it is fed, with what its images show."""
        vision = self.loaded.vision
        if vision is None:
            return context.ids
        if context.images and self.runner.method.info.stage == Stage.PROMPT:
            raise MethodUnsupported(
                f"{self.runner.method.spec} shortens text, and the context has images",
                f"{option('tasks')} with text only",
            )
        return vision.placed(context.ids, context.images)

    def measured(self, contexts: int) -> Measured:
        """What the caches held. Raises MethodFailed where the method is not shown to act."""
        meter, together = self.meter, self.loaded.team
        meter.audited = True
        if self.last is not None:
            meter.look_elsewhere(self.last.again, *self.last.ids.shape)
        self.proved.add(self._proof)
        if meter.elsewhere is not None:
            self.elsewhere[self.guard.method, self.case.length] = meter.elsewhere
        if not meter.peaked and self.last is not None:
            meter.peaked = True
            with self.guard("measuring peak memory"):
                meter.peak = peak_bytes(self.runner, self.last.ids[:1])
        meter.expect_sound(self.loaded.model.dtype, contexts)
        memory, weights = meter.record(), meter.weights
        if together is not None:
            weights = joined_weights(together.gather(weights))
            memory = memory and joined(together.gather(memory))
        return Measured(memory, weights, self._not_measured(memory))

    def _not_measured(self, memory: MemoryRecord | None) -> tuple[tuple[str, str], ...]:
        method = self.runner.method
        idle = memory is not None and memory.does(FREES) and memory.kv_bytes >= memory.dense_bytes
        idle = idle and self._would_free()
        return ((NOTHING_TO_DO,) if idle else ()) + ((FOREIGN,) if isinstance(method, Foreign) else ())

    def _would_free(self) -> bool:
        """Whether a method that frees nothing here would with a longer prompt, as far as it declares its bytes."""
        with self.guard("declaring its bytes"):
            declared = self.runner.method.kv_bytes(self.runner.shape, 1, LONG, 0)
        return declared is None or declared < self.runner.shape.dense_bytes(1, LONG)


def space(device: torch.device) -> int:
    """Bytes for the shared prefills, and again for a block in work: 1.5 GiB on the CPU, a quarter of a GPU.

    It does not depend on what else runs, so that the same machine always stops after the same samples.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return CPU_BYTES
