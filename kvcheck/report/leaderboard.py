"""The shipped records as one table over methods: docs/leaderboard.md."""

from __future__ import annotations

from collections.abc import Iterator

from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import Run
from kvcheck.report import overview
from kvcheck.report.rows import References
from kvcheck.report.table import WHOLE
from kvcheck.report.text import plural

HEAD = "<!-- written by `kvcheck report --shipped --md`; do not edit -->"


def lines(run: Run, known: References, sort: str = "", *, markdown: bool = False) -> Iterator[str]:
    """All methods, those first that give up least unless another order is asked for."""
    found = overview.ordered(overview.of(run, known), sort or "drop")
    cases = max((len(line.records) for line in found), default=0)
    contexts = max((line.contexts for line in found), default=0)
    about = (
        f"{plural(len(found), 'method')} on {run.header.model_name}, {plural(cases, 'case')}, {contexts} contexts each"
    )
    table, legend = overview.table(found), list(overview.legend(found))
    if not markdown:
        yield from (about, "", *table.text(WHOLE), "", *legend)
        return
    yield from (HEAD, "# All methods in one table", "")
    yield f"{escape(about)}. The records that ship with kvcheck, judged against fp16 by the default budget."
    yield "The model is small and made for such tests: the order of methods is telling, the size of a drop is not."
    yield ""
    yield from table.markdown()
    yield from (f"- {escape(line)}" for line in legend)
    yield ""
    yield "With plots: `kvcheck report --shipped --html methods.html`; for pandas or polars: `--csv` or `--parquet`."
