"""What a session is asked to do: every option, declared once, and their values as plain data. No torch, no pytest.

A field of Settings is an option: its name, type, default, help, and how a value is checked. pytest's command line,
`[tool.kvcheck]` of pyproject.toml and the commands of `kvcheck` that take the same options read it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from typing import NamedTuple, TypeVar

from kvcheck.core import values
from kvcheck.core.values import Check

T = TypeVar("T")
PROFILES = ("quick", "default", "full", "real")
AGAINST = ("fp16", "self", "both")
RECORD = ("new", "changed", "all")
QUERY_AWARE = ("mode", "yes", "no")
CHAT = ("task", "yes", "no")
HISTORY = ("task", "own", "gold")
DTYPES = ("auto", "float32", "float16", "bfloat16")
OTHER_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "single": "float32"}
"""How others write what is meant by a dtype."""
MODES = ("single", "multi_turn", "multi_request")
TIMEOUT = 1800.0
ROUNDS, BATCH = 9, 8
"""Of a measurement of latency: rounds that are timed, and sequences that are decoded together at most."""
PROMPTS = ("data", "text", "compat", "chat", "think", "history")
"""Settings of what a model is shown, in a header where they are not at their default."""
KERNELS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
"""Kernels of attention by the names of torch's SDPBackend."""
ATTENTION = ("auto", *KERNELS)
MODEL = ("rope", "attention", "trust_remote_code")
"""Settings of how the model is loaded and run, likewise."""


class Option(NamedTuple):
    """An option. metavar: "" for one that takes no value. also: another name of it, in the singular."""

    name: str
    help: str
    metavar: str
    check: Check
    also: str
    repeat: bool

    @property
    def word(self) -> str:
        """How it is typed behind a front end's dashes: `method` for methods, `record-in-ci` for record_in_ci."""
        return (self.also if self.repeat else self.name).replace("_", "-")

    @property
    def flag(self) -> str:
        """How it is typed for pytest."""
        return f"--kv-{self.word}"


def declared(
    default: T, help: str, metavar: str = "", check: Check = values.text, also: str = "", repeat: bool = False
) -> T:
    """A field that is an option. repeat: it is given once for each value, under its other name, and checked so."""
    about = {"help": help, "metavar": metavar, "check": check, "also": also, "repeat": repeat}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy(default), metadata=about)
    return field(default=default, metadata=about)


def _switch(help: str) -> bool:
    return declared(False, help, check=values.flag)


@dataclass(frozen=True)
class Settings:
    """The settings of a session, from the command line and `[tool.kvcheck]`, checked.

    methods: spec texts. lengths: tokens of context; empty means the profile's. tasks, modes: empty means all. n:
    contexts per case, None means the profile's, "auto:TIMES" up to so many times as many. query_aware: "mode" (single
    and multi_turn see the first question at compression, multi_request does not), "yes" or "no". budget: limits asked
    for by hand, such as {"drop": 2.0}; None lifts one.
    baselines: places by commas, the first is recorded into; None means `.kvcheck/baselines`, above the shipped ones.
    record: which baselines may be written, None means none. timeout: seconds per case, 0 means no limit.
    resume: a run file whose cases are not run again. findings: run the findings of the papers.
    zoo: bugs or families of kvcheck.zoo, or "all". data: where public benchmarks are read, "hub" or a folder; None for
    no such place. text: a file of natural text, "" for the one that ships. compat: reproduce known bugs of the sets'
    official scorers. chat: "task" (prompts go into the model's chat template where the benchmark does so and the model
    has one), "yes" or "no". think: tokens before an answer, which are no part of it. history: what stands before a
    later question: "task" (as the benchmark has it), the model's "own" answers or the "gold" ones. rope: in place of
    the model's own, such as "yarn:factor=4"; "" for its own. attention: the kernel of scaled_dot_product_attention.
    trust_remote_code: the model whose own code may run, "" for none. prefill_cache: a folder where prefills of the full
    cache are kept from run to run, None for nowhere; prefill_cache_size: GB that they take at most.
    """

    methods: tuple[str, ...] = declared(
        (),
        "method under test, NAME:key=value,… or package.module.Class:key=value; repeatable",
        "SPEC",
        also="method",
        repeat=True,
    )
    model: str = declared("mini", "embedded model, path or hub id (default: mini)", "NAME")
    profile: str = declared(
        "default",
        "how much is measured: quick, default, full, or real (for pretrained models)",
        "PROFILE",
        values.choice(PROFILES),
    )
    lengths: tuple[int, ...] = declared(
        (), "context lengths in tokens, such as 512,2048", "N,…", values.integers(64, 10**8), "length"
    )
    tasks: tuple[str, ...] = declared(
        (), "tasks, such as kv,needle (default: the profile's)", "NAME,…", values.words, "task"
    )
    modes: tuple[str, ...] = declared(
        (),
        "single, multi_turn, multi_request (default: the profile's)",
        "MODE,…",
        values.words_of(MODES, "mode"),
        "mode",
    )
    n: int | str | None = declared(
        None,
        "contexts per case (default: the profile's), or auto: more of them, up to 8 times as many (auto:TIMES), until "
        "the run is decided against fp16",
        "N",
        values.contexts,
    )
    device: str = declared(
        "auto",
        "auto, cpu, cuda, cuda:1, …, or spread: layers on all GPUs (default: auto)",
        "DEVICE",
        values.device,
    )
    dtype: str = declared(
        "auto", "auto, float32, float16 or bfloat16 (default: auto)", "DTYPE", values.choice(DTYPES, OTHER_DTYPES)
    )
    query_aware: str = declared(
        "mode",
        "is the question visible at compression: mode, yes or no (default: the mode decides)",
        "WHEN",
        values.choice(QUERY_AWARE),
    )
    seed: int = declared(0, "seed of the samples (default: 0)", "N", values.integer(0, 2**63 - 1))
    baselines: str | None = declared(
        None,
        "where baselines are read, first place first; the first is recorded into (default: .kvcheck/baselines); "
        "the shipped ones lie below",
        "URI,…",
        values.joined,
    )
    record: str | None = declared(None, "write baselines: new, changed or all", "WHICH", values.choice(RECORD))
    record_in_ci: bool = _switch("allow recording where CI is set")
    against: str = declared(
        "both",
        "judge against fp16, self (the stored record) or both (default: both); or against the stored record of another "
        "method, its spec",
        "WHAT",
    )
    budget: Mapping[str, float | None] = declared(
        {}, "limits, such as drop=2,bytes=0.30,ttft=1.2,tpot=1.2", "KEY=X,…", values.limits
    )
    alpha: float = declared(0.05, "level of the tests (default: 0.05)", "P", values.level)
    strict: bool = _switch("an inconclusive verdict fails: of a case, a task, a capability or the run")
    json: str | None = declared(None, "write the run to this file, as cases finish", "PATH")
    md: str | None = declared(None, "write a Markdown summary to this file", "PATH")
    html: str | None = declared(None, "write a page with plots to this file, which needs nothing else", "PATH")
    timeout: float = declared(TIMEOUT, "seconds per case, 0 for no limit (default: 1800)", "SECONDS", values.seconds)
    findings: bool = _switch("measure what the papers found, and assert its direction; needs no method")
    zoo: tuple[str, ...] = declared(
        (),
        "would the gate catch known bugs: all, or names and families; needs no method",
        "NAME,…",
        values.words,
    )
    data: str | None = declared(
        None,
        "where public benchmarks are read: hub, or a folder; they are tasks such as longbench/qasper",
        "hub|PATH",
    )
    text: str = declared(
        "",
        "a file of natural text (UTF-8) for completion/prose and completion/echo (default: the one that ships)",
        "FILE",
        values.text_file,
    )
    compat: bool = _switch("reproduce known bugs of the official scorers of public benchmarks")
    chat: str = declared(
        "task",
        "chat template of the model: task (as the benchmark does), yes or no (default: task)",
        "WHEN",
        values.choice(CHAT),
    )
    think: int = declared(
        0,
        "tokens that a model may think before its answer; they are cut at the closing tag (</think>) (default: 0)",
        "N",
        values.integer(0, 10**6),
    )
    history: str = declared(
        "task",
        "answers in a conversation: task (as the benchmark does), own or gold (default: task)",
        "WHOSE",
        values.choice(HISTORY),
    )
    rope: str = declared(
        "", "RoPE in place of the model's own, such as yarn:factor=4 or default:theta=1e6", "KIND:KEY=X,…"
    )
    attention: str = declared(
        "auto",
        "kernel of attention: auto, math, flash, efficient or cudnn (default: auto)",
        "KERNEL",
        values.choice(ATTENTION),
    )
    trust_remote_code: str = declared("", "run the code that comes with this model: its name again", "NAME")
    prefill_cache: str | None = declared(
        None, "keep prefills of the full cache in this folder, for the next run on this machine", "PATH"
    )
    prefill_cache_size: float = declared(
        4.0, "GB of that folder at most; what was used longest ago goes first (default: 4)", "GB", values.gigabytes
    )
    resume: str | None = declared(
        None, "continue an interrupted run: cases of this run file (or `last`) are not run again", "PATH"
    )

    @property
    def asks(self) -> str:
        """Of AGAINST: which questions are asked."""
        return self.against if self.against in AGAINST else "both"

    @property
    def rival(self) -> str | None:
        """The spec of the method whose record stands in for the method's own, None for none."""
        return None if self.against in AGAINST else self.against

    @property
    def contexts(self) -> int | None:
        """Contexts per case, None for the profile's."""
        return self.n if isinstance(self.n, int) else None

    @property
    def times(self) -> int:
        """How many times as many contexts may be taken."""
        return int(self.n.partition(":")[2]) if isinstance(self.n, str) else 1

    def texts(self) -> dict[str, str]:
        """What changes a result, as text, for the header of the run."""
        shown = ("profile", "device", "dtype", "query_aware", "seed", "against", "alpha")
        found = {name: str(getattr(self, name)) for name in shown}
        usual = Settings()
        named = {name: str(getattr(self, name)) for name in (*PROMPTS, *MODEL)}
        found |= {name: text for name, text in named.items() if getattr(self, name) != getattr(usual, name)}
        if self.prefill_cache is not None and not self.zoo:  # the zoo compares all of them, and this changes no number
            found["prefill_cache"] = "in use"
        if self.budget:
            found["budget"] = ",".join(f"{key}={value}" for key, value in sorted(self.budget.items()))
        if self.zoo:
            found["cases"] = ";".join(str(chosen) for chosen in (self.lengths, self.tasks, self.modes, self.n))
        return found

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in order."""
        return tuple(item.name for item in fields(cls))


OPTIONS = {item.name: Option(item.name, **item.metadata) for item in fields(Settings)}
"""Every option by its name."""
