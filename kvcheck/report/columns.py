"""The table over methods as columns: CSV and Parquet, a row per method and capability (overview.flat)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from kvcheck.core.errors import KvcheckError
from kvcheck.core.files import write_atomically
from kvcheck.report.overview import Line, flat


def csv_text(lines: Sequence[Line]) -> str:
    """With a head; what is not known is empty."""
    rows = flat(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_parquet(path: Path, lines: Sequence[Line]) -> None:
    """The same, whole or not at all. Raises KvcheckError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise KvcheckError(f"--parquet needs pyarrow: {error}", "pip install pyarrow, or write --csv") from error
    rows = flat(lines)
    if not rows:
        raise KvcheckError("there is no method to write", "name a run file in which a method was measured")
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    write_atomically(str(path), out.getvalue())
