"""The prompt templates: read from the benchmark's own pinned file at run time, or our own words where it is not there.

The benchmarks' wording is not part of this repository. Which template was used is in the record: two baselines with
different templates are not comparable.
"""

from __future__ import annotations

import ast
import hashlib
import json
import urllib.request
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.files import write_atomically
from kvcheck.core.formats import Json
from kvcheck.core.front import option
from kvcheck.core.paths import cache_folder
from kvcheck.tasks.base import Turn
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Source, Upstream, space_after

OWN = "kvcheck/v1"
SECONDS = 30


@dataclass(frozen=True)
class Template:
    """A template in use. name: `owner/repository@commit:path`, `local:path`, `kvcheck/v1` (ours) or `rows`."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def find_template(data_set: DataSet, source: Source) -> Template:
    """The template of a data set: upstream's where it can be had, else ours under the name `kvcheck/v1`.

    Raises SpecError where an upstream file is there and has not the expected form.
    """
    upstream = data_set.upstream
    if upstream is None:
        return Template("rows" if data_set.own == ROWS else OWN, data_set.own)
    found = _local(upstream, data_set, source) if source.folder else _remote(upstream)
    if found is None:
        return Template(OWN, data_set.own)
    name, text = found
    return Template(name, _pick(text, upstream, data_set, name))


ROWS = "{context}{question}{answer_prefix}"
"""The template of data sets whose rows hold the whole prompt."""


def pinned_name(upstream: Upstream) -> str:
    """How the pinned upstream file is named in a record."""
    return f"{upstream.repository}@{upstream.commit[:12]}:{upstream.path}"


def _local(upstream: Upstream, data_set: DataSet, source: Source) -> tuple[str, str] | None:
    """The file in a local folder, under the benchmark's folder or at the top."""
    folder = source.folder or Path()
    for path in (folder / data_set.suite / upstream.local, folder / upstream.local):
        if path.is_file():
            data = path.read_bytes()
            same = hashlib.sha256(data).hexdigest() == upstream.sha256
            return pinned_name(upstream) if same else f"local:{upstream.local}", data.decode("utf-8")
    return None


def _remote(upstream: Upstream) -> tuple[str, str] | None:
    """The pinned file from the cache or from GitHub; None with a warning where there is no network."""
    cached = cache_folder("templates") / upstream.sha256 / Path(upstream.path).name
    if cached.is_file() and hashlib.sha256(cached.read_bytes()).hexdigest() == upstream.sha256:
        return pinned_name(upstream), cached.read_text("utf-8")
    url = f"https://raw.githubusercontent.com/{upstream.repository}/{upstream.commit}/{upstream.path}"
    try:
        data = _download(url)
    except OSError as error:
        text = f"{url} cannot be read ({error}): {OWN} prompts are used, which are not the benchmark's"
        warnings.warn(text, UserWarning, stacklevel=2)
        return None
    if hashlib.sha256(data).hexdigest() != upstream.sha256:
        raise SpecError(
            f"{url} is not the file that was pinned", f"try again, or keep a copy of it in a {option('data')} folder"
        )
    with suppress(OSError, KvcheckError):  # an unwritable cache costs a download, no more
        write_atomically(str(cached), data.decode("utf-8"))
    return pinned_name(upstream), data.decode("utf-8")


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        data: bytes = answer.read()
    return data


def _pick(text: str, upstream: Upstream, data_set: DataSet, name: str) -> str:
    if upstream.kind == "text":
        return text
    if upstream.kind == "literal":
        return literal(text, data_set.key, upstream.variable.split(), name)
    table = _json(text, name) if upstream.kind == "json" else dictionary(text, upstream.variable, name)
    found = table.get(data_set.key)
    if not isinstance(found, str):
        raise SpecError(f"{name} has no template for {data_set.key!r}", did_you_mean(data_set.key, map(str, table)))
    return found


def _json(text: str, name: str) -> dict[str, Json]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{name} is no JSON: {error}", "copy the file again from the benchmark's repository") from error
    if not isinstance(table, dict):
        raise SpecError(f"{name} holds no dictionary", "copy the file again from the benchmark's repository")
    return table


def dictionary(source: str, variable: str, name: str) -> dict[str, Json]:
    """The dictionary of literals that a Python file assigns to a variable. The file is parsed, never executed.

    Raises SpecError: no Python, no such variable, or not a dictionary of literals.
    """
    hint = "copy the file again from the benchmark's repository"
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{name} is no Python file: {error}", hint) from error
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == variable for t in node.targets):
            try:
                found = ast.literal_eval(node.value)
            except ValueError as error:
                raise SpecError(f"{name}: {variable} is not made of literals", hint) from error
            if isinstance(found, dict):
                return found
    raise SpecError(f"{name} assigns no dictionary to {variable}", hint)


def literal(source: str, ending: str, slots: list[str], name: str) -> str:
    """The first text of a Python file that has this ending, its empty slots named. The file is parsed, never executed.

    Raises SpecError: no Python, or no such text.
    """
    hint = "copy the file again from the benchmark's repository"
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{name} is no Python file: {error}", hint) from error
    for node in sorted(nodes, key=lambda node: node.lineno):
        if isinstance(node.value, str) and node.value.endswith(ending) and node.value.count("{}") == len(slots):
            return node.value.format(*(f"{{{slot}}}" for slot in slots))
    raise SpecError(f"{name} has no text with {len(slots)} slots that ends in {ending!r}", hint)


def split(template: str) -> tuple[str, str]:
    """The parts before and behind the context slot. Raises SpecError unless there is exactly one."""
    parts = template.split("{context}")
    if len(parts) != 2:
        raise SpecError(f"the template has {len(parts) - 1} slots {{context}}, not one", "look at the template's file")
    return parts[0], parts[1]


def fill(part: str, fields: dict[str, str]) -> str:
    """Put values into the slots of a part. Raises SpecError for a slot that the rows have no value for."""
    try:
        return part.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise SpecError(
            f"the template has a slot that the rows cannot fill: {error}", f"known slots: {', '.join(sorted(fields))}"
        ) from error


def one_question(
    job: Job,
    template: str,
    context: str,
    fields: dict[str, str],
    references: tuple[str, ...],
    *,
    subtask: str = "",
    options: tuple[str, ...] = (),
    target: str = "",
) -> Draft:
    """A context with one question, in the words of a template. fields: of the slots beside the context."""
    one = job.data_set
    head, tail = split(template)
    question = fill(tail, fields)
    turn = Turn(
        question, references, int(str(one.max_new_tokens)), job.metric, subtask=subtask, options=options,
        space=space_after(question), target=target, stop=one.stop,
    )  # fmt: skip
    return fill(head, fields) + context, (turn,)
