"""A data set as a task: rows in, samples out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer
from kvcheck.tasks.benchmarks.base import DataSet, Job, Row, Source, Spot
from kvcheck.tasks.benchmarks.rows import Rows, revision_of
from kvcheck.tasks.benchmarks.templates import Template, find_template
from kvcheck.tasks.benchmarks.truncate import shorten
from kvcheck.tasks.filling import grid_depth, sample_rng
from kvcheck.tasks.metrics import METRICS, library

VERSION = 1


class Loader:
    """Gives the samples of one data set in one form. Reads rows and template on first use."""

    def __init__(self, data_set: DataSet, source: Source, compat: bool, scdq: bool) -> None:
        self.data_set, self.source, self.compat, self.scdq = data_set, source, compat, scdq
        self.rows = Rows(data_set, source)
        self._pools: dict[str, tuple[str, ...]] | None = None

    @cached_property
    def template(self) -> Template:
        """The template in use. Raises SpecError, see `find_template`."""
        return find_template(self.data_set, self.source)

    @cached_property
    def revision(self) -> str:
        """What identifies the rows in use, see `revision_of`."""
        return revision_of(self.data_set, self.source)

    def generate(self, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 0) -> Sample:
        """The index-th row, in file order for seed 0 and in an order of its own for another seed.

        length: the first prompt has at most so many tokens of the tokenizer, see `shorten`. turns: at most so many
        questions, 0 for all of the row (with `compat` for as many as the benchmark's scripts ask).
        Raises SpecError, see `read`.
        """
        place, row = self._row(seed, index)
        limit = turns or (self.data_set.turns_compat if self.compat else 0)
        job = Job(self.data_set, self.template.text, self.compat, self.scdq, limit, self._pool)
        context, asked = self.data_set.build(row, job)
        row_id = self.data_set.row_id(row, place)
        sample = Sample(self.data_set.name, index, context, asked, chat=self.data_set.chat, row=row_id)
        return shorten(sample, length, tokenizer, alone=self.scdq)

    def _row(self, seed: int, index: int) -> tuple[int, Row]:
        """(place in the file, row) of a sample; of several rows in one prompt, the place of the first."""
        size = self.data_set.together
        if size == 1:
            return self.rows.get(self._place(seed, index, len(self.rows.all()) if seed else 0))
        every = [row for _, row in self.rows.all()]
        count = -(-len(every) // size)
        if not 0 <= index < count:
            problem = f"{self.data_set.name} has {len(every)} rows for {count} prompts, sample {index} was asked for"
            raise SpecError(problem, f"{option('n', count)} at most")
        first = self._place(seed, index, count) * size
        return first, {"rows": every[first : first + size]}

    def _place(self, seed: int, index: int, count: int) -> int:
        """Place of a sample among `count`."""
        if seed == 0:
            return index
        order = random.Random(f"{self.data_set.name}/seed={seed}").sample(range(count), count)
        return order[index] if 0 <= index < count else index

    def _pool(self, repository: str) -> tuple[str, ...]:
        """The functions asked about in a repository, over all rows of the data set."""
        if self._pools is None:
            found: dict[str, list[str]] = {}
            limit = self.data_set.turns_compat if self.compat else 0
            for _, row in self.rows.all():
                asked = row["multi_turns"][: limit or None]
                here = [str(turn["answer"]) for turn in asked if turn.get("name") is not None]
                found.setdefault(str(row.get("repo")), []).extend(here)
            self._pools = {name: tuple(dict.fromkeys(here)) for name, here in found.items()}
        return self._pools.get(repository, ())


class Grid(Loader):
    """Gives the prompts of a depth x length grid over one text: the texts of all rows, in their order."""

    @cached_property
    def text(self) -> Row:
        """The whole text as a row. Raises SpecError, see `read`."""
        return {"context": "".join(str(row["context"]) for _, row in self.rows.all())}

    def generate(self, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 0) -> Sample:
        """The index-th prompt of a length: a depth of the grid, after all of them the next repetition."""
        one = self.data_set
        spot = Spot(
            grid_depth(index, one.depths), length, tokenizer, sample_rng(one.name, VERSION, seed, length, index)
        )
        context, asked = one.build(self.text, Job(one, self.template.text, self.compat, self.scdq), spot)
        row = f"depth={spot.depth:.2f}/repetition={index // one.depths}"
        return Sample(one.name, index, context, asked, chat=one.chat, row=row)


@dataclass(frozen=True)
class BenchmarkTask(Task):
    """A task whose samples are rows of a data set, with what must be recorded beside its scores."""

    loader: Loader

    @property
    def data_set(self) -> DataSet:
        """The declaration."""
        return self.loader.data_set

    @property
    def template(self) -> Template:
        """The template in use: name, text, sha256. Raises SpecError."""
        return self.loader.template

    @property
    def facts(self) -> dict[str, str]:
        """The switches that change a score: two records that differ in one do not compare."""
        metric = Job(self.data_set, "", self.loader.compat).metric
        return {
            "data": self.data_set.hub,
            "revision": self.loader.revision,
            "template": self.template.name,
            "template_sha256": self.template.sha256,
            "metric": metric,
            "metric_library": library(metric.split("+")),
            "max_new_tokens": str(self.data_set.max_new_tokens),
            "stop_strings": repr(self.data_set.stop),
            "form": "compat" if self.loader.compat else "fixed",
            "context": "alone" if self.loader.scdq else "with question",
            "truncation": self._truncation,
            "bos": "2" if self.loader.compat and self.data_set.suite == "scbench" else "1",
        }

    @property
    def _truncation(self) -> str:
        if self.data_set.depths:
            return f"at the end, by {'words' if self.data_set.words else 'tokens'}"
        return "middle, by tokens, before the chat template"


def make_task(data_set: DataSet, source: Source, compat: bool, scdq: bool) -> BenchmarkTask:
    """The task of a data set. Nothing is read yet."""
    loader = (Grid if data_set.depths else Loader)(data_set, source, compat, scdq)
    job = Job(data_set, "", compat)
    names = job.metric.split("+")
    info = TaskInfo(
        data_set.name,
        VERSION,
        data_set.capability,
        data_set.modes,
        all(METRICS[name].binary for name in names),
        data_set.chance,
        data_set.doc or f"rows of {data_set.hub}",
        data_set.lengths,
        exact=False,
        words=data_set.words,
        history="gold" if data_set.suite == "scbench" else "own",
        most=data_set.count,
    )
    return BenchmarkTask(info, loader.generate, loader)
