"""What a data set of a benchmark is: where its rows lie, what they look like, how they are asked and graded."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvcheck.core.errors import SpecError
from kvcheck.core.formats import Json
from kvcheck.core.front import option
from kvcheck.tasks.base import Tokenizer, Turn

Row = Mapping[str, Json]
HUB = "hub"


@dataclass(frozen=True)
class Source:
    """Where rows come from: the Hub at the pinned revisions (folder None), or a folder of this machine."""

    folder: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `hub` or a path. Raises SpecError where the path is no folder."""
        if text == HUB:
            return cls()
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise SpecError(
                f"{option('data')} {text}: there is no such folder",
                f"type {option('data')} hub, or the path of a folder",
            )
        return cls(folder)


@dataclass(frozen=True)
class Upstream:
    """One file of a benchmark's own repository that holds its prompt templates, at a pinned commit.

    kind: "json" and "python" files hold a dictionary (in python the one assigned to `variable`), "text" one template.
    "literal": a Python file of which the first text that ends in the data set's key is the template; its empty slots
    have the names that `variable` lists.
    sha256: of the whole file. local: the file's path in a local folder.
    """

    repository: str
    commit: str
    path: str
    sha256: str
    kind: str
    local: str
    variable: str = ""


@dataclass(frozen=True)
class Job:
    """What a builder is told beside the row: the template, and in which form the row is wanted.

    compat: with the known bugs of its official scorer. scdq: the context is to be encoded alone, before any question.
    turns: at most so many, 0 for all. pool: gives the functions that are asked about in a repository (RepoQA).
    """

    data_set: DataSet
    template: str
    compat: bool = False
    scdq: bool = False
    turns: int = 0
    pool: Callable[[str], tuple[str, ...]] = lambda repository: ()

    @property
    def metric(self) -> str:
        """The metric of this form."""
        return (self.compat and self.data_set.metric_compat) or self.data_set.metric


@dataclass(frozen=True)
class Spot:
    """Which prompt of a depth x length grid over one text is wanted. depth: 0 (its start) to 1 (its end).

    length: in tokens of the tokenizer, or in words (DataSet.words). rng: random numbers of this prompt's own.
    """

    depth: float
    length: int
    tokenizer: Tokenizer
    rng: random.Random


Draft = tuple[str, tuple[Turn, ...]]
"""A context and its turns, before truncation: context + question + lead of the first turn is the whole prompt."""


@dataclass(frozen=True)
class DataSet:
    """One data set of a benchmark.

    name: "longbench/qasper". hub: id on the Hub; revision: the pinned sha, or "" where none is known: then the newest
    one is resolved and recorded when it is loaded. file: path in the repository (or in `archive`, a zip there), with
    its builder's ending (.json, .jsonl, .parquet). local: further paths tried in a local folder.
    columns: the expected ones and the type of their values. answer: the column that must not be empty, "" for none.
    build: (row, job) -> what is asked about a row; of a grid, (all texts as one row, job, spot). strings: columns
    whose values are read as strings whatever the file holds (lists of strings with a leading "*").
    count: rows of the whole set. metric, metric_compat: graded by; the second one has the known bugs of the benchmark's
    code, "" where there are none. key: the template's name in the upstream file. where: (column, value) that
    its rows have, or a function of a row. turns_compat: questions per row that the official script asks, 0 for all.
    depths: of a grid over all texts, whose `count` prompts are those of one length; 0 where every row is a prompt.
    words: lengths count words. together: rows of one prompt, which are "rows" of the row that is built from. plain: the
    file is a JSON list that is read as it is, for columns of mixed types.
    """

    name: str
    hub: str
    revision: str
    file: str
    columns: Mapping[str, type | tuple[type, ...]]
    answer: str
    count: int
    licence: str
    metric: str
    max_new_tokens: int | Mapping[str, int]
    capability: str
    chat: bool
    modes: tuple[str, ...]
    build: Callable[..., Draft]
    own: str
    upstream: Upstream | None = None
    key: str = ""
    metric_compat: str = ""
    stop: tuple[str, ...] = ()
    chance: float = 0.0
    lengths: tuple[int, ...] = ()
    archive: str = ""
    local: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    id_columns: tuple[str, ...] = ("_id", "id", "index")
    where: tuple[str, str] | Callable[[Row], bool] | None = None
    turns_compat: int = 0
    depths: int = 0
    words: bool = False
    together: int = 1
    plain: bool = False
    doc: str = ""

    @property
    def suite(self) -> str:
        """The benchmark: the part of the name before the slash."""
        return self.name.partition("/")[0]

    def has(self, row: Row) -> bool:
        """Whether a row of the file is one of this set."""
        if isinstance(self.where, tuple):
            return bool(row.get(self.where[0]) == self.where[1])
        return self.where is None or self.where(row)

    def row_id(self, row: Row, place: int) -> str:
        """Id of a row: its own one where it has one, else its place in the file."""
        found = next((row[column] for column in self.id_columns if row.get(column) is not None), place)
        return str(found)


def space_after(prompt: str) -> str:
    """What stands between a prompt and its answer: nothing behind white space or Chinese punctuation."""
    return "" if not prompt or prompt[-1].isspace() or prompt[-1] in "：，。" else " "


def changed(problem: str) -> SpecError:
    """The error of a row that the data set did not have when its facts were taken down."""
    return SpecError(problem, f"the data set has changed: use the pinned revision with {option('data')} hub")
