"""One table of the report each: what is simulated for it, and in which words it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvcheck.core.record import RUN
from kvcheck.judging.budget import Budget
from kvcheck.power import needed as need
from kvcheck.power import peeking as look
from kvcheck.power import reach as tests
from kvcheck.power.coverage import Missed, missed
from kvcheck.power.judging import ALPHA, together
from kvcheck.power.losses import ANSWERS, TOGETHER, Loss
from kvcheck.power.noise import ANOTHER_MACHINE, IDENTICAL, MANY_FLIPS
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.runs import Outcome, Setup, Simulation
from kvcheck.power.tables import Table

FP16 = ("fp16",)
FAR = 0.01
"""Nats of KL from fp16 from which on a method is one whose doubled KL is to be seen."""
LARGE = 100
"""Contexts of a capability whose loss of 20 points is to be seen."""


@dataclass(frozen=True)
class Figure:
    """One row: what is true, how it is judged, the kind of run, the part of the runs, and the share that is wanted."""

    truth: str
    asked: str
    setup: Setup
    part: int
    least: float | None


def figures(recorded: Recorded) -> list[Figure]:
    """The true losses of the first table."""
    budget = "budget 2, scores alone"
    new = Setup(own=False, nll=False, methods=FP16)
    known = Setup()
    farther = replace(known, methods=tuple(name for name in recorded.methods if recorded.divergence(name) >= FAR))
    tasks, capabilities = recorded.scopes("task"), recorded.scopes("capability")
    single, moved = replace(new, points=20.0), replace(known, loss=Loss(nll=0.5), scopes=capabilities)
    rows = [
        Figure("6 points, whole contexts, evenly", budget, replace(new, points=6.0), 4, 0.95),
        Figure("5 points, single answers, evenly", budget, replace(new, points=5.0, loss=Loss(unit=ANSWERS)), 4, 0.99),
        Figure("half of one task", budget, replace(new, loss=Loss(share=0.5), scopes=tasks), 4, 0.95),
        Figure("2 points, evenly", "own record, scores alone", replace(known, nll=False, points=2.0), 4, 0.85),
        Figure("2 points, evenly", "own record, with nll", replace(known, points=2.0), 4, 0.99),
        Figure("nll +0.1 everywhere", "own record", replace(known, loss=Loss(nll=0.1)), 4, 0.99),
        Figure("nll +0.5 in one capability", "own record", moved, 4, 0.99),
        Figure("KL from fp16 doubled, all else as it was", "own record", replace(farther, loss=Loss(kl=2.0)), 4, 0.95),
        Figure("quick profile: 15 points, evenly", budget, replace(new, points=15.0, quick=True), 4, 0.95),
        Figure(
            "quick profile: 15 points, evenly",
            "own record, scores alone",
            replace(known, nll=False, points=15.0, quick=True),
            4,
            0.95,
        ),
    ]
    sizes = {name: sum(case.n for case in recorded.within(name)) for name in capabilities}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        words = f"20 points in {name.partition(' ')[2]} ({sizes[name]} contexts)"
        large = sizes[name] >= LARGE
        row = Figure(words, budget, replace(single, scopes=(name,)), 4 if large else 6, 0.95 if large else None)
        rows.append(row)
    return rows


def true_losses(sim: Simulation) -> Table:
    """Runs of a method that truly lost something: how many are red, and by what."""
    kinds = figures(sim.recorded)
    setups = [(replace(one.setup, stream=100 + at), sim.plan.share(one.part)) for at, one in enumerate(kinds)]
    rows, raw, broken = [], [], []
    for kind, found in zip(kinds, sim.runs(setups), strict=True):
        rate = Rate(sum(bool(one.failed) for one in found), len(found), least=kind.least)
        at_run = Rate(sum(_at_the_run(one) for one in found), len(found))
        rows.append((kind.truth, kind.asked, str(len(found)), str(rate), _share(at_run), rate.wanted, rate.verdict))
        raw.append({"truth": kind.truth, "asked": kind.asked, "run alone": at_run.share, **rate.plain()})
        broken += [f"{kind.truth}, {kind.asked}: {rate} are red, wanted {rate.wanted}"] * rate.refuted
    note = (
        "Share of whole runs in which anything fails. `Evenly`: in all cases alike; what is lost scores 0. Judged "
        "against fp16 by a budget of 2 points, as a method without a record of its own (the truth is fp16's answers), "
        "or against the method's own record (all methods take turns). Both records have the noise of another machine. "
        "With nll, a lost answer gets less likely as answers did that a recorded method lost. `Half of one task` and "
        "`one capability`: they take turns. The default profile has "
        f"{len(sim.recorded.cases)} cases and {sum(case.n for case in sim.recorded.cases)} contexts."
    )
    head = ("what is lost", "judged by", "runs", "red, %", "by the verdict on the run, %", "wanted", "figure")
    return Table("What a run sees", note, head, "<<>>><<", tuple(rows), (), tuple(broken), tuple(raw))


def _at_the_run(one: Outcome) -> bool:
    return any(scope == RUN for scope, _ in one.failed)


def _share(rate: Rate) -> str:
    return f"{100 * rate.share:.0f} %"


def against_itself(sim: Simulation) -> Table:
    """Whole runs of a method against itself: how many have any failure."""
    own, by_fp16 = "own record", "fp16, budget 2"
    kinds = (
        (IDENTICAL, own, Setup(IDENTICAL), sim.plan.share(4), 0.0),
        (ANOTHER_MACHINE, own, Setup(ANOTHER_MACHINE), sim.plan.runs, 0.01),
        (ANOTHER_MACHINE, by_fp16, Setup(ANOTHER_MACHINE, own=False, methods=FP16), sim.plan.share(4), 0.01),
        (MANY_FLIPS, own, Setup(MANY_FLIPS), sim.plan.share(10), ALPHA),
    )
    setups = [(replace(setup, stream=1 + at), count) for at, (_, _, setup, count, _) in enumerate(kinds)]
    rows, raw, broken = [], [], []
    for (noise, asked, _, count, most), found in zip(kinds, sim.runs(setups), strict=True):
        rate = Rate(sum(bool(one.failed) for one in found), count, most=most)
        where = _where(found)
        rows.append((noise.name, str(noise), asked, str(count), str(rate), where, rate.wanted, rate.verdict))
        raw.append({"noise": noise.name, "asked": asked, **rate.plain(), "where": where})
        broken += [f"A/A, {noise.name}, {asked}: {rate} of the runs fail, at most {most:.0%} may"] * rate.refuted
    note = (
        f"Share of runs in which anything fails though nothing changed. At most {ALPHA:.0%} is promised, of any noise "
        "that hits both records alike; at most 1 % is wanted of another machine. The methods take turns."
    )
    head = ("rerun", "noise of both records", "judged by", "runs", "red, %", "what failed", "wanted", "figure")
    return Table("A method against itself", note, head, "<<<>><<<", tuple(rows), (), tuple(broken), tuple(raw))


def _where(found: list[Outcome]) -> str:
    counts = Counter(
        (scope.partition(" ")[0] if "/" not in scope else "case", question)
        for one in found
        for scope, question in set(one.failed)
    )
    return ", ".join(f"{question} of {scope} {count}" for (scope, question), count in sorted(counts.items())) or "none"


def intervals(sim: Simulation) -> Table:
    """Coverage of the intervals of the run, its capabilities and its tasks."""
    new = Setup(own=False, methods=FP16, budget=Budget(drop=2.0, nll=0.05))
    worlds = (
        ("nothing lost", new),
        ("3 % of contexts lost", replace(new, nll=False, loss=Loss(share=0.03))),
        ("20 % of contexts lost", replace(new, nll=False, loss=Loss(share=0.2))),
        ("5 % of answers lost", replace(new, nll=False, loss=Loss(share=0.05, unit=ANSWERS))),
        ("20 % of contexts lost, each in all of its modes", replace(new, nll=False, loss=Loss(0.2, TOGETHER))),
        ("methods as recorded", replace(new, methods=())),
    )
    count = sim.plan.share(5)
    found = sim.runs([(replace(setup, stream=300 + at), count) for at, (_, setup) in enumerate(worlds)], together)
    every: list[tuple[str, Missed]] = []
    for (name, setup), outcomes in zip(worlds, found, strict=True):
        for question in ("budget", "nll") if setup.nll else ("budget",):
            every += [(name, one) for one in missed(sim.recorded, setup, outcomes, question)]
    rows, raw, broken = [], [], []
    for name, one in every:
        what = "accuracy" if one.question == "budget" else "nll"
        rows.append((name, what, one.kind, str(one.above), str(one.either), one.either.verdict, one.worst))
        raw.append({"truth": name, "of": what, "scope": one.kind, "above": one.above.plain(), **one.either.plain()})
        for side, rate in (("above the truth", one.above), ("beside the truth", one.either)):
            broken += [f"{name}, {what}, {one.kind}: {rate} of the intervals lie {side}, {rate.wanted}"] * rate.refuted
    note = (
        f"How often an interval of level 95 % lies beside the true drop against fp16, in {count} runs on another "
        "machine. Above the truth (at most 2.5 %) it may accuse a harmless method. Those of all capabilities and of "
        "all tasks are counted together; beside them the one that missed most often, which is the worst of 7 or 19 by "
        "chance, too."
    )
    head = ("what is true", "of", "scope", "above the truth, %", "beside the truth, %", "figure", "worst")
    return Table("Coverage of the intervals", note, head, "<<<>><<", tuple(rows), (), tuple(broken), tuple(raw))


POINTS = (3.0, 5.0, 10.0)
_KINDS = (
    ("own record, scores alone", Setup(nll=False, quick=True)),
    (
        "fp16, budget 0, scores alone",
        Setup(own=False, nll=False, quick=True, methods=FP16, budget=Budget(drop=0.0)),
    ),
    ("own record, with nll", Setup(quick=True)),
)


def needed(sim: Simulation) -> Table:
    """Contexts until the verdict on the run fails, beside the usual gate."""
    sims = sim.plan.share(10)
    tasks = [(points, at, sims, sim.plan.seed) for points in POINTS for at in range(len(_KINDS))]
    found = {(points, at): one for points, at, one in sim.each(_needed, tasks)}
    rows, said, raw = [], [], []
    for points in POINTS:
        usual = need.usual(points)
        unpaired = [need.usual(points, *need.spread(sim.recorded, methods, points)) for methods in (FP16, ())]
        mine = [found[points, at] for at in range(len(_KINDS))]
        rows.append((f"{points:g}", f"{usual:,}", *(f"{one:,}" for one in unpaired), *map(str, mine)))
        raw.append({"points": points, "usual": usual, "unpaired": unpaired, "needed": [one.n for one in mine]})
        for (name, _), one in zip(_KINDS, mine, strict=True):
            share = (one.n or one.most) / usual
            word = "more than " * (one.n is None)
            tenth = "at most a tenth" if one.n is not None and share <= 0.1 else "more than a tenth"
            said.append(f"{points:g} points, {name}: {word}{share:.1%} of the usual gate's contexts, {tenth}")
    broken = [line for line in said[:1] if "more than a tenth" in line]
    note = (
        "Contexts for power 0.8, where a share of the contexts lose all their answers, on another machine. Usual gate: "
        "one threshold on unpaired means, as in TensorRT-LLM's accuracy suite: 2 (1.645 + 0.842)^2 sigma^2 / drop^2 "
        "with sigma 50 points; beside it the same test with the standard deviation that the scores of fp16, and of all "
        "methods, really have. Then the verdict on the run (the first line of the summary), which has a few percent of "
        "the alpha of that single test, the rest being for capabilities, tasks, cases and the other questions: the "
        f"cases of the quick profile with more and more contexts of each, {sims} runs each."
    )
    head = (
        "true drop, points",
        "usual gate",
        "unpaired, sd of fp16",
        "unpaired, sd of all",
        *(name for name, _ in _KINDS),
    )
    return Table(
        "Contexts needed to see a true drop", note, head, ">" * 7, tuple(rows), tuple(said), tuple(broken), tuple(raw)
    )


def _needed(recorded: Recorded, points: float, at: int, sims: int, seed: int) -> tuple[float, int, need.Needed]:
    setup = replace(_KINDS[at][1], points=points, stream=round(500 + 10 * points + at))
    return points, at, need.needed(recorded, setup, need.usual(points), sims, seed)


def peeking(sim: Simulation) -> Table:
    """The sequential test under the hardest null: the drop is the limit."""
    sims = sim.plan.share(3)
    tasks = [(world, 64, sims, sim.plan.seed, at) for at, world in enumerate(look.worlds(sim.recorded))]
    found = sorted(sim.each(look.peek, tasks), key=lambda one: one.world)
    rows = tuple((one.world, str(one.failed), one.failed.verdict) for one in found)
    broken = tuple(f"{one.world}: {one.failed} of the cases fail without cause" for one in found if one.failed.refuted)
    raw = tuple({"world": one.world, "n": one.n, **one.failed.plain()} for one in found)
    note = (
        f"{sims} cases of 64 contexts at level {ALPHA:.0%}, looked at after every 4; the limit is exactly the true "
        "drop, so that each failure is a false one. A case of a run has a far smaller level."
    )
    head = ("what is true", "failed without cause, %", "figure")
    return Table("Looking after every block", note, head, "<><", rows, (), broken, raw)


def left_out(sim: Simulation) -> Table:
    """What the gate cannot fail by, of each profile."""
    rows: list[tuple[str, ...]] = []
    raw: list[dict[str, object]] = []
    for profile in tests.PROFILES:
        every = list(tests.reach(profile))
        for level in ("run", "capability", "task", "case"):
            mine = [one for one in every if one.level == level]
            out = [one for one in mine if not one.can_fail]
            rows.append((profile, level, str(len(mine) - len(out)), "; ".join(_named(out)) or "none"))
            raw.append({"profile": profile, "level": level, "tests": len(mine), "left out": list(_named(out))})
        sim.tick(len(raw), 4 * len(tests.PROFILES))
    note = (
        "A test can fail where the smallest p-value that its contexts can give is at most its level. What cannot fail "
        "is left out of the verdicts on capabilities and tasks. A case asks it all the same, and cannot fail by it; "
        "all cases together can fail by every question. Each of a user's limits (`drop`, `nll`, "
        "`agree`, `kl`) is counted as if it were the only one."
    )
    head = ("profile", "level", "tests that can fail", "cannot fail")
    return Table("Tests that cannot fail", note, head, "<<><", tuple(rows), (), (), tuple(raw))


def _named(out: list[tests.Reach]) -> Iterator[str]:
    """Where they cannot fail, by questions."""
    questions: dict[tuple[str, int], dict[str, None]] = {}
    for one in out:
        name = one.scope.partition("/")[0] if one.level == "case" else one.scope.partition(" ")[2]
        questions.setdefault((name, one.n), {})[one.question] = None
    places: dict[tuple[str, int], list[str]] = {}
    for (name, n), asked in questions.items():
        places.setdefault((", ".join(asked), n), []).append(name)
    for (words, n), names in places.items():
        yield f"{words} of {n} contexts: {', '.join(names)}"
