"""What is asked of a method: which limits hold, and against which records. The gate and `kvcheck compare` ask by it."""

from __future__ import annotations

from collections.abc import Mapping

from kvcheck.core.record import CaseRecord
from kvcheck.judging.budget import Budget
from kvcheck.judging.informative import why_not_here
from kvcheck.judging.limits import lossless
from kvcheck.judging.pooled import Compared


def budget_of(given: Mapping[str, float | None], own: CaseRecord | None, against: str) -> Budget:
    """What a method may cost; given: the limits that the user set.

    A method with a record of its own is held to that; the drop against fp16 is asked where it has none, or where the
    user set a limit.
    """
    recorded = own is not None and against == "both"
    return Budget(**{"drop": None if recorded else Budget().drop, **given})


def compared(
    record: CaseRecord,
    fp16: CaseRecord | None,
    own: CaseRecord | None,
    budget: Budget,
    against: str,
    why: str | None = None,
) -> Compared:
    """A record with what all cases together are judged against, by the budget of its case: the same as for it alone.

    why: the case is not informative, by default what fp16's record says.
    """
    why = why_not_here(record, fp16) if why is None else why
    asked = against != "self" or own is None
    own = None if against == "fp16" else own
    return Compared(record, fp16 if asked else None, own, budget.drop is not None, why, lossless(record))
