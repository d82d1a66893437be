"""Which cases a profile runs, and with how many contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.record import CAPABILITIES, MODES, CaseId
from kvcheck.tasks import TASKS, find
from kvcheck.tasks.base import Task, TaskInfo


@dataclass(frozen=True)
class Part:
    """What a profile runs of one task. contexts: how many at which length. modes: in which."""

    contexts: dict[int, int]
    modes: tuple[str, ...] = ("multi_request",)


@dataclass(frozen=True)
class Profile:
    """lengths: tokens of context that every task runs at (None: all that it declares). far: a longer one for the
    tasks in FAR. n: contexts per case at most; far_n: at the longer length. every_mode: also `single` where a task has
    `multi_turn`, whose first turn is the same. parts: its tasks and what is run of each; none: all that are listed.
    """

    lengths: tuple[int, ...] | None
    n: int
    far: tuple[int, ...] = ()
    far_n: int = 0
    every_mode: bool = False
    parts: dict[str, Part] = field(default_factory=dict)


FAR = ("kv", "needle", "needle_multi")
SLOW = ("path_trace",)  # hundreds of steps a context: half the contexts do
FEWEST = 4
"""Contexts of a case. Fewer cannot show that it collapsed."""
PROFILES = {
    "quick": Profile((512,), 4),
    "default": Profile((512, 1024), 8, far=(2048,), far_n=4),
    "full": Profile(None, 32, every_mode=True),
    "real": Profile(
        (512,),
        8,
        parts={
            "completion/prose": Part({512: 16, 2048: 4}, ("single",)),
            "completion/echo": Part({512: 8, 1024: 4}),
            "needle_multi": Part({512: 10}, ("multi_request", "multi_turn")),
            "completion/kv": Part({512: 10}),
        },
    ),
}
"""real: for pretrained models. What each of them can do, whatever its size and tokenizer, in some two minutes."""


def infos(tasks: Sequence[str] = (), find: Callable[[str], Task] = find) -> list[TaskInfo]:
    """The declarations of these tasks, by default of all that are listed, by capability and name. Raises SpecError.

    find: gives a task by its name; by default those that need no place to be read from.
    """
    found = [find(name).info for name in dict.fromkeys(tasks or TASKS.names())]
    return sorted(found, key=lambda info: (CAPABILITIES.index(info.capability), info.name))


def cases(
    profile: str = "default",
    lengths: Sequence[int] = (),
    tasks: Sequence[str] = (),
    modes: Sequence[str] = (),
    n: int | None = None,
    capability: str | None = None,
    seed: int = 0,
    find: Callable[[str], Task] = find,
) -> list[CaseId]:
    """The cases of a profile, narrowed or overridden by hand; cases of one (task, length) stand together.

    Raises SpecError for an unknown profile, task or mode, and when a task is asked for in no mode that it has.
    """
    if profile not in PROFILES:
        raise SpecError(f"unknown profile {profile!r}", did_you_mean(profile, PROFILES))
    for mode in modes:
        if mode not in MODES:
            raise SpecError(f"unknown mode {mode!r}", did_you_mean(mode, MODES))
    chosen = PROFILES[profile]
    found = []
    for info in infos(tasks or tuple(chosen.parts), find):
        if capability is not None and info.capability != capability:
            continue
        for length, count in _lengths(chosen, info, lengths, n):
            for mode in _modes(chosen, info, modes):
                found.append(CaseId(info.name, info.version, mode, length, seed, count))
    return found


def _lengths(profile: Profile, info: TaskInfo, lengths: Sequence[int], n: int | None) -> list[tuple[int, int]]:
    """Pairs of a length and its number of contexts."""
    if info.name in profile.parts and not lengths:
        return [(length, n or count) for length, count in profile.parts[info.name].contexts.items()]
    count = n or (max(FEWEST, profile.n // 2) if info.name in SLOW else profile.n)
    count = min(count, info.most or count)
    if lengths:
        return [(length, count) for length in lengths]
    usual = [length for length in profile.lengths or () if length in info.lengths]  # a data set has limits of its own
    pairs = [(length, count) for length in usual or (info.lengths if profile.lengths is None else info.lengths[:1])]
    if info.name in FAR:
        pairs += [(length, n or profile.far_n) for length in profile.far]
    return pairs


def _modes(profile: Profile, info: TaskInfo, modes: Sequence[str]) -> list[str]:
    """The modes to run: those asked for that the task has; by default the profile's."""
    if modes:
        return [mode for mode in info.modes if mode in modes]
    if info.name in profile.parts:
        return list(profile.parts[info.name].modes)
    covered = not profile.every_mode and "multi_turn" in info.modes
    return [mode for mode in info.modes if mode != "single" or not covered]
