"""The test items that take something of kvcheck: what each of them must bring to an end."""

from __future__ import annotations

import pytest

from kvcheck.plugin import options
from kvcheck.store.journal import Item

CASE, LATENCY, PROPERTY, FINDING, CANDIDATE = options.FIXTURES
ITEM: pytest.StashKey[Item | None] = pytest.StashKey()
PLACE: pytest.StashKey[int] = pytest.StashKey()
COLLECTED: pytest.StashKey[int] = pytest.StashKey()


def of(item: pytest.Item) -> Item | None:
    """What the item is about; None for a test that takes nothing of kvcheck, or has nothing to do."""
    if ITEM not in item.stash:
        item.stash[ITEM] = _find(item)
    return item.stash[ITEM]


def _find(item: pytest.Item) -> Item | None:
    params = getattr(getattr(item, "callspec", None), "params", {})
    for kind in options.FIXTURES:
        subject = params.get(kind)
        if isinstance(subject, options.Subject):  # else the place holder of a suite that has no case
            return Item(item.nodeid, kind, subject.case or item.name, subject.method)
    return None


def number(item: pytest.Item) -> None:
    """Remember the place that an item has among all that were collected."""
    item.stash[PLACE] = item.config.stash[COLLECTED] = item.config.stash.get(COLLECTED, 0) + 1


def in_order(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the items of kvcheck back into the order in which they were collected, in place; other tests stay.

    A plugin that shuffles tests would tear apart what shares its prefills, and put methods before the fp16 that they
    are compared with. What pytest itself was asked for, --ff and --nf, stands.
    """
    if config.getoption("failedfirst", False) or config.getoption("newfirst", False):
        return
    mine = [at for at, item in enumerate(items) if of(item) is not None]
    ordered = sorted((items[at] for at in mine), key=lambda item: item.stash.get(PLACE, 0))
    for at, item in zip(mine, ordered, strict=True):
        items[at] = item
