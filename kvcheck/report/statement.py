"""What a method gives up against fp16, in plain sentences."""

from __future__ import annotations

from collections.abc import Callable

from kvcheck.core.record import MemoryRecord, Run
from kvcheck.report import rows
from kvcheck.report.rows import References, Row
from kvcheck.report.text import interval, points, size


def plain(run: Run, method: str, known: References, shown: Callable[[str], str] = str) -> str:
    """One paragraph: the drop over everything, where it is largest, and what is gained for it.

    shown: how the names of methods and tasks are written.
    """
    records, name = rows.judged(run, method), shown(method)
    if not records:
        return f"{name}: no accuracy was measured, so what it gives up against fp16 is not known."
    whole = rows.pool("all", run, records, known)
    found = [record.memory for record in records if record.memory is not None]
    share = sum(one.kv_bytes for one in found) / sum(one.dense_bytes for one in found) if found else None
    held = "" if share is None else f" It holds {share:.0%} of the KV bytes of fp16{_away(found)}."
    if not any(record.scored for record in records):
        return (
            f"{name}: nothing is asked here, so what it gives up against fp16 shows in nll, agree and KL alone.{held}"
        )
    if whole.floor:
        return f"{name}: no case here is informative, so what is given up against fp16 cannot show.{held}"
    if whole.drop is None or whole.low is None or whole.high is None:
        return f"{name}: no fp16 record of these prompts, so what it gives up is not known.{held}"
    if method == "fp16":
        return f"fp16 is the reference: accuracy {whole.after:.3f}{_exact(whole)}.{held}"
    losing = _losing(run, method, known)
    if whole.identical and found and all(one.kv_bytes >= one.dense_bytes and not one.host_bytes for one in found):
        return (
            f"NOTICE: {method} holds what fp16 holds and answers the same on these {whole.n} contexts: "
            "it changes nothing that was measured. Is the method at work?"
        )
    if whole.identical:
        return f"{name} gives up nothing against fp16 on these {whole.n} contexts: its answers are identical.{held}"
    if whole.drop <= 0 and not losing:
        gain = f", and gains {points(-whole.drop, False)} points" if points(whole.drop) != "0.0" else ""
        return (
            f"{name} gives up nothing against fp16 on these {whole.n} contexts{gain} "
            f"(drop {interval(whole.low, whole.high)}).{held}"
        )
    text = (
        f"Against fp16, {name} gives up {points(whole.drop, False)} points of accuracy "
        f"{interval(whole.low, whole.high)} over {whole.n} contexts."
    )
    if losing:
        named = ", ".join(f"{shown(row.label)} ({points(row.drop or 0, False)})" for row in losing[:4])
        text += f" Below fp16 (95% interval above 0): {named}."
    return text + held


def _away(found: list[MemoryRecord]) -> str:
    """What lies in host memory, for methods that keep something there."""
    away = sum(one.host_bytes for one in found)
    return f", and {size(away / len(found))} per context in host memory" if away else ""


def _losing(run: Run, method: str, known: References) -> list[Row]:
    """Tasks whose whole interval lies above 0, the largest drop first."""
    tasks = rows.by(run, rows.judged(run, method), known, "task")
    found = [row for row in tasks if row.low is not None and row.low > 0]
    return sorted(found, key=lambda row: -(row.drop or 0))


def _exact(row: Row) -> str:
    """How fp16 stands to its record; nothing where there is none."""
    if row.alone:
        return ""
    if row.identical:
        return ", and it repeats its record exactly"
    return f", its answers differ from its record (drop {points(row.drop or 0)} points)"
