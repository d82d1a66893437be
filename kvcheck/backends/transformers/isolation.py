"""One method never changes what the next one is measured with.

Around every piece of work with a method: what it shares with others is looked at before and after, and put back where
that can be done (surroundings.py, hooks, shared prefills). The model is proved by the sums of its tensors and by one
forward with the full cache, bit for bit as when it was loaded; otherwise it is loaded anew. Whoever
changed anything fails by name. It happens after each case, not when the method changes: cases of several methods take
turns in one process, a worker may get any of them next, and what is found late could not be told whose it was.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from kvcheck.backends.transformers.surroundings import Surroundings
from kvcheck.core.errors import KvcheckError, MethodFailed
from kvcheck.core.spec import Spec
from kvcheck.measure.checksum import checksums
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel

if TYPE_CHECKING:
    from kvcheck.backends.transformers.prefill import Prefiller
    from kvcheck.backends.transformers.session import Session

TOKENS = 8
"""Of the text that is fed to prove a model."""
NAMED = 4
"""Changes of one kind that a message names."""
WAYS = "leave what is shared as it was: change it only inside a context that puts it back (try … finally)"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
Held = tuple[dict[str, dict[int, object]], dict[str, object]]


class Hooks:
    """The modules of a model, with the hooks and the methods of their own that each of them has."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.modules = list(model.named_modules())
        self.held = [_held(module) for _, module in self.modules]

    def restored(self) -> list[str]:
        """Put back hooks and methods -> the modules that had others."""
        changed = []
        for (name, module), before in zip(self.modules, self.held, strict=True):
            if _same(before, _held(module)):
                continue
            hooks, methods = before
            for attribute, content in hooks.items():
                getattr(module, attribute).clear()
                getattr(module, attribute).update(content)
            for extra in _held(module)[1].keys() - methods.keys():
                delattr(module, extra)
            vars(module).update(methods)
            changed.append(f"hooks or methods of {name or type(module).__name__}")
        return changed

    def replaced(self) -> list[str]:
        """The modules that are no longer where they were; a model may have got more of them."""
        now = dict(self.model.named_modules())
        return [f"module {name}" for name, module in self.modules if now.get(name) is not module]


def _held(module: torch.nn.Module) -> Held:
    """(hooks, functions among the attributes) of one module."""
    inner = vars(module)
    methods = {name: value for name, value in inner.items() if callable(value) and not isinstance(value, type)}
    return {name: dict(inner[name]) for name in _HOOKS if name in inner}, methods


def _same(before: Held, now: Held) -> bool:
    """Whether hooks and functions are those of before; what transformers adds when it first needs it is no change."""
    tables = [[*each[0].values(), each[1]] for each in (before, now)]
    known: Mapping[object, object]
    found: Mapping[object, object]
    for known, found in zip(*tables, strict=True):
        if any(name not in found or found[name] is not one for name, one in known.items()):
            return False
        if not all(_of_the_library(one) for name, one in found.items() if name not in known):
            return False
    return True


def _of_the_library(hook: object) -> bool:
    """Whether it is defined in a package that makes models; what says only whether a hook takes keywords is."""
    while isinstance(hook, partial):
        hook = hook.func
    space = getattr(hook, "__globals__", {"__name__": "torch" if hook is True else ""})
    return str(space.get("__name__")).partition(".")[0] in ("torch", "transformers", "accelerate")


class Proof:
    """A model as it was loaded: the sums of its tensors, and the logits of a short text."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.logits = self._forward()
        self.sums = self._sums()

    def changed(self) -> list[str]:
        """Parameters and buffers that are not what they were; those that follow a text's length do so in `answers`."""
        now = self._sums()
        return [name for name, total in self.sums.items() if now.get(name) != total]

    def answers(self) -> bool:
        """Whether the model still says the same, bit for bit, in one of two tries."""
        return any(torch.equal(self._forward(), self.logits) for _ in range(2))

    def _sums(self) -> dict[str, int]:
        model = self.loaded.model
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return dict(zip(named, checksums(named.values()), strict=True))

    @torch.inference_mode()
    def _forward(self) -> torch.Tensor:
        """Logits (1, TOKENS, V) of fixed tokens with the full cache; empty where the forward fails."""
        runner = Fp16().runner(self.loaded)
        table = self.loaded.model.get_input_embeddings().weight
        ids = torch.arange(TOKENS, device=table.device)[None] % table.shape[0]
        try:
            return runner.feed(runner.build(), ids, keep=TOKENS).clone()
        except Exception:
            return torch.empty(0)


class Isolation:
    """Guards what a session shares between methods.

    reopen: loads the model anew, None where the session was given one. spoiled: who damaged it, and nothing helped.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.proof = Proof(loaded)
        self.classes = dict.fromkeys(kind for part in loaded.model.modules() for kind in type(part).__mro__[:-1])
        self.reopen: Callable[[], Session] | None = None
        self.spoiled = ""

    @contextmanager
    def around(self, session: Session, method_spec: str) -> Iterator[None]:
        """Work with a method, in torch's inference mode.

        Raises MethodFailed where it leaves anything changed; what was raised keeps its kind.
        """
        with torch.inference_mode(), self._watched(session, str(Spec.parse(method_spec))):
            yield

    @contextmanager
    def _watched(self, session: Session, method: str) -> Iterator[None]:
        self._expect_sound(session)
        prefillers = [each for each in (session.prefiller, session.carrying) if each is not None]
        for each in prefillers:
            each.used.clear()
        hooks, before = Hooks(session.loaded.model), Surroundings(self.classes)
        try:
            yield
        except KeyboardInterrupt:
            before.restored()
            _settle(prefillers, good=False)
            raise
        except BaseException as error:
            changed = self._compared(session, method, (before, hooks, prefillers), raised=True)
            _settle(prefillers, good=not changed)
            if changed:
                _tell(error, changed)
            raise
        changed = self._compared(session, method, (before, hooks, prefillers))
        _settle(prefillers, good=not changed)
        if changed:
            raise MethodFailed(f"{method} changed what other methods are measured with:{_listed(changed)}", WAYS)

    def _compared(
        self, session: Session, method: str, before: tuple[Surroundings, Hooks, list[Prefiller]], raised: bool = False
    ) -> list[str]:
        """Put everything back -> what was changed."""
        surroundings, hooks, prefillers = before
        changed = surroundings.restored() + hooks.restored()
        if not all(each.sound for prefiller in prefillers for each in prefiller.used):
            session.memo.clear()
            changed.append("shared prefills (keys, values or logits of the full cache)")
        apart = raised and session.loaded.team is not None  # the processes may no longer feed the same
        same = apart or self.proof.answers()
        broken = hooks.replaced() + [f"weights: {name}" for name in self.proof.changed()]
        if not (same or broken):
            broken = [f"what the model says of {TOKENS} fixed tokens with the full cache"]
        if broken:
            self._renew(session, method)
        return changed + broken

    def _expect_sound(self, session: Session) -> None:
        """Raise KvcheckError where a method has spoiled the model; load it anew where it is not as it was loaded."""
        if not self.spoiled and self.proof.changed() and not (self.proof.answers() and not self.proof.changed()):
            self._renew(session, "something between two cases")
        if self.spoiled:
            raise KvcheckError(
                f"{self.spoiled} damaged the model or torch itself, and it could not be brought back",
                "nothing more can be measured in this process: run the methods one by one",
            )

    def _renew(self, session: Session, method: str) -> None:
        """Load the model anew; where that does not bring it back, nothing more is measured."""
        session.memo.clear()
        session.runners.clear()
        if self.reopen is None or session.loaded.team is not None:
            self.spoiled = method
            return
        gc.collect()
        fresh = self.reopen()
        for name in ("loaded", "prefiller", "memo", "carrying"):
            setattr(session, name, getattr(fresh, name))
        self.proof.loaded = session.loaded
        if self.proof.changed() or not self.proof.answers():
            self.spoiled = method


def _settle(prefillers: Iterable[Prefiller], good: bool) -> None:
    """What a case has prefilled is kept from run to run where nothing was changed while it did."""
    for each in prefillers:
        if each.store is not None:
            each.store.settle(good)


def _listed(changed: Iterable[str]) -> str:
    """What was changed, a line each; of many, some."""
    lines = [f"\n  - {each}" for each in changed]
    more = len(lines) - 2 * NAMED
    return "".join(lines[: 2 * NAMED]) + (f"\n  - and {more} more" if more > 0 else "")


def _tell(error: BaseException, changed: list[str]) -> None:
    """Let an error say that something was changed beside it."""
    text = f"\n  it also changed what other methods are measured with:{_listed(changed)}"
    if isinstance(error, KvcheckError):
        error.message += text
        error.args = (f"{error.args[0]}{text}", *error.args[1:])
    elif hasattr(error, "add_note"):
        error.add_note(text.strip())
