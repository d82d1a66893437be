"""The commands of `kvcheck` that try something: prompt, zoo, false-positives, power, transfer, phenomena, told, along.
`speed` has its own module."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvcheck.cli import options
from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain
from kvcheck.core.record import MODES
from kvcheck.report.text import WIDTH, colour, columns

OK, REGRESSION, ERROR = 0, 1, 2
PROMPT = ("model", "data", "text", "compat", "chat", "think", "history", "rope", "trust_remote_code")
"""Options of `kvcheck prompt` that are pytest's."""
TOLD = ("completion/prose", "completion/echo")
"""Tasks of `kvcheck told`."""
COLOURS = {"red": "31", "yellow": "33", "green": "32"}
"""As a terminal takes them."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this module."""
    for each in (
        _add_power,
        _add_zoo,
        _add_false_positives,
        _add_prompt,
        _add_transfer,
        _add_phenomena,
        _add_told,
        _add_along,
    ):
        each(commands)


def _add_prompt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prompt = commands.add_parser("prompt", help="show exactly what a model is shown of a sample")
    prompt.add_argument("task", metavar="TASK", help="such as kv, or longbench/qasper with --data")
    prompt.add_argument("--mode", default="single", choices=MODES)
    prompt.add_argument("--length", type=int, default=512, help="tokens of context (default 512)")
    prompt.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    prompt.add_argument("--index", type=int, default=0, help="which sample (default 0)")
    options.add(prompt, *PROMPT)
    other = {name: options.renamed(word) for name, word in (("modes", "mode"), ("lengths", "length"))}
    spell = options.spelling((*PROMPT, "seed"), tasks=_as_task, n=_as_index, **other)
    prompt.set_defaults(run=_prompt, spell=spell)


def _as_task(name: str, value: str) -> str:
    """A task is the argument of `kvcheck prompt`."""
    return f"kvcheck prompt {value}".rstrip()


def _as_index(name: str, value: str) -> str:
    """So many contexts: the last one has this index."""
    return f"--index {int(value) - 1}" if value else "--index"


def _add_zoo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    zoo = commands.add_parser("zoo", help="would the gate catch known bugs on this model? (pytest --kv-zoo)")
    zoo.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="bugs or families (default: all)")
    zoo.add_argument("--method", action="append", default=[], metavar="SPEC", help="faults around a method of your own")
    options.add(zoo, "model", "profile")
    zoo.add_argument("-n", dest="workers", default="0", metavar="N", help="processes (default: this one)")
    zoo.add_argument("--json", metavar="PATH", help="keep the results there; what is in it is not run again")
    zoo.add_argument("--md", metavar="PATH", help="write the table there as Markdown")
    zoo.set_defaults(run=_zoo)


def _add_false_positives(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("false-positives", help="does any property accuse a correct method?")
    parser.add_argument("--method", action="append", default=[], metavar="SPEC", help="default: all that are known")
    parser.add_argument("--seeds", type=int, default=5, help="seeds from 0 up (default 5)")
    parser.add_argument("--profile", choices=("quick", "default", "full"), default="default")
    parser.add_argument("-n", dest="workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--md", metavar="PATH", help="write the table there as Markdown")
    parser.set_defaults(run=_false_positives)


def _add_power(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    power = commands.add_parser("power", help="simulate runs: what does the gate see, and does it accuse the innocent?")
    power.add_argument("--runs", type=int, default=150, help="simulated runs of a method against itself (default 150)")
    power.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    power.add_argument("--jobs", type=int, help="processes (default: one per core); they do not change a number")
    power.add_argument("--model", default="mini", help="whose baselines to draw from (default mini)")
    power.add_argument("--baselines", metavar="PATH", help="a folder of your own, above the shipped ones")
    power.add_argument("--json", metavar="PATH", help="write the figures there")
    power.add_argument("--md", metavar="PATH", help="write the report there as Markdown")
    power.set_defaults(run=_power)


def _add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("transfer", help="does a verdict on the embedded model hold on a pretrained one?")
    parser.add_argument("--md", metavar="PATH", help="write the tables there as Markdown")
    parser.set_defaults(run=_transfer)


def _add_phenomena(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("phenomena", help="which faults of a cache can a model show at all?")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="repeatable (default: mini)")
    parser.add_argument("--contexts", type=int, default=4, help="per task (default 4)")
    parser.add_argument("--length", type=int, default=512, help="tokens of context (default 512)")
    parser.add_argument("--md", metavar="PATH", help="write the tables there as Markdown")
    parser.set_defaults(run=_phenomena)


def _add_told(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("told", help="which known bugs do a model's answers tell from a correct method?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs or families (default: those mini hardly shows)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="repeatable (default: mini)")
    parser.add_argument("--contexts", type=int, help="per task at most (default 16 of prose, 8 of echo)")
    parser.add_argument("--task", action="append", default=[], choices=TOLD, help="repeatable (default: both)")
    parser.add_argument("--length", type=int, default=512, help="tokens of context (default 512)")
    parser.add_argument("--md", metavar="PATH", help="write the tables there as Markdown")
    parser.set_defaults(run=_told)


def _add_along(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "along", help="what becomes of a method's KL and bytes along an answer of 2,000 tokens?"
    )
    parser.add_argument("--model", default="mini", metavar="NAME", help="default: mini")
    parser.add_argument(
        "--method", action="append", default=[], metavar="SPEC", help="default: those that act in decoding"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens of the prompt (default 512)")
    parser.add_argument("--md", metavar="PATH", help="write the tables there as Markdown")
    parser.set_defaults(run=_along)


def show(lines: Iterable[str]) -> None:
    """Print lines, what methods, models and files say in them made harmless."""
    for line in lines:
        print(plain(line), flush=True)


def width() -> int:
    """Columns for a report: those of the terminal, as far as a report uses them; all of them where there is none."""
    return columns(shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH


def coloured(lines: Iterable[str]) -> None:
    """Print the lines of a report, in colour on a terminal, unless NO_COLOR asks for none."""
    able = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    for line in lines:
        code = COLOURS.get(colour(line), "") if able else ""
        print(f"\033[{code}m{plain(line)}\033[0m" if code else plain(line), flush=True)


def complain(text: object) -> None:
    """Say what is wrong, the same way."""
    print(plain(f"kvcheck: {text}"), file=sys.stderr)


def _prompt(given: argparse.Namespace) -> int:
    """ERROR where a prompt does not fit into the model, which is shown all the same."""
    from kvcheck.core.record import CaseId
    from kvcheck.models import Loading
    from kvcheck.models.loading import encoder_of
    from kvcheck.runner.case import find_task
    from kvcheck.runner.prompts import conversation, prompter
    from kvcheck.tasks import find

    if given.index < 0 or given.length < 1:
        raise KvcheckError("--index is a number from 0 up, --length from 1 up", "kvcheck prompt kv --length 512")
    settings = options.check(vars(given), PROMPT)
    version = find(given.task, given.data, text=settings.text).info.version
    case = CaseId(given.task, version, given.mode, given.length, given.seed, given.index + 1)
    task = find_task(case, settings)
    encoder, limit = encoder_of(settings.model, Loading(settings.rope, bool(settings.trust_remote_code)))
    sample = task.generate(case.seed, given.index, case.length, encoder)
    asking = prompter(task, case, sample, encoder, None, settings)
    for what, text in conversation(sample, asking):
        show([f"--- {what}", text])
    prompter(task, case, sample, encoder, limit, settings).context(sample)
    return OK


def _power(given: argparse.Namespace) -> int:
    """1 where a figure is surely missed."""
    from kvcheck import power
    from kvcheck.power import report
    from kvcheck.report.text import plural

    jobs = given.jobs if given.jobs is not None else os.cpu_count() or 1
    plan = power.Plan(given.runs, given.seed, jobs)
    recorded = power.load(given.baselines, given.model)
    tables = power.measure(recorded, plan, progress)
    show(report.text(tables))
    report.write(recorded, plan, tables, given.json, given.md)
    found = report.broken(tables)
    print(f"kvcheck: {plural(len(found), 'figure')} surely missed" if found else "no figure is surely missed")
    return REGRESSION if found else OK


def _zoo(given: argparse.Namespace) -> int:
    """0: every bug caught and no correct method accused, 1: not so."""
    from kvcheck.store.journal import folder_of

    arguments = ["--pyargs", "kvcheck.suites.test_zoo", "-q", f"-n{given.workers}", f"--kv-zoo={','.join(given.names)}"]
    arguments += [f"--kv-method={method}" for method in given.method]
    begun = given.json and (Path(given.json).exists() or folder_of(Path(given.json)).exists())
    options = {"model": given.model, "profile": given.profile, "json": given.json, "resume": begun and given.json}
    arguments += [f"--kv-{name}={value}" for name, value in {**options, "md": given.md}.items() if value]
    return REGRESSION if run_pytest([*arguments, "-p", "no:cacheprovider"]) else OK


def run_pytest(arguments: Sequence[str]) -> int:
    """What pytest exits with, in a process of its own: a method that ends it does not end this one with status 0."""
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


def _transfer(given: argparse.Namespace) -> int:
    """Of the shipped records."""
    from kvcheck.core.files import write_atomically
    from kvcheck.report import transfer
    from kvcheck.report.recorded import MODELS

    models = tuple(MODELS)
    found = transfer.methods(models)
    show(transfer.text(models, found))
    if given.md:
        write_atomically(given.md, "\n".join(transfer.markdown(models, found)) + "\n")
    return OK


def _phenomena(given: argparse.Namespace) -> int:
    """On every model in turn."""
    from kvcheck.backends.transformers import Session
    from kvcheck.core.files import write_atomically
    from kvcheck.core.settings import Settings
    from kvcheck.report import phenomena as report
    from kvcheck.runner.case import driven
    from kvcheck.zoo import phenomena

    if given.contexts < 1 or given.length < 1:
        raise KvcheckError(
            "--contexts and --length are numbers from 1 up", "kvcheck phenomena --contexts 4 --length 512"
        )
    found = []
    for model in given.model or ["mini"]:
        session = Session.open(settings := Settings(model=model))
        seen = []
        for one in phenomena.measure(driven(session, settings), given.contexts, given.length):
            seen.append(one)
            progress(f"{model}: {one.task}, {phenomena.CHANGES[one.change][0]}: KL {one.kl:.4f}", True)
        found.append(
            report.Looked(model, phenomena.anatomy(session.loaded, phenomena.prose(session, given.length)), seen)
        )
    words = {name: text for name, (text, _) in phenomena.CHANGES.items()}
    show(report.text(found, words))
    if given.md:
        how = f"{given.contexts} contexts of {given.length} tokens each: `{_typed('phenomena', given, contexts=4)}`."
        write_atomically(given.md, "\n".join(report.markdown(found, words, how)) + "\n")
    return OK


def _told(given: argparse.Namespace) -> int:
    """On every model in turn."""
    from kvcheck.core.files import write_atomically
    from kvcheck.core.settings import Settings
    from kvcheck.report import told as report
    from kvcheck.runner.case import driven
    from kvcheck.zoo import told

    if (given.contexts or 1) < 1 or given.length < 1:
        raise KvcheckError("--contexts and --length are numbers from 1 up", "kvcheck told --contexts 8 --length 512")
    found = []
    for model in given.model or ["mini"]:
        engine = driven(told.Unaudited.open(settings := Settings(model=model)), settings)
        seen = []
        asked = given.names or tuple(told.UNSEEN), given.length, given.contexts, given.task or tuple(told.CASES)
        for one in told.measure(engine, *asked):
            seen.append(one)
            progress(f"{model}: {one.bug}, {one.task}, {one.metric or one.failed}: p {one.p:.4f}", True)
        found.append(report.Looked(model, seen))
    show(report.text(found, told.UNSEEN))
    if given.md:
        how = (
            f"Contexts of {given.length} tokens: `{_typed('told', given)}`. Told is what stays at p <= {told.LEVEL:g}."
        )
        write_atomically(given.md, "\n".join(report.markdown(found, told.UNSEEN, how)) + "\n")
    return OK


def _typed(name: str, given: argparse.Namespace, contexts: int | None = None) -> str:
    """The command as it was given, without what is so by default. contexts: the default number of them."""
    words = [f"kvcheck {name}", *getattr(given, "names", ()), *(f"--model {model}" for model in given.model)]
    words += [f"--task {task}" for task in getattr(given, "task", ())]
    words += [f"--contexts {given.contexts}"] if given.contexts != contexts else []
    return " ".join(words + ([f"--length {given.length}"] if given.length != 512 else []))


def _along(given: argparse.Namespace) -> int:
    """Of every method in turn, over one text."""
    from kvcheck.backends.transformers import Session, along
    from kvcheck.core.files import write_atomically
    from kvcheck.core.settings import Settings
    from kvcheck.report import along as report
    from kvcheck.zoo import phenomena

    if given.length < 1:
        raise KvcheckError("--length is a number from 1 up", "kvcheck along --length 512")
    session, ends = Session.open(Settings(model=given.model)), along.STRETCHES
    ids = phenomena.prose(session, given.length + ends[-1])
    found: dict[str, list[along.Stretch]] = {}
    for spec in given.method or along.METHODS:
        found[spec] = []
        for one in along.along(session, spec, ids, given.length, ends):
            found[spec].append(one)
            progress(f"{given.model}: {spec}, up to token {one.upto}: KL {one.kl:.4f}, bytes {one.bytes:.2f}", True)
    show(report.text(found, ends))
    if given.md:
        typed = " ".join(["kvcheck along", f"--model {given.model}", *(f"--method={spec}" for spec in given.method)])
        how = f"One text on `{given.model}`, a prompt of {given.length} tokens: `{typed}`."
        write_atomically(given.md, "\n".join(report.markdown(found, ends, how)) + "\n")
    return OK


def _false_positives(given: argparse.Namespace) -> int:
    """1 where a property accuses a method."""
    from kvcheck.conformance.false_positives import Tried, attempt, correct
    from kvcheck.core.files import write_atomically
    from kvcheck.report import conformance
    from kvcheck.report.text import plural

    if given.seeds < 1 or given.workers < 1:
        raise KvcheckError("--seeds and -n are numbers from 1 up", "kvcheck false-positives --seeds 5 -n 2")
    specs = tuple(given.method) or correct()
    total = len(specs) * given.seeds
    done: list[Tried] = []

    def tick(one: Tried) -> None:
        done.append(one)
        count = plural(len(one.false_positives), "false positive")
        progress(f"{len(done)} of {total}: {one.method}, seed {one.seed}: {count}", True)

    found = attempt(specs, range(given.seeds), given.profile, given.workers, tick)
    show(conformance.false_positives(found))
    if given.md:
        write_atomically(given.md, "\n".join(conformance.false_positives_markdown(found)) + "\n")
    return REGRESSION if any(one.false_positives for one in found) else OK


def progress(text: str, whole: bool = False) -> None:
    """One line that is overwritten; where nobody looks, one line for each part that is whole."""
    if sys.stderr.isatty():
        print(f"\033[2K{plain(text)}", end="\n" if whole else "\r", file=sys.stderr, flush=True)
    elif whole:
        print(plain(text), file=sys.stderr, flush=True)
