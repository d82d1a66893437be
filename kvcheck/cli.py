"""The command line `kvcheck`: lists, compares and reports; works on files, and without torch but for `doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.errors import KvcheckError

if TYPE_CHECKING:
    from kvcheck.baseline import Store
    from kvcheck.record import CaseRecord, Run

OK, REGRESSION, ERROR = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="kvcheck", description="Does a KV cache method still work?")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    methods = commands.add_parser("methods", help="list the methods that --kv-method knows")
    methods.add_argument("--pages", type=Path, metavar="FOLDER", help="write a page of documentation per method there")
    methods.set_defaults(run=_methods)
    commands.add_parser("tasks", help="list the tasks with their capability, modes and lengths").set_defaults(
        run=_tasks
    )

    compare = commands.add_parser("compare", help="compare two run files, case by case")
    compare.add_argument("before", type=Path, metavar="A", help="run file of before")
    compare.add_argument("after", type=Path, metavar="B", help="run file of now")
    compare.add_argument("--fail-on-regression", action="store_true", help="exit with 1 where B is worse for sure")
    compare.set_defaults(run=_compare)

    baselines = commands.add_parser("baselines", help="list or verify stored baselines")
    baselines.add_argument("action", choices=("list", "verify"))
    baselines.add_argument(
        "--baselines", metavar="PATH", help="a folder of your own, above the shipped ones (default: .kvcheck/baselines)"
    )
    baselines.set_defaults(run=_baselines)

    allow = commands.add_parser("allowances", help="propose what the methods of a run may lose, as TOML")
    allow.add_argument("run_file", type=Path, metavar="RUN.json", help="a run with fp16 and the methods")
    allow.add_argument("--out", metavar="FILE", help="write them there whole or not at all (default: print them)")
    allow.set_defaults(run=_allowances)

    commands.add_parser("doctor", help="what is installed, which device, which baselines fit").set_defaults(run=_doctor)

    report = commands.add_parser("report", help="print the summary of a run file")
    report.add_argument("run_file", type=Path, metavar="RUN.json")
    report.add_argument("--md", action="store_true", help="as Markdown")
    report.set_defaults(run=_report)
    _add_power(commands)
    _add_zoo(commands)
    _add_alarms(commands)
    _add_prompt(commands)
    return top


def _add_prompt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prompt = commands.add_parser("prompt", help="show exactly what a model is shown of a sample")
    prompt.add_argument("task", metavar="TASK", help="such as kv, or longbench/qasper with --data")
    prompt.add_argument(
        "--model", default="mini", help="whose tokenizer and chat template: path or hub id (default mini)"
    )
    prompt.add_argument("--mode", default="single", choices=("single", "multi_turn", "multi_request"))
    prompt.add_argument("--length", type=int, default=512, help="tokens of context (default 512)")
    prompt.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    prompt.add_argument("--index", type=int, default=0, help="which sample (default 0)")
    prompt.add_argument("--data", metavar="hub|PATH", help="where public benchmarks are read")
    prompt.add_argument("--compat", action="store_true", help="as --kv-compat")
    for name, words in (("chat", ("task", "yes", "no")), ("history", ("task", "own", "gold"))):
        prompt.add_argument(f"--{name}", default="task", choices=words, help=f"as --kv-{name}")
    prompt.set_defaults(run=_prompt)


def _add_zoo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    zoo = commands.add_parser("zoo", help="would the gate catch known bugs on this model? (pytest --kv-zoo)")
    zoo.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="bugs or families (default: all)")
    zoo.add_argument("--method", action="append", default=[], metavar="SPEC", help="faults around a method of your own")
    zoo.add_argument("--model", help="embedded model, path or hub id (default: mini)")
    zoo.add_argument("--profile", help="quick, default or full")
    zoo.add_argument("-n", dest="workers", default="0", metavar="N", help="processes (default: this one)")
    zoo.add_argument("--json", metavar="PATH", help="keep the results there; what is in it is not run again")
    zoo.add_argument("--md", metavar="PATH", help="write the table there as Markdown")
    zoo.set_defaults(run=_zoo)


def _add_alarms(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    alarms = commands.add_parser("alarms", help="does any property accuse a correct method?")
    alarms.add_argument("--method", action="append", default=[], metavar="SPEC", help="default: all that are known")
    alarms.add_argument("--seeds", type=int, default=5, help="seeds from 0 up (default 5)")
    alarms.add_argument("--profile", choices=("quick", "default", "full"), default="default")
    alarms.add_argument("-n", dest="workers", type=int, default=1, metavar="N", help="processes (default 1)")
    alarms.add_argument("--md", metavar="PATH", help="write the table there as Markdown")
    alarms.set_defaults(run=_alarms)


def _add_power(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    power = commands.add_parser("power", help="check by simulation that the statistics keep what they promise")
    power.add_argument("--runs", type=int, default=150, help="simulated runs of a method against itself (default 150)")
    power.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    power.add_argument("--jobs", type=int, help="processes (default: one per core); they do not change a number")
    power.add_argument("--model", default="mini", help="whose baselines to draw from (default mini)")
    power.add_argument("--baselines", metavar="PATH", help="a folder of your own, above the shipped ones")
    power.add_argument("--json", metavar="PATH", help="write the figures there")
    power.add_argument("--md", metavar="PATH", help="write the report there as Markdown")
    power.set_defaults(run=_power)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: fine, 1: a regression or a damaged baseline was found, 2: the command could not be run."""
    given = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = given.run
    try:
        return run(given)
    except KvcheckError as error:
        print(f"kvcheck: {error}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:  # kvcheck methods | head
        sys.stderr.close()
        return OK


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        print(line)


def _prompt(given: argparse.Namespace) -> int:
    from kvcheck.engine.prompts import conversation, prompter
    from kvcheck.engine.session import find_task
    from kvcheck.models.loading import encoder_of
    from kvcheck.record import CaseId
    from kvcheck.settings import Settings
    from kvcheck.tasks import find

    settings = Settings(chat=given.chat, history=given.history, data=given.data, compat=given.compat)
    version = find(given.task, given.data).info.version
    case = CaseId(given.task, version, given.mode, given.length, given.seed, given.index + 1)
    task = find_task(case, settings)
    encoder = encoder_of(given.model)
    sample = task.generate(case.seed, given.index, case.length, encoder)
    asking = prompter(task, case, sample, encoder, None, settings)
    for what, text in conversation(sample, asking):
        print(f"--- {what}\n{text}")
    return OK


def _methods(given: argparse.Namespace) -> int:
    from kvcheck.report import catalogue

    if given.pages:
        from kvcheck.report import pages

        print(f"{len(pages.write(given.pages))} pages written to {given.pages}")
    else:
        show(catalogue.methods())
    return OK


def _tasks(given: argparse.Namespace) -> int:
    from kvcheck.report import catalogue

    show(catalogue.tasks())
    return OK


def _report(given: argparse.Namespace) -> int:
    from kvcheck.report import markdown, terminal
    from kvcheck.runfile import read_run

    run = read_run(given.run_file)
    stored = _stored_fp16(run)
    show(markdown.lines(run, stored) if given.md else terminal.lines(run, stored))
    return OK


def _stored_fp16(run: Run) -> dict[str, CaseRecord]:
    """The fp16 records that the run was judged by, as far as they are still there; none for a run of another model."""
    from kvcheck.baseline import ModelId

    model = ModelId(run.header.model_name, run.header.model)
    (store,) = stores()
    cases = {record.case.key: record.case for record in run.cases if record.samples}
    try:
        found = {key: store.get(model, "fp16", case) for key, case in cases.items()}
    except KvcheckError:
        return {}
    return {key: one for key, one in found.items() if one is not None and len(one.samples) >= cases[key].n}


def _compare(given: argparse.Namespace) -> int:
    from kvcheck.compare import compare_runs, regressions
    from kvcheck.report import comparison
    from kvcheck.runfile import read_run

    before, after = read_run(given.before), read_run(given.after)
    rows = compare_runs(before, after)
    show(comparison.lines(before, after, rows))
    found = regressions(rows)
    if given.fail_on_regression and (found or not rows):
        print(f"kvcheck: {len(found)} rows are worse, missing or not comparable", file=sys.stderr)
        return REGRESSION
    return OK


def _baselines(given: argparse.Namespace) -> int:
    from kvcheck.baseline import open_store
    from kvcheck.report.text import columns, plural

    found: list[Store] = [open_store(given.baselines)] if given.baselines else stores()
    if given.action == "list":
        body = [("model", "fingerprint", "method", "cases", "file")]
        for store in found:
            for entry in store.entries():
                model = entry.model
                body.append((model.name, model.fingerprint, entry.method, str(len(entry.cases)), entry.path))
        show(
            columns(body, "<<<><")
            if len(body) > 1
            else ["no baselines; record some: pytest --kv-method=fp16 --kv-record=new"]
        )
    problems = [problem for store in found for problem in store.verify()]
    for path, reason in problems:
        print(f"kvcheck: {path}: {reason}", file=sys.stderr)
    if given.action == "verify" and not problems:
        print(f"{plural(sum(len(store.entries()) for store in found), 'file')}, all readable and whole")
    return REGRESSION if problems else OK


def stores() -> list[Store]:
    """The user's baselines under this folder, and the shipped ones."""
    from kvcheck.baseline import open_store

    return [open_store(rootdir=Path.cwd())]


def _allowances(given: argparse.Namespace) -> int:
    from kvcheck.allowances import Allowances, propose
    from kvcheck.files import write_atomically
    from kvcheck.methods import METHODS
    from kvcheck.paths import bundle
    from kvcheck.report import catalogue
    from kvcheck.runfile import read_run

    run = read_run(given.run_file)
    shipped = Allowances.load(bundle("baselines") / "allowances.toml")
    origins = METHODS.origins()
    reasons = {}
    for method in {record.method for record in run.cases}:
        names = [part.partition(":")[0] for part in method.split("+")]
        said = [catalogue.describe(name, origins.get(name, name)).summary for name in names]
        reasons[method] = shipped.reason(method) or "; then ".join(filter(None, said))
    lines = list(propose(run, reasons))
    if given.out:
        write_atomically(given.out, "\n".join(lines))
    else:
        show(lines)
    return OK


def _power(given: argparse.Namespace) -> int:
    """1 where the figures refute a promise."""
    import os

    from kvcheck import power
    from kvcheck.power import report

    jobs = given.jobs if given.jobs is not None else os.cpu_count() or 1
    plan = power.Plan(given.runs, given.seed, jobs)
    recorded = power.load(given.baselines, given.model)
    tables = power.measure(recorded, plan, _progress)
    show(report.text(tables))
    report.write(recorded, plan, tables, given.json, given.md)
    found = report.broken(tables)
    count = f"{len(found)} promise" + (" of the statistics is" if len(found) == 1 else "s of the statistics are")
    print(f"kvcheck: {count} refuted" if found else "no promise is refuted")
    return REGRESSION if found else OK


def _zoo(given: argparse.Namespace) -> int:
    """0: every bug caught and no correct method accused, 1: not so."""
    import pytest

    arguments = ["--pyargs", "kvcheck.suites.test_zoo", "-q", f"-n{given.workers}", f"--kv-zoo={','.join(given.names)}"]
    arguments += [f"--kv-method={method}" for method in given.method]
    options = {"model": given.model, "profile": given.profile, "json": given.json, "resume": given.json}
    arguments += [f"--kv-{name}={value}" for name, value in {**options, "md": given.md}.items() if value]
    return OK if pytest.main([*arguments, "-p", "no:cacheprovider"]) == pytest.ExitCode.OK else REGRESSION


def _alarms(given: argparse.Namespace) -> int:
    """1 where a property accuses a method."""
    from kvcheck.conformance.alarms import Tried, attempt, correct
    from kvcheck.files import write_atomically
    from kvcheck.report import conformance

    if given.seeds < 1 or given.workers < 1:
        raise KvcheckError("--seeds and -n are numbers from 1 up", "kvcheck alarms --seeds 5 -n 2")
    specs = tuple(given.method) or correct()
    total = len(specs) * given.seeds
    done: list[Tried] = []

    def tick(one: Tried) -> None:
        done.append(one)
        _progress(f"{len(done)} of {total}: {one.method}, seed {one.seed}: {len(one.alarms)} alarms", True)

    found = attempt(specs, range(given.seeds), given.profile, given.workers, tick)
    show(conformance.alarms(found))
    if given.md:
        write_atomically(given.md, "\n".join(conformance.alarms_markdown(found)) + "\n")
    return REGRESSION if any(one.alarms for one in found) else OK


def _progress(text: str, whole: bool = False) -> None:
    """One line that is overwritten; where nobody looks, one line for each part that is whole."""
    if sys.stderr.isatty():
        print(f"\033[2K{text}", end="\n" if whole else "\r", file=sys.stderr, flush=True)
    elif whole:
        print(text, file=sys.stderr, flush=True)


def _doctor(given: argparse.Namespace) -> int:
    from kvcheck import env, paths

    for title, found in (("packages", env.packages()), ("machine", env.machine())):
        print(title)
        show(f"  {name:<18} {value}" for name, value in sorted(found.items()))
    healthy = _torch()
    print("embedded models")
    models = sorted(path.parent for path in paths.bundle("fixtures").glob("*/config.json"))
    show(f"  {_model(folder)}" for folder in models)
    if not models:
        print("  none: this installation lacks its fixtures; pip install --force-reinstall kvcheck")
    print("baselines")
    for store in stores():
        show(f"  {entry.model.name:<18} {entry.method} ({len(entry.cases)} cases)" for entry in store.entries())
    problems = [problem for store in stores() for problem in store.verify()]
    show(f"  {path}: {reason}" for path, reason in problems)
    return OK if healthy and models and not problems else REGRESSION


def _torch() -> bool:
    """Print what torch and transformers say of themselves; are both there?"""
    print("device")
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"  {error}; pip install torch transformers")
        return False
    print(f"  torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        print("  no CUDA device: --kv-device=cpu is used")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        print(f"  cuda:{index} {card.name}, {card.total_memory / 1e9:.0f} GB")
    return True


def _model(folder: Path) -> str:
    """A model with its fingerprint, and whether baselines were recorded with it."""
    from kvcheck.models.fingerprint import fingerprint

    print_of = fingerprint(folder)
    fitting = [entry.method for store in stores() for entry in store.entries() if entry.model.fingerprint == print_of]
    return f"{folder.name:<18} {print_of}, baselines that fit: {', '.join(sorted(set(fitting))) or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
