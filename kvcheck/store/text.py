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
text, or as [characters shared with the start of fp16's answer, the rest]. `held` is what the context took: [bytes of
keys and values, slots], and the number of caches where there were several; `end` what it took after decoding: [bytes,
tokens seen, answers], the first two as sums over the answers. In records of before only methods without a formula have
them.
`cut` are the turns (from 0) whose answers the limit of new tokens cut. In a case with `ended` in its meta object all
other answers ended; without it that is not known. `rank` is the place of each turn's reference among those of the
context's other turns by likelihood, where the task measures it.

Rounding: scores and depths to 4 decimals, nll, agree and kl to 3. Everything else comes back as it was.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from kvcheck.core.errors import BaselineError, SpecError
from kvcheck.core.formats import Json
from kvcheck.core.front import ANY, command
from kvcheck.core.record import SCHEMA, CaseId, CaseRecord, LatencyRecord, MemoryRecord, SampleRecord
from kvcheck.store.lines import encodable, expect_line, places, read_sample, sha256, write_sample
from kvcheck.store.validate import check_case, shown, strict_json

DIGESTS = ("fed", "graded")
"""Of each context, in a list in the meta object; those that are the same in all of them once."""
_ASIDE = ("latency", "inputs")
_MAGIC = "kvcheck baseline schema="
_SHA = "sha256 "
META = frozenset(("base", "binary", "capability", "chance", "latency", "memory", "not_measured", "query_aware"))
META |= {"ended", "stopped", "switches", "inputs", *DIGESTS}
"""The names in the meta object of a case."""


@dataclass(frozen=True)
class ModelId:
    """A model by its name (the folder of its baselines) and its fingerprint (what makes records comparable)."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, typed: str, fingerprint: str) -> ModelId:
        """The model that was asked for by this text: "mini" and hub ids ("owner/model") are names as they stand.

        A path (absolute, from ".", "~" or of several folders) leads elsewhere on every machine, so it gives its last
        part and eight digits of the fingerprint: "/data/tiny" is "tiny-3f2a1b9c" for everybody. Reports call it so.
        """
        if typed[:1] not in (".", "~", "/") and "\\" not in typed and typed.count("/") < 2:
            return cls(typed, fingerprint)
        last = typed.replace("\\", "/").rstrip("/").rpartition("/")[2].lstrip(".~")
        return cls("-".join(filter(None, (last or "model", fingerprint[:8]))), fingerprint)


@dataclass(frozen=True)
class StoredCase:
    """One case as it stands in the file: the case, its meta object and its context lines, not yet decoded."""

    case: CaseId
    meta: dict[str, Json]
    lines: tuple[str, ...]

    @property
    def base(self) -> str:
        """Digest of the fp16 record that it is written against; "" when it stands alone."""
        return str(self.meta.get("base", ""))

    def same_as(self, other: StoredCase) -> bool:
        """Whether two stored cases say the same. Latency aside, which is never the same twice, and what made the token
        ids, as far as those are the same."""
        mine, theirs = ({k: v for k, v in one.meta.items() if k not in _ASIDE} for one in (self, other))
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
    return f"{body}{_SHA}{sha256(body)}\n"


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
    if sha256(body + "\n") != sha.strip():
        raise BaselineError(f"{name} was edited by hand or damaged: its digest does not fit its text", _move_away(name))
    try:
        head, *blocks = body.split("\n\n")
        version, model, method, packages = _read_head(head.split("\n")[1:])
        cases: dict[str, StoredCase] = {}
        for block in blocks:
            one = _read_case(block)
            if one.case.key in cases:
                raise ValueError(f"{one.case.key} is there twice")
            cases[one.case.key] = one
        return StoredFile(version, model, method, packages, cases)
    except (ValueError, KeyError, TypeError, SpecError) as error:
        raise BaselineError(f"{name} cannot be read: {_words(error)}", _move_away(name)) from error


def _words(error: Exception) -> str:
    """What an error says, without its hint."""
    return error.message if isinstance(error, (BaselineError, SpecError)) else f"{type(error).__name__}: {error}"


def _move_away(name: str) -> str:
    file = shlex.quote(name)
    again = f"mv {file} {file}.bad; {command(ANY, record='new')}"
    return f"restore it from version control, or move it away and record it again: {again}"


def _read_head(lines: list[str]) -> tuple[str, ModelId, str, dict[str, str]]:
    """(version of kvcheck, model, method, packages). Raises ValueError, TypeError."""
    names, texts = zip(*(line.partition(": ")[::2] for line in lines), strict=True)
    if names != ("kvcheck", "model", "method", "packages"):
        raise ValueError(f"its header has {', '.join(names)}")
    version, model, method, packages = map(strict_json, texts)
    named = isinstance(model, list) and len(model) == 2 and isinstance(packages, dict)
    if not named or not all(isinstance(one, str) for one in (version, *model, method, *packages, *packages.values())):
        raise ValueError("its header holds something else than texts")
    if not all((*model, method)):
        raise ValueError("its header names no model or no method")
    return version, ModelId(*model), method, packages


def _read_case(block: str) -> StoredCase:
    """A case, its lines looked at but not decoded. Raises ValueError, SpecError."""
    case, text, *lines = block.split("\n")
    if not case.startswith("case ") or not text.startswith("meta "):
        raise ValueError(f"a case starts with {shown(case)}")
    found, meta = CaseId.parse(case[5:]), strict_json(text[5:])
    if str(found) != case[5:]:
        raise ValueError(f"a case is written otherwise: {shown(case)}")
    if not isinstance(meta, dict) or not META.issuperset(meta) or not isinstance(meta.get("base", ""), str):
        raise ValueError(f"{found} has the meta {shown(text)}")
    for line in lines:
        expect_line(line, "base" in meta)
    return StoredCase(found, meta, tuple(lines))


def encode(record: CaseRecord, fp16: CaseRecord | None) -> StoredCase:
    """Write a case; against fp16's record of the same prompts where there is one, else in full."""
    base = fp16 if fp16 is not None and record.method != "fp16" and _shares_prompts(record, fp16) else None
    meta: dict[str, Json] = {
        "binary": record.binary,
        "capability": record.capability,
        "chance": record.chance,
        "query_aware": record.query_aware,
    }
    if base is not None:
        meta["base"] = base_digest(base)
    if record.memory is not None:
        meta["memory"] = _changed(replace(record.memory, apart=None))  # what rounds differs from machine to machine
    if record.latency:
        meta["latency"] = [_changed(latency) for latency in record.latency]
    if record.stopped != "all samples":
        meta["stopped"] = record.stopped
    for name in ("not_measured", "switches", "inputs"):
        if getattr(record, name):
            meta[name] = [list(pair) for pair in getattr(record, name)]
    theirs = {sample.index: sample for sample in base.samples} if base is not None else {}
    ordered = sorted(record.samples, key=lambda sample: sample.index)
    meta |= {name: found for name in DIGESTS if (found := _digests(ordered, name)) is not None}
    ended = all(turn.ended is not None for sample in ordered for turn in sample.turns)
    if ended:
        meta["ended"] = True
    lines = tuple(
        write_sample(sample, theirs.get(sample.index), record.memory is not None, ended) for sample in ordered
    )
    return StoredCase(record.case, meta, lines)


def _digests(samples: Sequence[SampleRecord], name: str) -> list[str | None] | str | None:
    """The digests of that name, None where none is known."""
    found: list[str | None] = [getattr(sample, name) for sample in samples]
    return found if len(set(found)) > 1 else found[0] if found else None


def _with_digests(samples: Sequence[SampleRecord], meta: dict[str, Json]) -> Iterator[SampleRecord]:
    """The contexts with their digests. Raises ValueError."""
    lists = [found if isinstance(found := meta.get(name), list) else [found] * len(samples) for name in DIGESTS]
    for sample, *digests in zip(samples, *lists, strict=True):
        yield replace(sample, **dict(zip(DIGESTS, digests, strict=True)))


def _changed(measured: MemoryRecord | LatencyRecord) -> dict[str, object]:
    """The fields that are not at their default."""
    found = ((each, getattr(measured, each.name)) for each in fields(measured))
    return {each.name: value for each, value in found if value != each.default}


def decode(stored: StoredCase, method: str, model: ModelId, fp16: CaseRecord | None, name: str) -> CaseRecord:
    """Read a case back, every field checked. fp16: the record that it was written against. Raises BaselineError."""
    theirs: dict[int, SampleRecord] = {}
    if stored.base:
        if fp16 is None or base_digest(fp16) != stored.base:
            why = "is missing" if fp16 is None else "has changed since"
            raise BaselineError(
                f"{name}: {stored.case} was written against an fp16 record that {why}",
                f"record it again: {command(method, record='changed')}",
            )
        theirs = {sample.index: sample for sample in fp16.samples}
    meta = stored.meta
    try:
        if meta.get("ended", True) is not True:
            raise ValueError("ended is there, and not true")
        ended = "ended" in meta
        lines = [read_sample(line, theirs if stored.base else None, ended) for line in stored.lines]
        samples = tuple(_with_digests(lines, meta))
        record = CaseRecord(
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
            inputs=tuple((name, value) for name, value in meta.get("inputs", ())),
        )
        check_case(record, complete=True)
        return record
    except BaselineError as error:
        raise BaselineError(f"{name}: {error.message}", _move_away(name)) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BaselineError(f"{name}: {stored.case} cannot be read: {_words(error)}", _move_away(name)) from error


def base_digest(fp16: CaseRecord) -> str:
    """Twelve hex digits over what other methods' files leave out: prompts, depths, subtasks and answers."""
    parts = [
        [s.index, s.digest, [[t.answer, t.subtask, places(t.depth)] for t in s.turns]]
        for s in sorted(fp16.samples, key=lambda sample: sample.index)
    ]
    return sha256(_json([fp16.case.key, fp16.query_aware, parts]))[:12]


def _shares_prompts(record: CaseRecord, fp16: CaseRecord) -> bool:
    theirs = {sample.index: sample for sample in fp16.samples}
    if record.case.key != fp16.case.key or record.query_aware != fp16.query_aware:
        return False
    return all(
        (other := theirs.get(s.index)) is not None
        and other.digest == s.digest
        and [(t.subtask, places(t.depth)) for t in s.turns] == [(t.subtask, places(t.depth)) for t in other.turns]
        for s in record.samples
    )


def difference(old: StoredCase | None, new: StoredCase) -> list[str]:
    """What recording changes, one line per number or context that differs; latency is left out."""
    if old is None:
        return [f"new: {new.case} ({len(new.lines)} contexts)"]
    if old.same_as(new):
        return []
    head = f"{new.case.key}:"
    lines = [f"{head} n {old.case.n} -> {new.case.n}"] if old.case.n != new.case.n else []
    for key in DIGESTS:
        lines += [f"{head} {key} changed"] if old.meta.get(key) != new.meta.get(key) else []
    for key in sorted((old.meta.keys() | new.meta.keys()) - {"latency", *DIGESTS}):
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


def _json(value: object) -> str:
    """JSON on one line, sorted; it never holds a newline."""
    return encodable(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False))
