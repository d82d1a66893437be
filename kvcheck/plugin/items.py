"""The test items that take something of kvcheck: what each of them must bring to an end."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from kvcheck.plugin import options, state
from kvcheck.store.journal import Item

ITEM: pytest.StashKey[Item | None] = pytest.StashKey()
PLACE: pytest.StashKey[int] = pytest.StashKey()
COLLECTED: pytest.StashKey[int] = pytest.StashKey()
SELECTED: pytest.StashKey[list[pytest.Item]] = pytest.StashKey()


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


def select(session: pytest.Session) -> None:
    """Write down the items that this session must bring to an end."""
    journal = state.of(session.config).journal
    session.stash[SELECTED] = list(session.items)
    if journal is not None:
        journal.item([found for item in session.items if (found := of(item)) is not None])


def expect_all(session: pytest.Session) -> None:
    """Refuse a session that selected items were taken out of afterwards.

    A worker, which has told the controller of them, gets them back, and the first of them says so.
    """
    left = {item.nodeid for item in session.items}
    selected = session.stash[SELECTED]
    gone = [item.nodeid for item in selected if (found := of(item)) is not None and found.nodeid not in left]
    if not gone:
        return
    text = (
        f"kvcheck: {len(gone)} selected items were taken out of the session, {gone[0]} first, by a "
        "pytest_collection_finish of a conftest.py or a plugin\n  to leave cases out: -k, -m or --deselect"
    )
    if not hasattr(session.config, "workerinput"):
        raise pytest.UsageError(text)
    session.items[:] = selected
    state.of(session.config).refusal = text


def number(item: pytest.Item) -> None:
    """Remember the place that an item has among all that were collected; name its file where that is not below rootdir.

    pytest leaves the file out there, and `::test_code[…]` is nothing that could be typed again.
    """
    if item.nodeid.startswith("::"):
        with suppress(ValueError):  # another drive of Windows
            file = os.path.relpath(item.path, item.config.rootpath).replace(os.sep, "/")
            kept, text = getattr(item, "_id", None), file + item.nodeid
            if kept is None:
                setattr(item, "_nodeid", text)  # noqa: B010  of pytest before 9.2
            else:
                item._id = type(kept).parse(text)
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
