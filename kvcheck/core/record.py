"""Plain data: what a case is, what it produced, and what its fields may hold (rules.py)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Annotated

from kvcheck.core.errors import SpecError
from kvcheck.core.rules import SIZE, Bytes, Flag, Nats, Pairs, Positive, Share, integer, number, one_of, pattern, text
from kvcheck.core.settings import MODES as MODES

SCHEMA = 1
LONGEST = 10**7
"""Tokens of a context. Nobody's model has as many."""
COSTS = "latency"
"""The capability of a record without samples, see `cost_record`."""
FREES, EXCEEDS, LOSSLESS, NEARLY = "frees", "exceeds", "lossless", "nearly"
CLAIMS = (FREES, EXCEEDS, LOSSLESS, NEARLY)
"""What a method may claim: to hold less than fp16, to hold more, to give its answers, or nearly; see MemoryRecord."""
_CLAIM = f"({'|'.join(CLAIMS)})"
ACCURACY = "accuracy"
"""The name in CaseRecord.not_measured where nothing is asked: there are no scores then, see CaseRecord.scored."""
IDLE = "compression"
"""The name in CaseRecord.not_measured where a method that frees memory has nothing to do at this length."""
Clock = Annotated[int, integer(0, 10**6)]
"""MHz."""
Rank = Annotated[int, integer(1, 10**6)]
Digest = Annotated[str, pattern("[0-9a-f]{12}", "twelve hex digits")]
CAPABILITIES = (
    "string_retrieval",
    "semantic_retrieval",
    "global_information",
    "code",
    "needle",
    "multi_task",
    "long_generation",
    "language_modelling",
)

CASE = (
    r"(?P<task>[\w.]+(?:/[\w.-]+)?)/v(?P<version>\d+)/(?P<mode>\w+)"
    r"/len=(?P<length>\d+)/seed=(?P<seed>\d+)/n=(?P<n>\d+)"
)
"""How a case is written. A task of a family has a slash in its name: ruler/vt."""


@dataclass(frozen=True, order=True)
class CaseId:
    """What one test item runs: task x mode x length x seed x n (contexts)."""

    task: Annotated[str, text()]
    version: Annotated[int, integer(1, 10**6)]
    mode: Annotated[str, one_of(*MODES)]
    length: Annotated[int, integer(1, LONGEST)]
    seed: Annotated[int, integer(0, 2**63)]
    n: Annotated[int, integer(1, 10**6)]

    def __str__(self) -> str:
        return f"{self.key}/n={self.n}"

    @property
    def key(self) -> str:
        """The case without its sample count: samples of two runs pair up by index under the same key."""
        return f"{self.task}/v{self.version}/{self.mode}/len={self.length}/seed={self.seed}"

    @classmethod
    def parse(cls, text: str) -> CaseId:
        """Read the text form back. Raises SpecError."""
        match = re.fullmatch(CASE, text)
        if match is None:
            raise SpecError(f"not a case id: {text!r}", "a case id reads kv/v1/single/len=1024/seed=0/n=16")
        part = match.groupdict()
        numbers = (int(part[name]) for name in ("length", "seed", "n"))
        return cls(part["task"], int(part["version"]), part["mode"], *numbers)


def prompt_digest(*texts: str) -> str:
    """Twelve hex digits that identify the texts, in order."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TurnRecord:
    """One question of one sample.

    score in [0, 1]; depth is the relative position of the evidence in the context (0 = start, 1 = end).
    Drift, on the reference answer under teacher forcing (its first 64 tokens, fed in one block): nll in nats per token,
    agree the share of positions where the method and fp16 have the same top-1 token, kl the mean KL(fp16 || method) in
    nats. Both also count the position behind the last reference token, which nll does not: where the question is
    visible at compression and prefilling is dense, the first token is fp16's own. None where it was not measured.
    ended: an end token or a stop string of the task closed the answer; False: the limit of new tokens cut it; None: not
    known, as in records of before this was kept. rank: how many of the references of the context's other questions are
    likelier answers to this one, plus 1; None where that was not measured (TaskInfo.ranked).
    """

    score: Share
    answer: Annotated[str, text(10**6, 0)]
    subtask: Annotated[str, text(1000, 0)] = ""
    depth: Share | None = None
    nll: Nats | None = None
    agree: Share | None = None
    kl: Nats | None = None
    ended: Flag | None = None
    rank: Rank | None = None


@dataclass(frozen=True)
class Weight:
    """What one context held, as MemoryRecord counts it: sums over its caches, of which there are several where each
    question has a prompt of its own. kept is a sum over them too. ends: answers behind which it was weighed again, with
    the sums of what was held there; 0 where it was not. Of a baseline, kv, kept and caches, end_kv, end_seen and ends
    only are known.
    """

    kv: Bytes
    kept: Annotated[float, number(0, SIZE)]
    dense: Bytes = 0
    meta: Bytes = 0
    host: Bytes = 0
    seen: Bytes = 0
    caches: Annotated[int, integer(1, 10**6)] = 1
    end_kv: Bytes = 0
    end_dense: Bytes = 0
    end_host: Bytes = 0
    end_seen: Bytes = 0
    ends: Annotated[int, integer(0, 10**6)] = 0


@dataclass(frozen=True)
class SampleRecord:
    """One context and its turns. digest identifies the context and all of its questions and references.

    weight: what it held, None where that was not measured, and in baselines of before where the method has a formula of
    its bytes (MemoryRecord.declared). fed: digest of the token ids that it became, those of its questions and
    references too. graded: digest of what makes a score of an answer: metrics with their code, stop strings, token
    limits. None where that is not known; records of which both know it, and differ, are not compared.
    """

    index: Annotated[int, integer(0, 10**6)]
    digest: Digest
    turns: tuple[TurnRecord, ...]
    weight: Weight | None = None
    fed: Digest | None = None
    graded: Digest | None = None


@dataclass(frozen=True)
class MemoryRecord:
    """Bytes right after compression, and after the last decoded token, per context (mean over those of the case).

    kv_bytes: keys, values, codes, scales: everything needed to attend, from distinct storages.
    dense_bytes: the same tokens in a full 16-bit cache. meta_bytes: bookkeeping (positions), not counted in kv_bytes.
    kept: mean number of slots per layer and kv head; seen: tokens seen. touched: layers that took part.
    host_bytes: what the method holds in host memory instead of on the device, not in kv_bytes.
    peak_bytes: peak device memory, on top of the model, of one context from an empty cache and one decoded token, where
    the device can tell (CUDA), else None.
    declared: the method has a formula of its bytes. Where it has none they depend on the text.
    end_kv_bytes, end_dense_bytes, end_host_bytes, end_seen: the same behind the last decoded token of an answer (mean
    over the answers of the contexts), all None where that was not measured, as in records of before.
    elsewhere_bytes: what every prompt leaves outside of its cache, in kv_bytes and end_kv_bytes.
    apart: how far a log-probability of any token is at most from the full cache's, over the reference answers of the
    case; None where that was not measured, and in baselines.
    claims: what the method declares, of CLAIMS: that it holds less than fp16 ("frees") or more ("exceeds"), that every
    answer is fp16's ("lossless") or nearly so ("nearly"). None where it is not known.
    """

    kv_bytes: Bytes
    dense_bytes: Annotated[int, integer(1)]
    meta_bytes: Bytes
    kept: Annotated[float, number(0, SIZE)]
    seen: Annotated[int, integer(1, 2 * LONGEST)]
    layers: Annotated[int, integer(0, 10**5)]
    touched: Annotated[int, integer(0, 10**5)]
    peak_bytes: Bytes | None = None
    host_bytes: Bytes = 0
    declared: Flag = True
    end_kv_bytes: Bytes | None = None
    end_dense_bytes: Annotated[int, integer(1)] | None = None
    end_host_bytes: Bytes | None = None
    end_seen: Annotated[int, integer(1, 2 * LONGEST)] | None = None
    elsewhere_bytes: Bytes = 0
    apart: Nats | None = None
    claims: Annotated[str, pattern(f"|{_CLAIM}(,{_CLAIM})*", "claims")] | None = None

    @property
    def ratio(self) -> float:
        """KV bytes as a share of the full 16-bit cache."""
        return self.kv_bytes / self.dense_bytes

    @property
    def end_ratio(self) -> float | None:
        """The same after decoding."""
        if self.end_kv_bytes is None or self.end_dense_bytes is None:
            return None
        return self.end_kv_bytes / self.end_dense_bytes

    @property
    def most(self) -> float:
        """The larger of the two."""
        return self.ratio if self.end_ratio is None else max(self.ratio, self.end_ratio)

    def does(self, claim: str) -> bool:
        """Whether the method claims that."""
        return claim in (self.claims or "").split(",")


@dataclass(frozen=True)
class LatencyRecord:
    """Seconds of the method and, interleaved with it, of fp16; the ratio is of medians with a bootstrap interval.

    what: "ttft" (prefill, compression and first token), "tpot" (one decode step) or "throughput" (one decode step of
    `batch` copies of the context together). floor: seconds below which the device cannot do it for the method
    (kvcheck/measure/roofline.py), None where it is not known. sm_mhz, memory_mhz: median clocks of the device while it
    was measured, None where the device does not tell.
    """

    what: Annotated[str, one_of("ttft", "tpot", "throughput")]
    length: Annotated[int, integer(1, LONGEST)]
    seconds: Positive
    fp16_seconds: Positive
    ratio: Positive
    low: Positive
    high: Positive
    rounds: Annotated[int, integer(1, 10**6)]
    batch: Annotated[int, integer(1, 10**6)] = 1
    floor: Positive | None = None
    sm_mhz: Clock | None = None
    memory_mhz: Clock | None = None

    @property
    def rate(self) -> float:
        """Decoded tokens per second of the method, all sequences together."""
        return self.batch / self.seconds

    @property
    def fp16_rate(self) -> float:
        """The same of fp16."""
        return self.batch / self.fp16_seconds


@dataclass(frozen=True)
class CaseRecord:
    """What one case produced with one method.

    method is the spec text. query_aware: the first question was visible when the cache was compressed.
    binary: every score is 0 or 1. chance: the expected score of a guess. stopped: why sampling ended.
    not_measured: (what, reason) pairs. switches: (name, value) pairs of what decides the scores of a public benchmark
    beside all that: records that differ in one are not compared. inputs: such pairs of what made the token ids: how
    prompts begin, the tokenizer, the packages that it rests on; looked at where the ids differ, to say why.
    """

    case: CaseId
    method: Annotated[str, text(10_000)]
    model: Annotated[str, pattern(r"[!-~]{1,100}", "a fingerprint")]
    capability: Annotated[str, one_of(*CAPABILITIES, COSTS)]
    query_aware: Flag
    binary: Flag
    chance: Share
    samples: tuple[SampleRecord, ...]
    memory: MemoryRecord | None = None
    latency: tuple[LatencyRecord, ...] = ()
    stopped: Annotated[str, text()] = "all samples"
    not_measured: Pairs = ()
    switches: Pairs = ()
    inputs: Pairs = ()

    @property
    def scored(self) -> bool:
        """Whether its answers have scores. Where nothing is asked they are 0 and mean nothing: the likelihood of the
        reference text alone is measured."""
        return ACCURACY not in dict(self.not_measured)

    @property
    def accuracy(self) -> float:
        """Mean score over samples, each the mean of its turns."""
        return sum(context_score(sample) for sample in self.samples) / len(self.samples)


def is_scope(name: str) -> bool:
    """Whether a verdict of this name is on several cases together."""
    return name == RUN or name.partition(" ")[0] in SCOPE_KINDS


def cost_record(
    method: str,
    model: str,
    case: CaseId,
    memory: MemoryRecord | None,
    latency: tuple[LatencyRecord, ...],
    not_measured: tuple[tuple[str, str], ...] = (),
) -> CaseRecord:
    """What a context costs with a method: a record without samples. model: its fingerprint."""
    stopped = "measured" if latency else "not measured"
    return CaseRecord(case, method, model, "latency", True, False, 0.0, (), memory, latency, stopped, not_measured)


def cost_case(length: int, seed: int = 0) -> CaseId:
    """The case that memory and latency at this length are kept under."""
    return CaseId("latency", 1, "single", length, seed, 1)


def context_score(sample: SampleRecord) -> float:
    """Mean score of the turns of one context."""
    return sum(turn.score for turn in sample.turns) / len(sample.turns)


CLEAR = "verdict clear"
"""Why a case was stopped before all its contexts were measured, its loss is certain: CaseRecord.stopped."""
RUN = "run"
"""The scope of a verdict on all cases of a method; the others are "capability NAME" and "task NAME"."""
SCOPE_KINDS = (RUN, "capability", "task")
AGAINST_OWN = {"regression": "scores", "drift": "nll", "divergence": "KL"}
"""The questions against the method's own record, and what they are of."""
AS_RECORDED = "as recorded"
"""The reason of a "regression" verdict where nothing moved."""
NOT_INFORMATIVE = "not informative"
"""The outcome of a question about scores where the case cannot show a loss (kvcheck/judging/informative.py)."""
RECORDED_NOW = "recorded now: later runs are held to it"
"""The reason of a "regression" verdict on what is its own record."""


@dataclass(frozen=True)
class Verdict:
    """The answer to one question about one case.

    question: "budget" (against fp16), "regression", "drift" and "divergence" (scores, nll and KL against the method's
    own record), "lossless" (KL from fp16 of a method that claims to be), "bytes", "ttft", "tpot", "nll", "agree", "kl";
    of a run "informative" and "acted", too. outcome: "pass", "fail", "inconclusive" or
    NOT_INFORMATIVE. value with its interval [low, high] and limit are in the unit of the question: points of accuracy
    for drops, a ratio for bytes and latency.
    n: contexts judged; lost, won: contexts that got worse and better. detectable: the smallest drop in points that
    this n could have seen; None where that makes no sense.
    """

    question: str
    outcome: str
    value: float
    low: float
    high: float
    limit: float
    n: int
    lost: int = 0
    won: int = 0
    detectable: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunHeader:
    """What must be known to judge a run years later.

    git, dirty, branch: the commit of the folder that it was started in, whether files differed from it, and its
    branch, "" where there is none. time: when it began, in UTC ("2026-11-28T09:30:00+00:00"), "" in files of before it
    was kept; by SOURCE_DATE_EPOCH where that is set, so that the same run gives the same bytes. sources: digests of the
    code that was run, by method, and of kvcheck itself.
    """

    kvcheck: str
    git: str
    dirty: bool
    packages: dict[str, str]
    machine: dict[str, str]
    model: str
    model_name: str
    settings: dict[str, str]
    schema: int = SCHEMA
    sources: dict[str, str] = field(default_factory=dict)
    time: str = ""
    branch: str = ""


HOLDS, FAILS, EXCUSED, UNSERVED = "holds", "fails", "does not apply", "not served"


@dataclass(frozen=True)
class PropertyRecord:
    """What a property of kvcheck.conformance says of a method.

    outcome: HOLDS, FAILS, EXCUSED (the method declares why it does not apply) or UNSERVED (no trial said anything).
    trials: those that counted. reason: the failure, or why it was not tried, or that it holds though some trials failed
    once and not again. snippet: a test of the failing trial.
    """

    name: str
    method: str
    outcome: str
    trials: int = 0
    reason: str = ""
    snippet: str = ""


BY_ANSWERS, BY_BYTES, BY_REFUSAL = "answers", "bytes", "audit"
"""How tasks show a fault: by what the method answered, by what it held, or by the audit or a crash before that."""


@dataclass(frozen=True)
class ZooRecord:
    """Whether the gate caught a faulty method, or accused a correct one.

    properties, cases: what failed, with the reason, of properties and of tasks; for a bug the first property, and of
    tasks the first one of each way; all for a correct method. ways: how each of `cases` was shown (BY_ANSWERS, ...);
    () in older files, which do not say it. trials, samples: of properties and of contexts until then; seconds: until
    then.
    """

    name: str
    family: str
    counterpart: str
    correct: bool
    url: str = ""
    properties: tuple[str, ...] = ()
    trials: int = 0
    property_seconds: float = 0.0
    cases: tuple[str, ...] = ()
    samples: int = 0
    case_seconds: float = 0.0
    ways: tuple[Annotated[str, one_of(BY_ANSWERS, BY_BYTES, BY_REFUSAL)], ...] = ()

    def shown_by(self, way: str) -> str:
        """The first of `cases` that was shown so, "" where none was."""
        return next((case for case, how in zip(self.cases, self.ways, strict=False) if how == way), "")


@dataclass(frozen=True)
class Finding:
    """One measured number of what a paper found.

    claim: what the paper says. what: what the number is. mean: points of accuracy over n contexts, with the interval
    [low, high]. wanted: "> 0", "< 5", or "" where nothing is asserted. outcome: "shown", "not shown" or "measured".
    """

    claim: str
    what: str
    mean: float
    low: float
    high: float
    n: int
    wanted: str
    outcome: str


@dataclass(frozen=True)
class Run:
    """A file of records with its header; verdicts by str(case) + "|" + method; what properties say of the methods.

    partial: cases that were begun and did not end, for --kv-resume. zoo, findings: of --kv-zoo and --kv-findings.
    """

    header: RunHeader
    cases: tuple[CaseRecord, ...]
    verdicts: dict[str, tuple[Verdict, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    properties: tuple[PropertyRecord, ...] = ()
    partial: tuple[CaseRecord, ...] = ()
    zoo: tuple[ZooRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
