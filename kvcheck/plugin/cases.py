"""The cases of a session, and the markers of their items."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.escape import plain
from kvcheck.core.front import option
from kvcheck.core.record import CAPABILITIES, MODES, CaseId
from kvcheck.models import synthetic

if TYPE_CHECKING:
    from kvcheck.core.settings import Settings

QUICK_LENGTH = 1024
"""Cases up to this many tokens are marked `quick`, longer ones `slow`."""


def cases(settings: Settings, capability: str | None) -> list[CaseId]:
    """The cases of these settings, in the order in which they run; none on random weights, where asking raises."""
    from kvcheck.tasks import find, profiles

    if synthetic.is_random(settings.model):
        if settings.tasks:
            synthetic.refuse(settings.model, ", ".join(settings.tasks))
        return []

    chosen = (settings.profile, settings.lengths, settings.tasks, settings.modes, settings.contexts)
    place = partial(find, data=settings.data, compat=settings.compat, text=settings.text)
    found = profiles.cases(*chosen, capability, settings.seed, place)
    if settings.text and capability is None and not any(place(case.task).text for case in found):
        raise SpecError(
            f"{option('text')}: no case of this run reads a text",
            f"{option('tasks', 'completion/prose,completion/echo')}, or leave {option('text')} out",
        )
    return sorted(found, key=lambda case: (case.task, case.version, case.length, MODES.index(case.mode), case.n))


def marks(case: CaseId, settings: Settings) -> list[str]:
    """The markers of an item."""
    from kvcheck.tasks import find

    capability = find(case.task, settings.data, settings.compat).info.capability
    cost = "quick" if case.length <= QUICK_LENGTH else "slow"
    return list(dict.fromkeys((capability, case.task, case.mode, f"length_{case.length}", cost)))


def register_markers(config: pytest.Config, settings: Settings) -> None:
    """Register every marker that an item of this session can carry, so that --strict-markers holds."""
    if not settings.methods or settings.zoo:
        return
    found = _cases_or_none(settings)
    lengths = {case.length for case in found} | set(settings.lengths)
    from kvcheck.tasks import TASKS

    lines = [f"{name}: a case of this capability" for name in CAPABILITIES]
    tasks = dict.fromkeys((*TASKS.names(), *settings.tasks, *(case.task for case in found)))
    lines += [f"{name}: a case of this task" for name in tasks if name not in CAPABILITIES]
    lines += [f"{name}: a case in this mode" for name in MODES]
    lines += [f"length_{length}: a case with {length} tokens of context" for length in sorted(lengths)]
    lines += ["conformance: a property that every method must hold"]
    lines += ["engine: a property of the life of a KV cache in a real engine"]
    lines += [f"quick: up to {QUICK_LENGTH} tokens of context", f"slow: more than {QUICK_LENGTH} tokens, or latency"]
    for line in lines:
        config.addinivalue_line("markers", line)


def _cases_or_none(settings: Settings) -> list[CaseId]:
    try:
        return cases(settings, None)
    except KvcheckError as error:
        raise pytest.UsageError(f"kvcheck: {plain(error)}") from None
