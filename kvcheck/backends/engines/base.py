"""What an engine under test offers, and what it declares of its settings. Nothing here imports one.

An engine of your own is a module with an `ENGINE` (EngineInfo), found through the entry-point group kvcheck.engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

from kvcheck.core.spec import Value

SCORES, WEIGHS, CANCELS, FLUSHES = "log-probabilities of a text", "bytes of a context", "cancel", "flush"
SALTS, COUNTS, MEANWHILE = "salt", "counters", "requests that come while others are answered"
"""What not every engine can, in words: it ends a request, it empties what it keeps between requests, it keeps what
salts tell apart for each of them alone, it counts what it does, it is called from several threads."""
PREFIX, CHUNK, POOL, ROOMY, DENSE = "prefix cache", "chunk", "pool", "roomy budget", "threshold that drops nothing"
NEWEST, MOVES = "newest tokens that are kept", "keys that are moved"
"""Ways that an engine can be set to, see EngineInfo.ways."""
Settings = Mapping[str, Value]
"""Settings of an engine by name; names with dots reach into nested ones."""


@dataclass(frozen=True)
class Key:
    """A setting of an engine, under the engine's own name.

    kind: what it takes, as kvcheck.core.spec checks it: int, bool, Literal["u8", "u4"]. cache: it is one of the KV
    cache, which the reference has at full. full: the value by which nothing is lost, None where that is to leave it
    out. place: where it is or how long it may take, which is no part of what records are kept under.
    """

    kind: object
    cache: bool = False
    full: Value = None
    place: bool = False


@dataclass(frozen=True)
class Prompt:
    """A request: token ids, tokens of the answer at most, ids that end it (none: it runs to its limit), and whose it
    is: nothing that is kept of it may serve a prompt with another salt."""

    ids: Sequence[int]
    limit: int
    ends: frozenset[int] = frozenset()
    salt: str = ""


@dataclass(frozen=True)
class Reply:
    """What an engine says to a prompt: tokens, the end token included where it came, with their log-probabilities.

    chunks: pieces that the engine read the prompt in, None where it does not tell; fewer of them where a part came from
    a cache. first, seconds: until the first token and the last, since the prompts that are asked together were sent.
    cached: tokens of the prompt that came from a cache, None where it does not tell.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: bool
    chunks: int | None = None
    first: float = 0.0
    seconds: float = 0.0
    cached: int | None = None


@dataclass(frozen=True)
class Held:
    """Bytes of the KV cache of one context alone, by the engine's own count, and the tokens that there is room for in
    them (slots): right after its prompt, and after the last token of its answer."""

    prompt_bytes: int
    prompt_slots: int
    end_bytes: int
    end_slots: int


@dataclass(frozen=True)
class Counts:
    """What an engine has counted since it was started; None where it does not tell.

    steps: of the scheduler. preempted: requests that lost their blocks and began again. drafted, accepted: tokens of
    speculation. used, room: tokens that blocks in use, and all blocks, have room for. block: tokens of one. pool: bytes
    of all blocks, in this process.
    """

    steps: float | None = None
    preempted: float | None = None
    drafted: float | None = None
    accepted: float | None = None
    used: float | None = None
    room: float | None = None
    block: float | None = None
    pool: float | None = None


class Served(Protocol):
    """An engine that runs with one model and one set of settings. What it cannot do by EngineInfo.can is not called.

    Whatever it raises counts as a failure of the method, but KvcheckError, which is passed on as it is.
    """

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Answer greedily, all prompts together."""
        ...

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """For (ids, start) the log-probability of each of ids[start:] behind what stands before it. SCORES."""
        ...

    def weigh(self, prompt: Prompt) -> Held:
        """What a prompt takes. Raises MethodUnsupported where the engine's count is known to be wrong. WEIGHS."""
        ...

    def cancel(self, prompt: Prompt, tokens: int) -> bool:
        """Send a prompt and end it after so many tokens of its answer, with 0 while it is read; was it so far, and not
        further? CANCELS."""
        ...

    def counts(self) -> Counts:
        """See Counts. COUNTS."""
        ...

    def flush(self) -> None:
        """Empty what is kept between requests. FLUSHES."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def steps_until(prompt: Prompt, tokens: int, piece: int) -> int:
    """Steps of a scheduler that reads pieces of so many tokens, until so many tokens of the answer are there; with 0
    until half of the prompt is read."""
    pieces = -(-len(prompt.ids) // piece)
    return pieces - 1 + tokens if tokens else pieces // 2


@dataclass(frozen=True)
class Opening:
    """What an engine is opened with: the folder of the model as transformers reads it, its fingerprint, the dtype that
    it computes in, and all settings. gguf: the file that the model came in, None where it did not come in one."""

    model: Path
    fingerprint: str
    dtype: str
    settings: Settings
    gguf: Path | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What an engine declares.

    package: the distribution whose version is the engine's. least: the first version that will do, "" for any.
    modules: what must be importable. extra: the extra of kvcheck that installs it, "" for none. keys: all settings.
    block: tokens of a block of its KV cache; paged: the setting that says otherwise. dtypes: what it computes in, the
    first is meant by "auto". open: opens it. expect: raises SpecError for settings that do not go together. claims:
    what settings claim to hold, see kvcheck.core.record.CLAIMS. can: of SCORES, WEIGHS, CANCELS, FLUSHES, SALTS,
    COUNTS, MEANWHILE.

    ways: settings by what they do: PREFIX (0 or 1), CHUNK (tokens), POOL (blocks), ROOMY (tokens that are kept at
    least), DENSE (0), NEWEST (tokens that are never evicted), MOVES (0 or 1: keys take the positions of evicted ones).
    uses: which of ROOMY, DENSE and MOVES are about something that settings make use of.

    Of an engine that runs elsewhere, and was set when it was started: full: the settings of the reference. alone: why
    it is none that a loss could be seen against, "" where it is one. meet: what it is, asked of it itself, from the
    folder of the model and the settings; raises SpecError where it is not there. running: its version. longest: tokens
    of a context.
    """

    name: str
    summary: str
    package: str
    modules: tuple[str, ...]
    keys: Mapping[str, Key]
    block: int
    dtypes: tuple[str, ...]
    open: Callable[[Opening], Served]
    can: frozenset[str]
    extra: str = ""
    least: str = ""
    paged: str = ""
    expect: Callable[[Settings], None] = field(default=lambda settings: None)
    claims: Callable[[Settings], str] = field(default=lambda settings: "")
    ways: Mapping[str, Callable[[int], Settings]] = field(default_factory=dict)
    uses: Callable[[Settings], frozenset[str]] = field(default=lambda settings: frozenset())
    full: Callable[[Settings], Settings] | None = None
    alone: Callable[[Settings], str] = field(default=lambda settings: "")
    meet: Callable[[EngineInfo, Path, Settings], EngineInfo] | None = None
    running: str = ""
    longest: int | None = None

    @property
    def version(self) -> str:
        """Of what runs elsewhere, else of the installed package; "" where there is none."""
        if self.running:
            return self.running
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return ""

    @property
    def pip(self) -> str:
        """The command that installs it."""
        if self.extra:
            return f"pip install 'kvcheck[{self.extra}]'"
        return f"pip install '{self.package}>={self.least}'" if self.least else f"pip install {self.package}"

    def block_of(self, settings: Settings) -> int:
        """Tokens of a block with these settings."""
        return int(str(settings.get(self.paged) or self.block))
