"""The text of one context in a baseline file: columns and JSON, see text.py."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvcheck.core.formats import Json
from kvcheck.core.record import SampleRecord, TurnRecord, Weight
from kvcheck.store.validate import shown, strict_json

SCORE_DIGITS = 4
WEIGHT, END = "held", "end"
"""The keys of what a context held: bytes, slots, and the number of caches where it is not 1; after decoding: bytes,
tokens seen, and the number of answers."""
CUT = "cut"
"""The key of the turns whose answers the limit of new tokens cut."""
RANK = "rank"
"""The key of the ranks of the references, one per turn; it is left out where none was measured."""

_INDEX = re.compile("0|[1-9][0-9]{0,6}")
_SCORES = re.compile(r"[01]+|[01]\.[0-9]{4}(,[01]\.[0-9]{4})*")
_DRIFT = re.compile("-|([0-9]{1,9})?(,([0-9]{1,9})?)*")


def write_sample(sample: SampleRecord, fp16: SampleRecord | None, weighed: bool, ended: bool) -> str:
    """One line. fp16: the record of the same context that it is written against. weighed: with what it held.

    ended: with the answers that were cut.
    """
    turns = sample.turns
    columns = [str(sample.index)] if fp16 is not None else [str(sample.index), sample.digest]
    columns.append(_write_scores([turn.score for turn in turns]))
    for values in ([t.nll for t in turns], [t.agree for t in turns], [t.kl for t in turns]):
        columns.append(_write_thousandths(values))
    if fp16 is None:
        extra: dict[str, object] = {"answers": [turn.answer for turn in turns]}
        if any(turn.depth is not None for turn in turns):
            extra["depth"] = [places(turn.depth) for turn in turns]
        if any(turn.subtask for turn in turns):
            extra["subtask"] = [turn.subtask for turn in turns]
    else:
        pairs = enumerate(zip(turns, fp16.turns, strict=True))
        extra = {str(at): _change(a.answer, b.answer) for at, (a, b) in pairs if a.answer != b.answer}
    if weighed and sample.weight is not None:
        held = sample.weight
        extra[WEIGHT] = [held.kv, round(held.kept, 2), *([held.caches] if held.caches != 1 else [])]
        if held.ends:
            extra[END] = [held.end_kv, held.end_seen, held.ends]
    cut = [at for at, turn in enumerate(turns) if not turn.ended] if ended else []
    if cut:
        extra[CUT] = cut
    if any(turn.rank is not None for turn in turns):
        extra[RANK] = [turn.rank for turn in turns]
    return " ".join(columns + ([_compact(extra)] if extra else []))


def expect_line(line: str, based: bool) -> None:
    """Raise ValueError for a line without the columns of a context. based: it is written against fp16's."""
    columns, _ = _split(line, based)
    index, *digest, scores, nll, agree, kl = columns
    if (
        not _INDEX.fullmatch(index)
        or (digest and not re.fullmatch("[0-9a-f]{12}", digest[0]))
        or not _SCORES.fullmatch(scores)
        or not all(map(_DRIFT.fullmatch, (nll, agree, kl)))
    ):
        raise ValueError(f"no line of a context: {shown(line)}")


def _split(line: str, based: bool) -> tuple[list[str], str]:
    """(columns, JSON). Raises ValueError where there are too few."""
    width = 5 if based else 6
    columns = line.split(" ", width)
    if len(columns) < width:
        raise ValueError(f"too few columns: {shown(line)}")
    return columns[:width], columns[width] if len(columns) > width else "{}"


def read_sample(line: str, fp16: dict[int, SampleRecord] | None, ended: bool) -> SampleRecord:
    """The context of a line. fp16: the contexts that it is written against. ended: whether it says what was cut.

    Raises ValueError, KeyError, TypeError.
    """
    columns, text = _split(line, fp16 is not None)
    index, scores = int(columns[0]), _read_scores(columns[-4])
    extra: dict[str, Json] = strict_json(text)
    if not isinstance(extra, dict):
        raise ValueError(f"no JSON object: {shown(text)}")
    drift = [_read_thousandths(column, len(scores)) for column in columns[-3:]]
    weight = _read_weight(extra.pop(WEIGHT, None), extra.pop(END, None))
    whole = _read_cut(extra.pop(CUT, []), len(scores)) if ended else [None] * len(scores)
    ranks = extra.pop(RANK, [None] * len(scores))
    if fp16 is None:
        digest, answers = columns[1], extra.pop("answers")
        depths = extra.pop("depth", [None] * len(scores))
        subtasks = extra.pop("subtask", [""] * len(scores))
    else:
        theirs = fp16[index]
        digest = theirs.digest
        depths, subtasks = [turn.depth for turn in theirs.turns], [turn.subtask for turn in theirs.turns]
        answers = [_restore(extra.pop(str(at), None), turn.answer) for at, turn in enumerate(theirs.turns)]
    if extra:
        raise ValueError(f"{shown(next(iter(extra)))} means nothing in context {index}")
    rows: Iterator[Json] = zip(scores, answers, subtasks, depths, *drift, whole, ranks, strict=True)
    return SampleRecord(index, digest, tuple(TurnRecord(*row) for row in rows), weight)


def _read_weight(found: Json, end: Json) -> Weight | None:
    if found is None:
        if end is not None:
            raise ValueError(f"{END} without {WEIGHT}")
        return None
    kv, kept, *caches = found
    weight = Weight(kv, kept, caches=caches[0]) if caches else Weight(kv, kept)
    if end is None:
        return weight
    end_kv, end_seen, ends = end
    return replace(weight, end_kv=end_kv, end_seen=end_seen, ends=ends)


def _read_cut(cut: Json, count: int) -> list[bool]:
    """Whether each answer ended."""
    if not isinstance(cut, list) or any(type(at) is not int or not 0 <= at < count for at in cut):
        raise ValueError(f"no turns of {count}: {shown(cut)}")
    return [at not in cut for at in range(count)]


def _change(answer: str, fp16: str) -> str | list[int | str]:
    shared = next(
        (at for at, (a, b) in enumerate(zip(answer, fp16, strict=False)) if a != b), min(len(answer), len(fp16))
    )
    return [shared, answer[shared:]] if shared else answer


def _restore(change: Json, fp16: str) -> str:
    if change is None or isinstance(change, str):
        return fp16 if change is None else change
    shared, rest = change
    if type(shared) is not int or not 0 < shared <= len(fp16) or not isinstance(rest, str):
        raise ValueError(f"no answer: {shown(change)}")
    return fp16[:shared] + rest


def _write_scores(scores: Sequence[float]) -> str:
    if all(score in (0, 1) for score in scores):
        return "".join(str(int(score)) for score in scores)
    return ",".join(f"{score:.{SCORE_DIGITS}f}" for score in scores)


def _read_scores(text: str) -> list[float]:
    return [float(word) for word in (text.split(",") if "." in text else text)]


def _write_thousandths(values: Sequence[float | None]) -> str:
    if all(value is None for value in values):
        return "-"
    return ",".join("" if value is None else str(round(1000 * value)) for value in values)


def _read_thousandths(text: str, count: int) -> list[float | None]:
    if text == "-":
        return [None] * count
    return [int(word) / 1000 if word else None for word in text.split(",")]


def places(depth: float | None) -> float | None:
    """A depth as it is stored."""
    return None if depth is None else round(depth, SCORE_DIGITS)


def sha256(text: str) -> str:
    """The digest of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _compact(value: object) -> str:
    return encodable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def encodable(text: str) -> str:
    """JSON text with halves of surrogate pairs, which UTF-8 cannot hold, in JSON's escapes: it reads back the same."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
