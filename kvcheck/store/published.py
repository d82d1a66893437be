"""Published full-cache scores, which a user's own fp16 run is held against: `baselines/published.toml`. Pure."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvcheck.core.errors import BaselineError
from kvcheck.core.formats import Json, read_toml
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseRecord, context_score

SLACK = 2.0
"""Points beyond two standard errors: other hardware, libraries and rounding."""
FEWEST = 30
"""Contexts from which on a mean says something."""
OWN_WORDING = "kvcheck/v1"
ABOUT = frozenset(("source", "limit", "mode", "tasks", "capability"))


@dataclass(frozen=True)
class Published:
    """One published score of the full cache, in points.

    model: hub id. task: "longbench/qasper", or a suite ("ruler_4096"), the mean of whose `tasks` tasks it is. limit:
    tokens of the prompt, None where any will do. mode: of the cases, None for `single`. capability: of the tasks of the
    suite that count, None for all.
    """

    model: str
    task: str
    score: float
    source: str
    mode: str | None = None
    limit: int | None = None
    tasks: int = 1
    capability: str | None = None


def read(path: Path) -> tuple[Published, ...]:
    """The scores of a file. Raises BaselineError that names what is wrong."""
    try:
        table = read_toml(path.read_text(encoding="utf-8"))
        return tuple(one for model, parts in table.items() for part in parts for one in _scores(model, part))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BaselineError(f"{path} cannot be read: {error!r}", "see the shipped file for the format") from error


def _scores(model: str, part: dict[str, Json]) -> list[Published]:
    about = {name: value for name, value in part.items() if name in ABOUT}
    return [Published(model, name, float(score), **about) for name, score in part.items() if name not in ABOUT]


@cache
def shipped() -> tuple[Published, ...]:
    """Those that come with kvcheck."""
    return read(bundle("baselines") / "published.toml")


def gaps(records: Iterable[CaseRecord], model: str, known: Sequence[Published] | None = None) -> list[str]:
    """A line for every fp16 score of the model (a hub id, or a folder of that name) that is far from a published one.

    Far: by more than two standard errors, of as many contexts as the user has, and SLACK points.
    """
    own = [record for record in records if record.method == "fp16" and record.samples]
    lines = []
    for one in shipped() if known is None else known:
        if not _named(model, one.model):
            continue
        found = [record for record in own if _fits(record, one)]
        if len({record.case.task for record in found}) < one.tasks:
            continue
        lines += _gap(found, one) if found else []
    return lines


def _named(model: str, published: str) -> bool:
    """Whether a model is called as a published one: by hub id, by a folder of that name, or as reports name a folder,
    with eight digits of its fingerprint (ModelId.of)."""
    name, known = (text.rstrip("/").rpartition("/")[2].lower() for text in (model, published))
    return re.fullmatch(rf"{re.escape(known)}(-[0-9a-f]{{8}})?", name) is not None


def _fits(record: CaseRecord, one: Published) -> bool:
    """Whether a record is of what was published: task, limit, mode, and the benchmark's own wording."""
    case = record.case
    task = case.task == one.task or case.task.startswith(one.task + "/")
    alike = one.limit in (None, case.length) and case.mode == (one.mode or "single")
    alike = alike and one.capability in (None, record.capability)
    return task and alike and len(record.samples) >= FEWEST and dict(record.switches).get("template") != OWN_WORDING


def _gap(found: list[CaseRecord], one: Published) -> list[str]:
    """The line, none where the scores agree."""
    means, errors = [], []
    spread = math.sqrt(one.score * (100 - one.score))  # of right and wrong answers: graded ones spread less
    for record in found:
        scores = [100 * context_score(sample) for sample in record.samples]
        means.append(statistics.fmean(scores))
        errors.append(spread / math.sqrt(len(scores)))
    gap = statistics.fmean(means) - one.score
    error = math.hypot(*errors) / len(errors)
    if abs(gap) <= 2 * error + SLACK:
        return []
    side = "under" if gap < 0 else "above"
    limit = f", the prompt limit ({one.limit} tokens there)" if one.limit else ""
    what = " ".join(filter(None, (one.task, one.capability)))
    return [
        f"your fp16 on {what} is {abs(gap):.1f} points {side} the published {one.score:g} of {one.model} "
        f"({one.source}), more than {2 * error + SLACK:.1f} by chance: check the chat template{limit}, the stop tokens"
    ]
