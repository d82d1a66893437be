"""Long generation: an answer of hundreds of tokens that depends on the whole context (LongProc path traversal)."""

from __future__ import annotations

from itertools import pairwise

from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import Draft, Order, Unit, identifiers, noise, task

TOKENS_PER_EDGE = 6
LONGEST = 100


@task("path_trace", "long_generation", False, 0.0, "a path through a graph", modes=("single", "multi_request"))
def path_trace(order: Order) -> Draft:
    """Follow the only way through a shuffled graph and name every node; a second path is a distractor.

    The path has one edge per 12 tokens of context, at most 100: a 1,200-token context asks for 300 tokens.
    """
    rng = order.rng()
    names = identifiers(rng)
    hops = min(LONGEST, order.length // (2 * TOKENS_PER_EDGE))
    nodes = [next(names) for _ in range(hops + 1)]
    other = [next(names) for _ in range(hops // 4 + 1)]
    edges = [f" {a} to {b};" for path in (nodes, other) for a, b in pairwise(path)]
    edges += [f" {path[-1]} to end;" for path in (nodes, other)]
    rng.shuffle(edges)
    units = [Unit(edge, (place + 0.5) / len(edges)) for place, edge in enumerate(edges)]
    context = order.compose("Read the text and answer. Variables:", units, noise(rng, order.index % 2 == 1), rng)
    trace = tuple(nodes[1:])
    turn = Turn(
        f"\nPath from {nodes[0]} to the end: {nodes[0]}",
        trace,
        3 * (hops + 1) + 4,
        "prefix_trace",
        context.evidence(*edges),
        0.5,
        options=("to", "end"),
        target="to " + " to ".join((*trace, "end")),
        mark=": ",
    )
    return context, (turn,)


TASKS = (path_trace,)
