"""The text of a baseline file: one method on one model, small and readable in a diff.

    kvcheck baseline schema=1
    kvcheck: "0.1.0"
    model: ["mini", "3f2a…"]
    method: "snapkv"
    packages: {"torch": "2.11.0"}

    case kv/v1/single/len=1024/seed=0/n=16
    meta {"base": "1c0d…", "binary": true, "capability": "string_retrieval", …}
    0 1 12 1000 3
    1 0 4871 250 2210 {"0":[4,"17"]}
    sha256 9be1…

One line per context, in columns: index, digest (left out where `base` is set), scores, nll, agree, kl, JSON.
Scores of right/wrong turns stand together (1101), others are separated by commas, with 4 decimals. nll, agree and kl
are in thousandths, one per turn; "-" stands for a column that was not measured.
JSON holds the answers, depths and subtasks of the turns. A file of another method leaves out what it shares with the
fp16 record named by `base` (a digest of fp16's prompts and answers): only differing answers are there, by turn, as
text, or as [characters shared with the start of fp16's answer, the rest].

Rounding: scores and depths to 4 decimals, nll, agree and kl to 3. Everything else comes back as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvcheck.errors import BaselineError
from kvcheck.record import SCHEMA, CaseId, CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, TurnRecord

SCORE_DIGITS = 4
_MAGIC = "kvcheck baseline schema="
_SHA = "sha256 "


@dataclass(frozen=True)
class ModelId:
    """A model by its name (the folder of its baselines) and its fingerprint (what makes records comparable)."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, typed: str, fingerprint: str) -> ModelId:
        """The model that was asked for by this text: "mini" and hub ids ("owner/model") are names as they stand.

        A path (absolute, from ".", "~" or of several folders) leads elsewhere on every machine, so it gives its last
        part and eight digits of the fingerprint: "/data/tiny" is "tiny-3f2a1b9c" for everybody.
        """
        if typed[:1] not in (".", "~", "/") and "\\" not in typed and typed.count("/") < 2:
            return cls(typed, fingerprint)
        last = typed.replace("\\", "/").rstrip("/").rpartition("/")[2].lstrip(".~")
        return cls(f"{last or 'model'}-{fingerprint[:8]}", fingerprint)


@dataclass(frozen=True)
class StoredCase:
    """One case as it stands in the file: the case, its meta object and its context lines, not yet decoded."""

    case: CaseId
    meta: dict[str, Any]
    lines: tuple[str, ...]

    @property
    def base(self) -> str:
        """Digest of the fp16 record that it is written against; "" when it stands alone."""
        return str(self.meta.get("base", ""))

    def same_as(self, other: StoredCase) -> bool:
        """Whether two stored cases say the same, latency aside (it is never the same twice)."""
        mine, theirs = ({k: v for k, v in one.meta.items() if k != "latency"} for one in (self, other))
        return self.case == other.case and mine == theirs and self.lines == other.lines

    @property
    def text(self) -> str:
        return "\n".join([f"case {self.case}", f"meta {_json(self.meta)}", *self.lines])


@dataclass(frozen=True)
class StoredFile:
    """A baseline file: its header and its cases by case key."""

    kvcheck: str
    model: ModelId
    method: str
    packages: dict[str, str]
    cases: dict[str, StoredCase]


def write_file(stored: StoredFile) -> str:
    """The text of a file, cases sorted, closed by the digest of everything before."""
    head = [
        f"{_MAGIC}{SCHEMA}",
        f"kvcheck: {_json(stored.kvcheck)}",
        f"model: {_json([stored.model.name, stored.model.fingerprint])}",
        f"method: {_json(stored.method)}",
        f"packages: {_json(stored.packages)}",
    ]
    cases = sorted(stored.cases.values(), key=lambda one: one.case)
    body = "\n\n".join(["\n".join(head), *(one.text for one in cases)]) + "\n"
    return f"{body}{_SHA}{_digest(body)}\n"


def read_file(text: str, name: str) -> StoredFile:
    """Read a file back. name: how messages call it. Raises BaselineError: other schema, truncated, edited, damaged."""
    first = text.partition("\n")[0]
    if not first.startswith(_MAGIC):
        raise BaselineError(f"{name} is not a kvcheck baseline", _move_away(name))
    if first != f"{_MAGIC}{SCHEMA}":
        found = first.removeprefix(_MAGIC)
        raise BaselineError(f"{name} has schema {found}; this kvcheck reads schema {SCHEMA}", _move_away(name))
    body, mark, sha = text.rpartition(f"\n{_SHA}")
    if not mark or not sha.endswith("\n") or len(sha) != 65:
        raise BaselineError(f"{name} is truncated: its last line, the digest, is missing", _move_away(name))
    if _digest(body + "\n") != sha.strip():
        raise BaselineError(f"{name} was edited by hand or damaged: its digest does not fit its text", _move_away(name))
    try:
        head, *blocks = body.split("\n\n")
        header = dict(line.split(": ", 1) for line in head.split("\n")[1:])
        model = ModelId(*json.loads(header["model"]))
        cases = [_read_case(block) for block in blocks]
        method, packages = json.loads(header["method"]), json.loads(header["packages"])
        by_key = {one.case.key: one for one in cases}
        return StoredFile(json.loads(header["kvcheck"]), model, method, packages, by_key)
    except (ValueError, KeyError, TypeError) as error:
        raise BaselineError(f"{name} cannot be read: {error}", _move_away(name)) from error


def _move_away(name: str) -> str:
    again = f"mv {name} {name}.bad; pytest --kv-method=… --kv-record=new"
    return f"restore it from version control, or move it away and record it again: {again}"


def _read_case(block: str) -> StoredCase:
    case, meta, *lines = block.split("\n")
    if not case.startswith("case ") or not meta.startswith("meta "):
        raise ValueError(f"a case starts with {case[:40]!r}")
    return StoredCase(CaseId.parse(case[5:]), json.loads(meta[5:]), tuple(lines))


def encode(record: CaseRecord, fp16: CaseRecord | None) -> StoredCase:
    """Write a case; against fp16's record of the same prompts where there is one, else in full."""
    base = fp16 if fp16 is not None and record.method != "fp16" and _shares_prompts(record, fp16) else None
    meta: dict[str, Any] = {
        "binary": record.binary,
        "capability": record.capability,
        "chance": record.chance,
        "query_aware": record.query_aware,
    }
    if base is not None:
        meta["base"] = base_digest(base)
    if record.memory is not None:
        meta["memory"] = _changed(record.memory)
    if record.latency:
        meta["latency"] = [_changed(latency) for latency in record.latency]
    if record.stopped != "all samples":
        meta["stopped"] = record.stopped
    for name in ("not_measured", "switches"):
        if getattr(record, name):
            meta[name] = [list(pair) for pair in getattr(record, name)]
    theirs = {sample.index: sample for sample in base.samples} if base is not None else {}
    ordered = sorted(record.samples, key=lambda sample: sample.index)
    lines = tuple(_write_sample(sample, theirs.get(sample.index)) for sample in ordered)
    return StoredCase(record.case, meta, lines)


def _changed(measured: MemoryRecord | LatencyRecord) -> dict[str, Any]:
    """The fields that are not at their default."""
    found = ((each, getattr(measured, each.name)) for each in fields(measured))
    return {each.name: value for each, value in found if value != each.default}


def decode(stored: StoredCase, method: str, model: ModelId, fp16: CaseRecord | None, name: str) -> CaseRecord:
    """Read a case back. fp16: the record that it was written against. Raises BaselineError."""
    theirs: dict[int, SampleRecord] = {}
    if stored.base:
        if fp16 is None or base_digest(fp16) != stored.base:
            why = "is missing" if fp16 is None else "has changed since"
            raise BaselineError(
                f"{name}: {stored.case} was written against an fp16 record that {why}",
                f"record it again: pytest --kv-method={method} --kv-record=changed",
            )
        theirs = {sample.index: sample for sample in fp16.samples}
    meta = stored.meta
    try:
        samples = tuple(_read_sample(line, theirs if stored.base else None) for line in stored.lines)
        return CaseRecord(
            case=stored.case,
            method=method,
            model=model.fingerprint,
            capability=meta["capability"],
            query_aware=meta["query_aware"],
            binary=meta["binary"],
            chance=meta["chance"],
            samples=samples,
            memory=MemoryRecord(**meta["memory"]) if "memory" in meta else None,
            latency=tuple(LatencyRecord(**one) for one in meta.get("latency", ())),
            stopped=meta.get("stopped", "all samples"),
            not_measured=tuple((what, why) for what, why in meta.get("not_measured", ())),
            switches=tuple((name, value) for name, value in meta.get("switches", ())),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BaselineError(f"{name}: {stored.case} cannot be read: {error}", _move_away(name)) from error


def base_digest(fp16: CaseRecord) -> str:
    """Twelve hex digits over what other methods' files leave out: prompts, depths, subtasks and answers."""
    parts = [
        [s.index, s.digest, [[t.answer, t.subtask, _places(t.depth)] for t in s.turns]]
        for s in sorted(fp16.samples, key=lambda sample: sample.index)
    ]
    return _digest(_json([fp16.case.key, fp16.query_aware, parts]))[:12]


def _shares_prompts(record: CaseRecord, fp16: CaseRecord) -> bool:
    theirs = {sample.index: sample for sample in fp16.samples}
    if record.case.key != fp16.case.key or record.query_aware != fp16.query_aware:
        return False
    return all(
        (other := theirs.get(s.index)) is not None
        and other.digest == s.digest
        and [(t.subtask, _places(t.depth)) for t in s.turns] == [(t.subtask, _places(t.depth)) for t in other.turns]
        for s in record.samples
    )


def _write_sample(sample: SampleRecord, fp16: SampleRecord | None) -> str:
    turns = sample.turns
    columns = [str(sample.index)] if fp16 is not None else [str(sample.index), sample.digest]
    columns.append(_write_scores([turn.score for turn in turns]))
    for values in ([t.nll for t in turns], [t.agree for t in turns], [t.kl for t in turns]):
        columns.append(_write_thousandths(values))
    if fp16 is None:
        extra: dict[str, Any] = {"answers": [turn.answer for turn in turns]}
        if any(turn.depth is not None for turn in turns):
            extra["depth"] = [_places(turn.depth) for turn in turns]
        if any(turn.subtask for turn in turns):
            extra["subtask"] = [turn.subtask for turn in turns]
    else:
        pairs = enumerate(zip(turns, fp16.turns, strict=True))
        extra = {str(at): _change(a.answer, b.answer) for at, (a, b) in pairs if a.answer != b.answer}
    return " ".join(columns + ([_compact(extra)] if extra else []))


def _read_sample(line: str, fp16: dict[int, SampleRecord] | None) -> SampleRecord:
    width = 6 if fp16 is None else 5
    columns = line.split(" ", width)
    index = int(columns[0])
    scores = _read_scores(columns[width - 4])
    extra: dict[str, Any] = json.loads(columns[width]) if len(columns) > width else {}
    drift = [_read_thousandths(column, len(scores)) for column in columns[width - 3 : width]]
    if fp16 is None:
        digest, answers = columns[1], extra["answers"]
        depths = extra.get("depth", [None] * len(scores))
        subtasks = extra.get("subtask", [""] * len(scores))
    else:
        theirs = fp16[index]
        digest = theirs.digest
        depths, subtasks = [turn.depth for turn in theirs.turns], [turn.subtask for turn in theirs.turns]
        answers = [_restore(extra.get(str(at)), turn.answer) for at, turn in enumerate(theirs.turns)]
    rows: Iterator[Any] = zip(scores, answers, subtasks, depths, *drift, strict=True)
    return SampleRecord(index, digest, tuple(TurnRecord(*row) for row in rows))


def _change(answer: str, fp16: str) -> Any:
    shared = next(
        (at for at, (a, b) in enumerate(zip(answer, fp16, strict=False)) if a != b), min(len(answer), len(fp16))
    )
    return [shared, answer[shared:]] if shared else answer


def _restore(change: Any, fp16: str) -> str:
    if change is None or isinstance(change, str):
        return fp16 if change is None else change
    return fp16[: change[0]] + str(change[1])


def difference(old: StoredCase | None, new: StoredCase) -> list[str]:
    """What recording changes, one line per number or context that differs; latency is left out."""
    if old is None:
        return [f"new: {new.case} ({len(new.lines)} contexts)"]
    if old.same_as(new):
        return []
    head = f"{new.case.key}:"
    lines = [f"{head} n {old.case.n} -> {new.case.n}"] if old.case.n != new.case.n else []
    for key in sorted((old.meta.keys() | new.meta.keys()) - {"latency"}):
        before, after = old.meta.get(key), new.meta.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names = sorted(before.keys() | after.keys())
            changed = [(f"{key}.{name}", before.get(name), after.get(name)) for name in names]
        else:
            changed = [(key, before, after)]
        lines += [f"{head} {name} {was} -> {now}" for name, was, now in changed if was != now]
    before_lines, after_lines = ({line.split(" ", 1)[0]: line for line in one.lines} for one in (old, new))
    for index in sorted(before_lines.keys() | after_lines.keys(), key=int):
        was, now = before_lines.get(index, "(none)"), after_lines.get(index, "(none)")
        if was != now:
            lines.append(f"{head} context {was}  ->  {now.removeprefix(index + ' ')}")
    return lines


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


def _places(depth: float | None) -> float | None:
    return None if depth is None else round(depth, SCORE_DIGITS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _json(value: Any) -> str:
    """JSON on one line, sorted; it never holds a newline."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
