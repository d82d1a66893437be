"""One table of the report each: what is simulated for it, and in which words it is shown."""

from __future__ import annotations

from collections import Counter

from kvcheck.power import coverage
from kvcheck.power import needed as need
from kvcheck.power.noise import ANOTHER_MACHINE, IDENTICAL, ONE_WAY, Noise
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.runs import Outcome, Setup, Simulation
from kvcheck.power.tables import Table

ALPHA = 0.05
POINTS = (3.0, 5.0, 10.0, 20.0)


def against_itself(sim: Simulation) -> Table:
    """(a) Whole runs of a method against itself: how many have any failure."""
    kinds = ((IDENTICAL, sim.plan.share(4)), (ANOTHER_MACHINE, sim.plan.runs), (ONE_WAY, sim.plan.share(10)))
    rows, raw, broken, cases = [], [], [], len(sim.recorded.cases)
    done = sim.runs([(Setup(noise, stream=at), count) for at, (noise, count) in enumerate(kinds)])
    for (noise, count), found in zip(kinds, done, strict=True):
        rate = Rate(sum(bool(one.failed) for one in found), count, ALPHA if noise.both else None)
        rows.append((noise.name, str(noise), str(count), str(rate), _asked(found), rate.verdict))
        raw.append({"noise": noise.name, **rate.plain(), "questions": _asked(found)})
        broken += [f"A/A, {noise.name}: {rate} of the runs fail, promised at most {ALPHA:.0%}"] if rate.refuted else []
    note = (
        f"Share of runs in which any of the {cases} cases fails, each judged at {ALPHA:g} / {cases}; "
        f"at most {ALPHA:.0%} was promised. The methods take turns. In `one way` the mean score truly falls, by "
        "the 2 points that DriftRule.points grants other hardware, so that nothing is promised."
    )
    head = ("rerun", "noise model", "runs", "runs with a false failure, %", "questions failed", "promise")
    return Table(
        "A method against itself: whole runs", note, head, "<<>><<", tuple(rows), (), tuple(broken), tuple(raw)
    )


def _asked(found: list[Outcome]) -> str:
    counts = Counter(question for one in found for question, _ in one.failed)
    return ", ".join(f"{question} {count}" for question, count in sorted(counts.items())) or "none"


def one_case(sim: Simulation) -> Table:
    """(a) One case alone at the full alpha, where the tests have room to err."""
    still = coverage.still(sim.recorded)
    noises = (
        ANOTHER_MACHINE,
        Noise("5 % of answers flip", flips=0.05, jumps=ANOTHER_MACHINE.jumps, jitter=ANOTHER_MACHINE.jitter),
        Noise("one way, 1 %", flips=0.01, jumps=ONE_WAY.jumps, jitter=ONE_WAY.jitter, both=False),
        ONE_WAY,
    )
    sims = sim.plan.share(4)
    tasks = [(world, n, noise, sims, sim.plan.seed) for world in still for noise in noises for n in (32, 128)]
    found = sim.each(coverage.peek_regression, tasks)
    return _peeked(
        "A method against itself: one case at alpha 0.05",
        f"Share of {sims} simulated cases of n contexts that fail against the method's own record (scores and drift, "
        "with a look after every block). `another machine` and `5 %` hit both records alike: at most 5 % may fail. In "
        "`one way` only the rerun loses, so that the mean score truly falls, by no more than the 2 points which "
        "DriftRule.points grants other hardware: nothing is promised, but a failure is a nuisance.",
        found,
    )


def _peeked(title: str, note: str, found: list[coverage.Peeking]) -> Table:
    found = sorted(found, key=lambda one: (one.question, one.world, one.n))
    rows = [(one.world, one.question, str(one.n), str(one.failed), one.failed.verdict) for one in found]
    broken = [
        f"{one.world}, n = {one.n}: {one.failed} of the cases fail the {one.question} question without cause"
        for one in found
        if one.failed.refuted
    ]
    raw = tuple({"world": one.world, "question": one.question, "n": one.n, **one.failed.plain()} for one in found)
    head = ("what is true", "question", "n", "failed without cause, %", "promise")
    return Table(title, note, head, "<<>><", tuple(rows), (), tuple(broken), raw)


def needed(sim: Simulation) -> Table:
    """(b) Contexts for a true drop, beside the usual gate."""
    sims = sim.plan.share(2)
    tasks = [(points, sims, sim.plan.share(10), sim.plan.seed) for points in POINTS]
    found = sim.each(_needed_row, tasks)
    cells = [row for _, row in sorted(found, key=lambda one: one[0])]
    head = (
        "true drop, points", "usual gate, sigma 50", "unpaired, sd of these scores", "paired test, identical rerun",
        "paired test, another machine", "kvcheck's verdict on one case, scores alone", "the same with nll",
    )  # fmt: skip
    note = (
        "Contexts for power 0.8 at alpha 0.05, where a share of the contexts lose all their answers. Usual gate: a "
        "one-sided two-sample test on unpaired means as in TensorRT-LLM's accuracy suite, 2 (1.645 + 0.842)^2 sigma^2 "
        "/ drop^2 with sigma 50 points; beside it the same test with the standard deviation that the scores really "
        "have before and after. These and the paired test (McNemar or sign-flip) are on the contexts of all methods, "
        f"{need.pool(sim.recorded, '', sim.recorded.methods).turns:.1f} questions each. The verdict is `judge` on one "
        "complete case of contexts with one question each, on another machine; half of its alpha goes to the drift and "
        "half of the rest to the interval. The nll of a lost answer rises as it did where a recorded method lost one. "
        f"{sims} simulations each, {sim.plan.share(10)} for the verdicts."
    )
    raw: tuple[dict[str, object], ...] = tuple(dict(zip(head, map(str, row), strict=True)) for row in cells)
    rows = tuple(tuple(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row) for row in cells)
    return Table(
        "Contexts needed to see a true drop", note, head, ">" * 7, rows, tuple(_tenth(head, cells[0])), (), raw
    )


def _tenth(head: tuple[str, ...], row: tuple[object, ...]) -> list[str]:
    """At the smallest drop: is it a tenth of the usual gate?"""
    usual, said = int(str(row[1])), []
    for name, cell in zip(head[2:], row[2:], strict=True):
        count = cell.n if isinstance(cell, need.Needed) else int(str(cell))
        if count is not None:
            word = "at most a tenth" if 10 * count <= usual else "more than a tenth"
            said.append(f"{row[0]:g} points: {name}: {count / usual:.1%} of {usual}, {word}")
    return said


def _needed_row(recorded: Recorded, points: float, sims: int, few: int, seed: int) -> tuple[float, tuple[object, ...]]:
    every = need.pool(recorded, "all", recorded.methods)
    tests = [need.paired(recorded, every, points, noise, sims, seed) for noise in (IDENTICAL, ANOTHER_MACHINE)]
    verdicts = [need.judged(recorded, points, ANOTHER_MACHINE, nll, few, seed) for nll in (False, True)]
    unpaired = need.usual(points, *need.spread_after(every.means, points))
    return points, (points, need.usual(points), unpaired, *tests, *verdicts)


def by_method(sim: Simulation) -> Table:
    """(b) The same for a drop of 3 points, method by method."""
    sims = sim.plan.share(4)
    tasks = [(method, sims, sim.plan.seed) for method in sim.recorded.methods]
    found = sim.each(_method_row, tasks)
    found.sort(key=lambda one: one[-1])
    usual = need.usual(3.0)
    counts = [one[4].n or one[4].most for one in found]
    fair = [count / one[3] for one, count in zip(found, counts, strict=True)]
    said = (
        f"of the usual gate's {usual} contexts the paired test needs {min(counts) / usual:.1%} to "
        f"{max(counts) / usual:.1%}; at most a tenth for {sum(10 * count <= usual for count in counts)} of "
        f"{len(counts)} methods",
        f"of an unpaired test that knows the spread of the scores it needs {min(fair):.0%} to {max(fair):.0%}: where "
        "nearly every answer is right there is hardly a spread that pairing could take out",
    )
    rows = [(one[0], f"{one[1]:.1f}", f"{one[2]:.1f}", str(one[3]), str(one[4]), str(one[4].power)) for one in found]
    head = ("method", "accuracy", "sd, points", "unpaired, sd of these scores", "paired test", "its power, %")
    raw: tuple[dict[str, object], ...] = tuple(
        {"method": one[0], "accuracy": one[1], "sd": one[2], "unpaired": one[3], "paired": one[4].n} for one in found
    )
    note = f"Drop of 3 points, rerun on another machine, {sims} simulations; the usual gate needs {usual} contexts."
    return Table("A drop of 3 points, method by method", note, head, "<>>>>>", tuple(rows), said, (), raw)


def _method_row(
    recorded: Recorded, method: str, sims: int, seed: int
) -> tuple[str, float, float, int, need.Needed, str]:
    found = need.pool(recorded, method, [method])
    before, after = need.spread_after(found.means, 3.0)
    count = need.paired(recorded, found, 3.0, ANOTHER_MACHINE, sims, seed)
    return method, 100 * float(found.means.mean()), before, need.usual(3.0, before, after), count, method


def with_a_drop(sim: Simulation) -> Table:
    """(b) Whole runs of the default profile with a method that truly lost something."""
    count, rows, raw = sim.plan.share(20), [], []
    cases = sim.recorded.cases
    kinds = [(points, nll) for points in POINTS for nll in (False, True)]
    setups = [Setup(ANOTHER_MACHINE, points, nll, stream=10 + at) for at, (points, nll) in enumerate(kinds)]
    rates = [
        Rate(sum(bool(one.failed) for one in found), count) for found in sim.runs([(one, count) for one in setups])
    ]
    for points, scores, both in zip(POINTS, rates[::2], rates[1::2], strict=True):
        rows.append((f"{points:g}", str(scores), str(both)))
        raw.append({"points": points, "scores": scores.plain(), "scores and nll": both.plain()})
    note = (
        f"Share of {count} runs of the default profile ({len(cases)} cases, {sum(case.n for case in cases)} contexts) "
        "that fail, where a method lost so many points evenly over all cases, on another machine. A case has 8 "
        f"contexts and a level of {ALPHA:g} / {len(cases)}, and no test looks at all cases together."
    )
    head = ("true drop, points", "runs that fail by scores alone, %", "by scores and nll, %")
    return Table("Whole runs with a true drop", note, head, ">>>", tuple(rows), (), (), tuple(raw))


def intervals(sim: Simulation) -> Table:
    """(c) Coverage of drop_interval."""
    sims = sim.plan.share(2)
    worlds = list(enumerate(coverage.worlds(sim.recorded)))
    tasks = [(world, n, sims, sim.plan.seed, at) for at, world in worlds for n in (8, 32)]
    found = sim.each(coverage.cover, tasks)
    found.sort(key=lambda one: (one.world, one.n))
    rows = [
        (one.world, f"{one.drop:.1f}", str(one.n), str(one.promised), one.promised.verdict, str(one.other))
        for one in found
    ]
    broken = [
        f"{one.world}, n = {one.n}: the interval misses {one.promised}, promised at most {coverage.LEVEL:.0%}"
        for one in found
        if one.promised.refuted
    ]
    raw = tuple(
        {"world": one.world, "n": one.n, "drop": one.drop, "promised": one.promised.plain(), "other": one.other.plain()}
        for one in found
    )
    note = (
        f"`drop_interval` of level 95 % on {sims} complete cases of n contexts: how often it misses the true drop. "
        "On right/wrong answers it promises to hold the drop in the proportions of the case's own fp16 answers, on "
        "several turns the drop over all contexts; beside it the other of the two, for which nothing is promised."
    )
    head = ("what is true", "drop, points", "n", "misses, %", "promise", "misses of the other drop, %")
    return Table("Coverage of the drop's interval", note, head, "<>>><>", tuple(rows), (), tuple(broken), raw)


def peeking(sim: Simulation) -> Table:
    """(c) The sequential test under the hardest null: the drop is the limit."""
    sims = sim.plan.share(2)
    worlds = list(enumerate(coverage.worlds(sim.recorded)))
    tasks = [(world, 64, sims, sim.plan.seed, at) for at, world in worlds]
    found = sim.each(coverage.peek_budget, tasks)
    note = (
        f"{sims} cases of 64 contexts, looked at after every 4; the limit is exactly the true drop, so that each "
        "failure is a false one. At most 5 % was promised (2.5 % by the side of the interval that counts)."
    )
    return _peeked("Looking after every block", note, found)
