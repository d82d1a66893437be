"""Try a property on a method: Hypothesis draws the trials and shrinks the first one that fails."""

from __future__ import annotations

import math
import traceback
import zlib
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings

from kvcheck.backends.transformers.surroundings import untouched
from kvcheck.conformance import models, properties  # noqa: F401  (registers the shipped ones)
from kvcheck.conformance.base import PROPERTIES, PropertyTest
from kvcheck.conformance.draw import LONGEST, Draw, draws
from kvcheck.conformance.models import CONFIGS, MINI, OTHERS
from kvcheck.conformance.subject import NotServed, Subject, Violation
from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.record import EXCUSED, FAILS, HOLDS, UNSERVED, PropertyRecord
from kvcheck.methods import make
from kvcheck.methods.adapters.foreign import Foreign, smoke
from kvcheck.report.text import plural

TRIALS = {"quick": 5, "real": 5, "default": 8, "full": 60}
"""Trials of a property, by profile, beside the simplest one, which Hypothesis always tries first."""
AGAIN = 1009
"""Added to the seed for the second opinion on a failure."""
SHRINKING = 30
"""Trials that shrinking may take: it would otherwise take hundreds."""
SHORT = 3
"""Tokens of a prompt in which next to nothing can happen."""
RARELY = 4
"""One trial of so many may have a short prompt."""
NAMED = 8
"""Changes that a failure names."""
ENOUGH = 4
"""Trials from which on it is a failure that more than half fail, if only once each."""


def check(name: str, spec: str, **drawn: Any) -> None:
    """One trial of a property. Raises Violation where it does not hold, NotServed where it says nothing.

    name: of a property; spec: of a method; drawn: the fields of a Draw. Raises SpecError for an unknown property.
    """
    if name not in PROPERTIES:
        raise SpecError(f"unknown property {name!r}", did_you_mean(name, PROPERTIES))
    trial(PROPERTIES[name], spec, Draw(**drawn))


def trial(one: PropertyTest, spec: str, draw: Draw) -> list[str]:
    """One trial -> remarks. Raises Violation, also for an accident of the method."""
    subject = None
    with torch.inference_mode():
        try:
            subject = Subject(spec, draw)
            one.check(subject)
            return subject.remarks
        except (Violation, NotServed):
            raise
        except KvcheckError as error:
            raise Violation(f"it raised {type(error).__name__}: {error}") from error
        except Exception as error:
            raise Violation(accident(error, subject)) from error


def accident(error: Exception, subject: Subject | None) -> str:
    """What an exception says: where it was raised, by whom where that is none of ours, and the shapes at hand."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not any(part in each.filename for part in NOT_OWN)]
    place = _place(frames[-1])
    if own and own[-1] is not frames[-1]:
        place += f", called in {_place(own[-1])}"
    said = f"it raised {type(error).__name__} in {place}: {error}"
    return f"{said}; {subject.shapes()}" if subject and any(word in str(error) for word in SHAPES) else said


NOT_OWN = ("/kvcheck/", "/site-packages/", "/lib/python")
"""In paths of files that are not the user's."""
SHAPES = ("size", "shape", "dimension", "index", "expand")
"""In messages of torch that are about shapes."""


def _place(frame: traceback.FrameSummary) -> str:
    """A function with its file and line."""
    return f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"


def examine(name: str, spec: str, trials: int, seed: int = 0) -> PropertyRecord:
    """Try a property on the simplest trial and `trials` others; another seed draws others. A bad spec raises SpecError.

    A property that takes long is tried on its share of them. A method that leaves anything changed that others are
    tried with fails, whatever the property says.
    """
    with untouched() as changed:
        found = _examined(name, spec, trials, seed)
    changed += [f"the weights of {each}" for each in models.restored()]
    if not changed:
        return found
    told = f"it changed what other methods are measured with: {', '.join(changed[:NAMED])}"
    return replace(found, outcome=FAILS, reason=f"{found.reason}; {told}" if found.outcome == FAILS else told)


def _examined(name: str, spec: str, trials: int, seed: int) -> PropertyRecord:
    """The same, whatever is changed meanwhile."""
    one = PROPERTIES[name]
    exemption = one.exemption(make(spec).info)
    if exemption:
        return PropertyRecord(name, spec, EXCUSED, reason=exemption)
    search = Search(one, spec, served(spec))
    decide = settings(
        max_examples=1 + math.ceil(one.share * trials),
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that sharing the work takes longer than doing it
    # the seed is of the name alone: where a property stands, and what its decorator is called, changes no trial
    try:
        hypothesis.seed(zlib.crc32(f"{name} {seed}".encode()))(
            decide(given(draws(search.architectures, one.longest, one.steps))(search.attempt))
        )()
    except Violation:
        reason = f"{search.reason}; fed: {(search.smallest or Draw()).fed()}"
        return PropertyRecord(name, spec, FAILS, search.seen["held"] + 1, reason, snippet(one, search))
    finally:
        torch.set_num_threads(threads)
    return search.record()


def snippet(one: PropertyTest, search: Search) -> str:
    """A test of the smallest failing trial, to be pasted."""
    given = "".join(f", {text}" for text in [(search.smallest or Draw()).text()] if text)
    return (
        "from kvcheck.conformance.runner import check\n\n\n"
        f"def test_{one.name}():\n"
        f'    """{one.claim}"""\n'
        f'    check("{one.name}", {search.spec!r}{given})\n'
    )


def feeds(spec: str) -> bool:
    """Whether a method from elsewhere can be fed a few tokens of the simplest small model; true of other methods."""
    method, loaded = make(spec), models.small("llama")
    if not isinstance(method, Foreign):
        return True
    with untouched(), torch.inference_mode():
        return not smoke(method, loaded)


@cache
def served(spec: str) -> tuple[str, ...]:
    """The small models that a method serves; the embedded one where it serves none of them."""
    found = []
    for architecture in OTHERS if isinstance(make(spec), Foreign) else CONFIGS:
        try:
            Subject(spec, Draw(architecture)).expect_served()
            found.append(architecture)
        except NotServed:
            continue
    return tuple(found) or (MINI,)


class Search:
    """The trials of one property. Hypothesis draws them, and shrinks the first one that fails in SHRINKING trials."""

    def __init__(self, one: PropertyTest, spec: str, architectures: tuple[str, ...]) -> None:
        self.one, self.spec, self.architectures = one, spec, architectures
        self.seen: Counter[str] = Counter()
        self.known: dict[Draw, str | None] = {}
        self.smallest: Draw | None = None
        self.reason = ""
        self.left = SHRINKING
        self.once: list[tuple[Draw, str]] = []
        self.remarks: list[set[str]] = []

    def attempt(self, draw: Draw) -> None:
        """One trial, at most once each; when shrinking has had its trials, nothing smaller fails any more."""
        if draw not in self.known:
            if self._says_little(draw):
                hypothesis.reject()  # and another one is drawn
            if self.smallest is not None:
                self.left -= 1
            self.known[draw] = self._failure(draw) if self.left >= 0 else None
        elif self.smallest is None:
            hypothesis.reject()  # drawn in another way before
        reason = self.known[draw]
        if reason is not None:
            self.smallest, self.reason = draw, reason
            raise Violation(reason)

    def record(self) -> PropertyRecord:
        """What is to be said where no trial failed and went on failing."""
        held, once, name = self.seen["held"], len(self.once), self.one.name
        said = f"{plural(once, 'trial')} failed once and not again, the first one: {self.once[0][1]}" if once else ""
        if 2 * once > held + once >= ENOUGH:
            self.smallest, said = self.once[0][0], f"of {held + once}, {said}"
            return PropertyRecord(name, self.spec, FAILS, held + once, said, snippet(self.one, self))
        if held:
            always = sorted(set.intersection(*self.remarks)) if self.remarks else []
            return PropertyRecord(name, self.spec, HOLDS, held, "; ".join([*([said] if said else []), *always]))
        reason = self.seen.most_common(1)[0][0] if self.seen else "no trial was drawn"
        return PropertyRecord(name, self.spec, UNSERVED, 0, said or reason)

    def _says_little(self, draw: Draw) -> bool:
        """Whether trials said much the same before: Hypothesis varies what it drew, and comes back to what is short.

        Architectures take turns; where long prompts are drawn, one trial of RARELY has one, from the third trial on.
        """
        if self.smallest is not None:
            return False
        tried = len(self.known)
        if (draw.architecture, draw.prompt) in {(one.architecture, one.prompt) for one in self.known}:
            return True
        if sum(one.architecture == draw.architecture for one in self.known) > tried // len(self.architectures):
            return True
        if draw.prompt <= SHORT:
            return RARELY * sum(one.prompt <= SHORT for one in self.known) > tried
        long = sum(one.prompt > LONGEST for one in self.known)
        due = self.one.longest > LONGEST and RARELY * (long + 1) <= tried + 2
        return due and draw.prompt <= LONGEST

    def _failure(self, draw: Draw) -> str | None:
        """Why a trial fails and goes on failing with other tokens, None where it does not."""
        try:
            remarks = trial(self.one, self.spec, draw)
            self.remarks.append(set(remarks))
            self.seen["held"] += self.smallest is None
        except NotServed as reason:
            self.seen[str(reason)] += 1
        except Violation as violation:
            if _confirmed(self.one, self.spec, draw):
                return str(violation)
            if self.smallest is None:
                self.once.append((draw, str(violation)))
        return None


def _confirmed(one: PropertyTest, spec: str, draw: Draw) -> bool:
    """Whether other tokens of the same shape fail too: two scores that are all but tied may fall either way once."""
    try:
        trial(one, spec, replace(draw, seed=draw.seed + AGAIN))
    except NotServed:
        return False
    except Violation:
        return True
    return False
