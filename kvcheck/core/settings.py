"""What a session was asked to do: the parsed options, as plain data. No torch, no pytest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

PROFILES = ("quick", "default", "full")
AGAINST = ("fp16", "self", "both")
RECORD = ("new", "changed", "all")
QUERY_AWARE = ("mode", "yes", "no")
CHAT = ("task", "yes", "no")
HISTORY = ("task", "own", "gold")
DTYPES = ("auto", "float32", "float16", "bfloat16")
TIMEOUT = 1800.0
ROUNDS, BATCH = 9, 8
"""Of a measurement of latency: rounds that are timed, and sequences that are decoded together at most."""
PROMPTS = ("data", "compat", "chat", "history")
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


@dataclass(frozen=True)
class Settings:
    """The settings of a session, from the command line and `[tool.kvcheck]`, checked.

    methods: spec texts. lengths: tokens of context; empty means the profile's. tasks, modes: empty means all.
    n: contexts per case, None means the profile's. query_aware: "mode" (single and multi_turn see the first question
    at compression, multi_request does not), "yes" or "no". budget: limits asked for by hand, such as {"drop": 2.0};
    None lifts one.
    baselines: places by commas, the first is recorded into; None means `.kvcheck/baselines`, above the shipped ones.
    record: which baselines may be written, None means none. timeout: seconds per case, 0 means no limit.
    resume: a run file whose cases are not run again. findings: run the findings of the papers.
    zoo: bugs or families of kvcheck.zoo, or "all". data: where public benchmarks are read, "hub" or a folder; None for
    no such place. compat: keep the slips of their code. chat: "task" (prompts go into the model's chat template where
    the benchmark does so and the model has one), "yes" or "no". history: what stands before a later question: "task"
    (as the benchmark has it), the model's "own" answers or the "gold" ones. rope: in place of the model's own, such as
    "yarn:factor=4"; "" for its own. attention: the kernel of scaled_dot_product_attention. trust_remote_code: the model
    whose own code may run, "" for none.
    """

    methods: tuple[str, ...] = ()
    model: str = "mini"
    profile: str = "default"
    lengths: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    n: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    query_aware: str = "mode"
    seed: int = 0
    baselines: str | None = None
    record: str | None = None
    record_in_ci: bool = False
    against: str = "both"
    budget: Mapping[str, float | None] = field(default_factory=dict)
    alpha: float = 0.05
    strict: bool = False
    json: str | None = None
    md: str | None = None
    timeout: float = TIMEOUT
    resume: str | None = None
    findings: bool = False
    zoo: tuple[str, ...] = ()
    data: str | None = None
    compat: bool = False
    chat: str = "task"
    history: str = "task"
    rope: str = ""
    attention: str = "auto"
    trust_remote_code: str = ""

    def texts(self) -> dict[str, str]:
        """What changes a result, as text, for the header of the run."""
        shown = ("profile", "device", "dtype", "query_aware", "seed", "against", "alpha")
        found = {name: str(getattr(self, name)) for name in shown}
        usual = Settings()
        named = {name: str(getattr(self, name)) for name in (*PROMPTS, *MODEL)}
        found |= {name: text for name, text in named.items() if getattr(self, name) != getattr(usual, name)}
        if self.budget:
            found["budget"] = ",".join(f"{key}={value}" for key, value in sorted(self.budget.items()))
        return found

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in order."""
        return tuple(item.name for item in fields(cls))
