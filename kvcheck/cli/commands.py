"""The command line `kvcheck`: lists, compares and reports on files, without torch; measures and records with it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import kvcheck
from kvcheck.cli import baselines, checks, engine, history, new_method, options, report, speed, sweep
from kvcheck.cli.baselines import own_store
from kvcheck.cli.checks import ERROR, OK, REGRESSION, coloured, complain, show, width
from kvcheck.core import env, front, kept, threads
from kvcheck.core.errors import KvcheckError
from kvcheck.core.registry import importable
from kvcheck.models import names

HEAVY = ("false-positives", "prompt", "speed", "sweep")
"""Commands that run torch in this process."""
COMPARE = ("budget", "alpha", "strict")
"""Options of `kvcheck compare` that are pytest's."""
RENAMED = {"alarms": "false-positives"}
"""What commands were called before, and are called now."""


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="kvcheck", description="Does a KV cache method still work?")
    top.add_argument("--version", action="version", version=f"kvcheck {kvcheck.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    methods = commands.add_parser("methods", help="list the methods that --kv-method knows")
    methods.add_argument("--pages", type=Path, metavar="FOLDER", help="write a page of documentation per method there")
    methods.set_defaults(run=_methods)
    new_method.add(commands)
    commands.add_parser("engines", help="list the engines that --kv-method knows: version, settings").set_defaults(
        run=_engines
    )
    engine.add(commands)
    commands.add_parser("tasks", help="list the tasks with their capability, modes and lengths").set_defaults(
        run=_tasks
    )

    compare = commands.add_parser(
        "compare", help="judge a run by another one: a method now and before, or a method against another one"
    )
    compare.add_argument("before", type=Path, metavar="A", help="run file of before, or of the other method")
    compare.add_argument("after", type=Path, metavar="B", help="run file of now, which is judged")
    compare.add_argument(
        "--fail-on-regression", action="store_true", help="exit with 1 where B fails or was not compared"
    )
    options.add(compare, *COMPARE)
    compare.set_defaults(run=_compare, spell=options.spelling(COMPARE))

    commands.add_parser("doctor", help="what is installed, which device, which baselines fit").set_defaults(run=_doctor)

    report.add(commands)
    history.add(commands)
    baselines.add(commands)
    checks.add(commands)
    speed.add(commands)
    sweep.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: fine, 1: a regression or a damaged baseline was found, 2: the command could not be run.

    `baselines record` gives what pytest exits with.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in RENAMED:
        now = RENAMED[words[0]]
        complain(
            KvcheckError(
                f"`kvcheck {words[0]}` is called `kvcheck {now}` now", shlex.join(["kvcheck", now, *words[1:]])
            )
        )
        return ERROR
    words, own = engine.own_arguments(words)
    given = parser().parse_args(words, argparse.Namespace(own=own))
    run: Callable[[argparse.Namespace], int] = given.run
    importable(Path.cwd())
    if given.command != engine.NAME:  # how threads of an engine wait is not kvcheck's to say
        threads.wait_passively()
    try:
        if given.command in HEAVY:
            env.expect_versions()
        with front.spelled(getattr(given, "spell", front.for_pytest)):
            return run(given)
    except KvcheckError as error:
        complain(error)
        return ERROR
    except BrokenPipeError:  # kvcheck methods | head
        sys.stderr.close()
        return OK


def _methods(given: argparse.Namespace) -> int:
    from kvcheck.report import catalogue

    if given.pages:
        from kvcheck.report import pages

        show([f"{len(pages.write(given.pages))} pages written to {given.pages}"])
    else:
        show(catalogue.methods())
    return OK


def _engines(given: argparse.Namespace) -> int:
    from kvcheck.report import catalogue

    show(catalogue.engines())
    return OK


def _tasks(given: argparse.Namespace) -> int:
    from kvcheck.report import catalogue

    show(catalogue.tasks())
    return OK


def _compare(given: argparse.Namespace) -> int:
    from kvcheck.cli.old_runs import in_one_form
    from kvcheck.judging.compare import compare_runs
    from kvcheck.report import comparison
    from kvcheck.store.run_file import read_run

    settings = options.check(vars(given), COMPARE)
    before, after = in_one_form(read_run(given.before), read_run(given.after))
    found = compare_runs(before, after, settings.budget, settings.alpha)
    coloured(comparison.lines(before, after, found, width()))
    if (given.fail_on_regression or settings.strict) and found.fails(settings.strict):
        complain("the second run fails" if found.fails() else "the second run is inconclusive")
        return REGRESSION
    return OK


def _doctor(given: argparse.Namespace) -> int:
    from kvcheck.core import paths

    for title, found in (("packages", env.packages()), ("machine", env.machine())):
        print(title)
        show(f"  {name:<18} {value}" for name, value in sorted(found.items()))
    print("versions")
    show(f"  {env.tried(name)}" for name in env.SUPPORTED)
    healthy = not any(map(env.refused, env.SUPPORTED)) and _torch()
    print("embedded models")
    models = sorted(path.parent for path in paths.bundle("fixtures").glob("*/config.json"))
    show(f"  {_model(folder)}" for folder in models)
    if not models:
        print("  none: this installation lacks its fixtures; pip install --force-reinstall kvcheck")
    print("pretrained models")
    show(f"  {name:<18} {_installed(name)}" for name in names.PACKAGED)
    print("baselines")
    store = own_store()
    show(f"  {entry.model.name:<18} {entry.method} ({len(entry.cases)} cases)" for entry in store.entries())
    print("prefills kept from run to run")
    show([f"  {_prefills()}"])
    problems = store.verify()
    show(f"  {path}: {reason}" for path, reason in problems)
    return OK if healthy and models and not problems else REGRESSION


def _installed(name: str) -> str:
    """Where a model of a package lies, or the command that installs it."""
    try:
        return str(names.find(name).gguf)
    except KvcheckError as error:
        return f"{error.message}; {error.hint}"


def _prefills() -> str:
    """Where, as the project here has it. Raises SpecError for a table that pytest would refuse."""
    from kvcheck.plugin import opening, parse

    raw = parse.table(Path.cwd() / "pyproject.toml")
    asked = {name: value for name, value in raw.items() if name.startswith("prefill_cache")}
    found = opening.in_full(parse.settings(asked, {name: f"{parse.TABLE} {name}" for name in asked}))
    if found.prefill_cache is None:
        return f"nowhere; {front.option('prefill_cache', 'PATH')} keeps them"
    return kept.said(found.prefill_cache, found.prefill_cache_size)


def _torch() -> bool:
    """Print what torch and transformers say of themselves, and how threads work; are both there?"""
    print("device")
    try:
        import torch
        import transformers

        from kvcheck.models import share_threads
    except ImportError as error:
        show([f"  {error}; pip install torch transformers"])
        return False
    print(f"  torch {torch.__version__}, transformers {transformers.__version__}")
    share_threads()
    print(f"  {torch.get_num_threads()} threads on {threads.cores()} cores, waiting: {threads.policy()}")
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
    fitting = [entry.method for entry in own_store().entries() if entry.model.fingerprint == print_of]
    return f"{folder.name:<18} {print_of}, baselines that fit: {', '.join(sorted(set(fitting))) or 'none'}"
