"""Are recorded answers those to the prompts of their task, with the scores that its metric gives them?

The prompts are generated anew and the answers graded again: no model is run, and no code of the method. What a model
alone can tell (which answer it gave, the drift, the bytes) is taken as it stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.paths import bundle
from kvcheck.core.record import COSTS, CaseId, CaseRecord, SampleRecord, TurnRecord
from kvcheck.core.settings import Settings
from kvcheck.store.lines import SCORE_DIGITS
from kvcheck.store.reader import Reading
from kvcheck.store.text import ModelId
from kvcheck.tasks import find
from kvcheck.tasks.base import Sample, Task, Tokenizer, Turn

if TYPE_CHECKING:
    from kvcheck.models.encoder import Encoder

NEAR = 0.51 * 10**-SCORE_DIGITS
"""How far a stored number may lie from what it was rounded from."""


SEAM = 8
"""Tokens at the end of a context that may belong to the question behind it."""


class NotVerified(KvcheckError):
    """What is needed to generate the prompts anew is not at hand. The message says what."""


class Rescorer:
    """Grades the records of one model again. encoder: its tokenizer. settings: data and compat, as the run had them.

    Prompts are generated once for all modes and methods, and equal answers graded once.
    """

    def __init__(self, encoder: Tokenizer, settings: Settings | None = None) -> None:
        self.encoder, self.settings = encoder, settings or Settings()
        self._samples: dict[Hashable, tuple[str, tuple[Turn, ...]]] = {}

    def problems(self, record: CaseRecord) -> list[str]:
        """What a run of this case cannot have produced, [] where all is right. Raises NotVerified."""
        if record.capability == COSTS:
            raise NotVerified("what a context costs has no answers")
        task = self._task(record)
        found = list(_declared(record, task))
        if not found:  # else there may be no such prompts
            for sample in record.samples:
                found += self._context(record, task, sample)
        return found

    def sample(self, record: CaseRecord, index: int) -> Sample:
        """A context of the record as it was shown, generated anew. Raises NotVerified where it cannot be had, or is
        another one here."""
        task, case = self._task(record), record.case
        try:
            found: Sample = task.generate(case.seed, index, case.length, self.encoder)
        except KvcheckError as error:
            raise NotVerified(error.message, error.hint) from error
        if any(one.index == index and one.digest != found.digest for one in record.samples):
            raise NotVerified("the prompts of this case are other ones here")
        return found

    def _task(self, record: CaseRecord) -> Task:
        """The task of a record, over the data that it was recorded with. Raises NotVerified."""
        case, settings = record.case, self.settings
        try:
            task = find(
                case.task, settings.data, settings.compat, alone=case.mode == "multi_request", text=settings.text
            )
            facts, recorded = task.facts, dict(record.switches)
        except KvcheckError as error:
            raise NotVerified(error.message, error.hint) from error
        if task.info.version != case.version:
            raise NotVerified(f"the task {case.task} is at version {task.info.version} here")
        if recorded.get("text", "") != task.text:
            raise NotVerified(f"{case.task} was recorded with another text", f"{option('text')}=FILE says which")
        for name, here in facts.items():
            if recorded.get(name) != here:
                raise NotVerified(f"{name} of {case.task} is {recorded.get(name)} there and {here} here")
        return task

    def _context(self, record: CaseRecord, task: Task, sample: SampleRecord) -> Iterator[str]:
        try:
            digest, turns = self._sample(task, record.case, sample.index)
        except KvcheckError as error:
            if task.facts or isinstance(error, MethodUnsupported):  # no data, no images
                raise NotVerified(error.message, error.hint) from error
            yield f"context {sample.index} cannot be generated: {error.message}"
            return
        if sample.digest != digest:
            yield f"context {sample.index}: its prompts are other ones ({sample.digest}, generated {digest})"
            return
        turns = turns[:1] if record.case.mode == "single" else turns
        if len(sample.turns) != len(turns):
            yield f"context {sample.index} has {len(sample.turns)} answers to {len(turns)} questions"
            return
        for at, (turn, asked) in enumerate(zip(sample.turns, turns, strict=True)):
            yield from (f"context {sample.index}, turn {at + 1}: {one}" for one in _graded(turn, asked))

    def _sample(self, task: Task, case: CaseId, index: int) -> tuple[str, tuple[Turn, ...]]:
        """Digest and questions of a sample. Rows of a data set are cut otherwise where they are read alone."""
        key = (case.task, case.version, case.seed, case.length, index, "" if task.info.exact else case.mode)
        if key not in self._samples:
            sample: Sample = task.generate(case.seed, index, case.length, self.encoder)
            self._samples[key] = sample.digest, sample.turns
        return self._samples[key]


class Prompts:
    """The contexts of a run's records, generated anew when they are asked for. settings: data and compat, as the run
    had them. given: see `encoder_at_hand`. Imports torch at the first one, for the tokenizer.
    """

    def __init__(self, model: ModelId, settings: Settings, given: Sequence[str] = ()) -> None:
        self._open = lru_cache(maxsize=1)(lambda: Rescorer(encoder_at_hand(model, given), settings))

    def __call__(self, record: CaseRecord, index: int) -> Sample:
        """Raises NotVerified."""
        return self._open().sample(record, index)


def graded_again(
    readings: Iterable[Reading], settings: Settings, unknown: dict[str, list[str]], given: Sequence[str] = ()
) -> Iterator[Reading]:
    """The readings of a store, with one more for every problem that grading again finds.

    unknown: is filled with why cases were not graded, and the file of each. given: see `encoder_at_hand`.
    """
    known: dict[ModelId, Rescorer | NotVerified] = {}
    for one in readings:
        yield one
        if one.record is None or one.model is None:
            continue
        if one.model not in known:
            try:
                known[one.model] = Rescorer(encoder_at_hand(one.model, given), settings)
            except NotVerified as error:
                known[one.model] = error
        try:
            if isinstance(rescorer := known[one.model], NotVerified):
                raise rescorer
            for problem in rescorer.problems(one.record):
                yield Reading(one.path, one.model, problem=f"{one.record.case}: {problem}")
        except NotVerified as error:
            unknown.setdefault(error.message, []).append(one.path)


def _declared(record: CaseRecord, task: Task) -> Iterator[str]:
    """What is not as the task declares it."""
    info, case, memory = task.info, record.case, record.memory
    for name in ("capability", "binary", "chance", "scored"):
        declared, recorded = getattr(info, name), getattr(record, name)
        if declared != recorded:
            yield f"{name} is {recorded}, and {declared} of the task {case.task}"
    if case.mode not in info.modes:
        yield f"the task {case.task} has no mode {case.mode}"
    if info.most and len(record.samples) > info.most:
        yield f"{len(record.samples)} contexts of {info.most} that there are"
    if memory is None and "memory" not in dict(record.not_measured):
        yield "its bytes are missing, and no reason is given"
    if info.exact and memory is not None and not case.length - SEAM <= memory.seen <= 4 * case.length + 10**4:
        yield f"{memory.seen} tokens were seen in contexts of {case.length}"


def _graded(turn: TurnRecord, asked: Turn) -> Iterator[str]:
    """What is not as the question has it, the score first."""
    score = _score(asked.metric, turn.answer, asked.references, asked.options) if asked.max_new_tokens else 0.0
    if turn.answer and not asked.max_new_tokens:
        yield "there is an answer, and nothing is asked"
    if abs(score - turn.score) > NEAR:
        yield f"the score is {turn.score:g}, and {asked.metric} gives the answer {score:g}"
    if turn.subtask != asked.subtask:
        yield f"the subtask is {turn.subtask!r}, not {asked.subtask!r}"
    if (turn.depth is None) != (asked.depth is None) or abs((turn.depth or 0.0) - (asked.depth or 0.0)) > NEAR:
        yield f"the depth is {turn.depth}, not {asked.depth}"


@lru_cache(maxsize=100_000)
def _score(metric: str, answer: str, references: tuple[str, ...], options: tuple[str, ...]) -> float:
    from kvcheck.tasks.metrics import score

    return score(metric, answer, references, options)


def encoder_at_hand(model: ModelId, given: Sequence[str] = ()) -> Encoder:
    """The tokenizer of a model that lies on this machine. Nothing is downloaded, and no weights are loaded.

    given: names or folders to look at first. Raises NotVerified where none of them, nor the model's name, leads to
    what has its fingerprint. Imports torch.
    """
    from kvcheck.models.fingerprint import fingerprint

    name, _, rope = model.name.partition("@")
    reason = "is not on this machine (--model FOLDER says where it is)"
    for typed in (*given, name):
        folder = _folder(typed)
        if folder is None:
            continue
        try:
            trusted = [code for code in (False, True) if fingerprint(folder, rope=rope, code=code) == model.fingerprint]
        except (OSError, ValueError, KeyError):  # no whole model
            continue
        if trusted:
            return _encoder(str(folder), rope, trusted[0])
        if typed == name:
            reason = f"of this fingerprint ({model.fingerprint}) is not on this machine: {folder} is another one"
    raise NotVerified(f"the model {model.name} {reason}")


def _encoder(folder: str, rope: str, trusted: bool) -> Encoder:
    from kvcheck.models.loading import Loading, encoder_of

    if trusted:
        raise NotVerified(f"the tokenizer in {folder} may need code of its own, which is not run to verify")
    try:
        return encoder_of(folder, Loading(rope))[0]
    except (MethodUnsupported, SpecError) as error:
        raise NotVerified(error.message, error.hint) from error


def _folder(typed: str) -> Path | None:
    """Where a model lies: embedded, in a package, a GGUF file, a folder, or fetched from the Hub before."""
    from kvcheck.models.names import EMBEDDED, GGUF, PACKAGED

    if typed in EMBEDDED:
        return bundle("fixtures") / typed
    if typed in PACKAGED or typed.lower().endswith(GGUF):
        from kvcheck.models.loading import located

        try:
            return Path(located(typed).path)
        except SpecError as error:
            raise NotVerified(error.message, error.hint) from error
    if (path := Path(typed).expanduser()).is_dir():
        return path
    if typed.count("/") != 1 or typed.startswith((".", "/", "~")):
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(typed, local_files_only=True))
    except Exception:  # whatever the reason: it is not here
        return None
