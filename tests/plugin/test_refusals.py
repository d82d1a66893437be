"""What cannot be measured is refused before the first case, once, and by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcheck.methods import canonical

FAKE = Path(__file__).with_name("fake_engine.py")

Run = Callable[..., pytest.RunResult]

CLASSES = """
import abc
from dataclasses import dataclass
from typing import ClassVar
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.kv_cache import CacheLayer

INFO = MethodInfo(summary="mine", stage="compression")

@dataclass(frozen=True)
class Right(Method):
    info: ClassVar[MethodInfo] = INFO
    def layer(self, shape, index):
        return CacheLayer(shape, index, self)

@dataclass(frozen=True)
class Silent(Method):
    def layer(self, shape, index):
        return CacheLayer(shape, index, self)

@dataclass(frozen=True)
class Layerless(Method):
    info: ClassVar[MethodInfo] = INFO

@dataclass(frozen=True)
class Hosted(Right):
    def host(self, loaded): ...

@dataclass(frozen=True)
class Abstract(Right, abc.ABC):
    @abc.abstractmethod
    def score(self): ...

class Bare(Right):
    tokens: int = 4

@dataclass(frozen=True)
class Stageless(Right):
    info: ClassVar[MethodInfo] = MethodInfo(summary="mine", stage="compresion")

@dataclass(frozen=True)
class Raises(Right):
    def __post_init__(self):
        raise RuntimeError("no kernel for this machine")

@dataclass(frozen=True)
class Skips(Right):
    def __post_init__(self):
        import pytest
        pytest.skip("no kernel for this machine")

@dataclass(frozen=True)
class Leaves(Right):
    def __post_init__(self):
        raise SystemExit(0)
"""
OWN = """
@dataclass(frozen=True)
class Own(Right):
    budget: float = 0.5
    window: int = 3
"""
BAD = [
    ("Silent", "it needs a class attribute `info`", "info: ClassVar[[]MethodInfo] = MethodInfo(*"),
    ("Layerless", "does not define layer(shape, index)", "write def layer(self, shape, index)*"),
    ("Hosted", "host(loaded), which no run calls: it is runner(loaded) now", "rename it"),
    ("Abstract", "is abstract: it lacks score", "name a class that defines them"),
    ("Bare", "tokens cannot be given as a parameter", "write @dataclass(frozen=True) above class Bare"),
    ("Stageless", "unknown stage 'compresion'", "did you mean compression*"),
    ("Raises", "cannot be built: RuntimeError: no kernel for this machine (mine.py, line *)", "mend its __init__*"),
    ("Skips", "cannot be built: Skipped: no kernel for this machine*", "mend its __init__*"),
    ("Leaves", "cannot be built: SystemExit: 0*", "mend its __init__*"),
]


def refused(result: pytest.RunResult) -> str:
    """What a session says that is refused before any test; it has no traceback."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "\n".join(result.errlines)
    assert "passed" not in result.stdout.str()
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said + result.stdout.str()
    return said


def test_all_classes_that_cannot_be_methods_are_refused_by_name_at_once(repo: pytest.Pytester, run: Run) -> None:
    repo.makepyfile(mine=CLASSES)
    result = run("--kv-method=mine.Right", *(f"--kv-method=mine.{name}" for name, _, _ in BAD))
    assert "mine.Right" not in refused(result)
    for name, wrong, right in BAD:
        result.stderr.fnmatch_lines([f"*--kv-method=mine.{name}: *{wrong}*", f"*{right}*"])


def test_all_unknown_names_are_listed_at_once(run: Run) -> None:
    said = refused(run("--kv-method=snapkw", "--kv-method=kivvi:bits=4"))
    assert "did you mean snapkv?" in said
    assert "did you mean kivi or kvzip?" in said


MODULES = {
    "leaves": ("import sys; sys.exit()", "importing leaves failed: SystemExit"),
    "skips": (
        "import pytest; pytest.skip('no GPU', allow_module_level=True)",
        "importing skips failed: Skipped: no GPU",
    ),
    "wants": ("import pytest; pytest.importorskip('flash_attn')", "importing wants failed: Skipped"),
    "stops": ("raise GeneratorExit", "importing stops failed: GeneratorExit"),
    "lacks": ("import flash_attn", "lacks needs 'flash_attn', which is not installed"),
    "slips": ("def f(:", "importing slips failed: SyntaxError"),
}


@pytest.mark.parametrize("params", ["", ":tokens=4"], ids=["plain", "with parameters"])
def test_modules_that_cannot_be_imported_are_refused_not_skipped(repo: pytest.Pytester, run: Run, params: str) -> None:
    repo.makepyfile(**{name: code for name, (code, _) in MODULES.items()})
    said = refused(run(*(f"--kv-method={name}.Own{params}" for name in MODULES)))
    for _, wrong in MODULES.values():
        assert wrong in said


PAIRS = {
    "kivi+snapkv": "kivi cannot come first",
    "snapkv+snapkv": "snapkv cannot come second",
    "h2o+kivi": "h2o cannot come first",
    "snapkv+transformers.dynamic": "transformers.dynamic cannot be combined",
    "snapkv+kivi+kivi": "kivi cannot come first",
}


def test_methods_that_do_not_fit_together_are_refused(run: Run) -> None:
    result = run(*(f"--kv-method={pair}" for pair in PAIRS))
    refused(result)
    for pair, wrong in PAIRS.items():
        result.stderr.fnmatch_lines([f"*--kv-method={pair}: *{wrong}*"])


@pytest.mark.parametrize("dist", [(), ("-n", "2")], ids=["no xdist", "-n 2"])
def test_the_working_directory_is_importable_and_defaults_spelled_out_make_no_other_method(
    repo: pytest.Pytester, run: Run, dist: tuple[str, ...]
) -> None:
    repo.makepyfile(mine="def make(model, budget=0.5, window=3): ...")
    same = ("mine.make", "mine.make:window=3", "mine.make: window = 3", "mine.make:window=3, budget=0.5")
    result = run("--kv-method=fp16", *(f"--kv-method={one}" for one in same), "--kv-record=new", *dist)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["mine.make on fake: 3 cases*"])
    assert len(list((repo.path / "stored" / "fake").glob("mine.make*.txt"))) == 1
    ran = (repo.path / "ran.txt").read_text().splitlines()
    assert sum(line.endswith("|mine.make") for line in ran) == 3
    assert len(ran) == 6


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("snapkv: budget = 0.5", "snapkv"),
        ("kivi:bits=2", "kivi"),
        ("kivi:residual=128,bits=4", "kivi:bits=4"),
        ("snapkv:budget=0.5+kivi:bits=4", "snapkv+kivi:bits=4"),
        ("look_m:text_prior=false", "look_m:text_prior=false"),
        ("transformers.static:room=1024", "transformers.static"),
        ("spelled.Own:window=3", "spelled.Own"),
        ("spelled.Own:window=4,budget=1", "spelled.Own:budget=1.0,window=4"),
        ("spelled.make:window=64", "spelled.make"),
        ("builtins.dict:size=1", "builtins.dict:size=1"),
    ],
)
def test_the_one_spec_of_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str) -> None:
    (tmp_path / "spelled.py").write_text(f"{CLASSES}{OWN}\ndef make(model, window=64): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spelled", raising=False)
    assert str(canonical(typed)) == meant


NO_MODEL = """
import kvcheck.core.errors

def pytest_kvcheck_open(settings):
    with open("opened.txt", "a") as file:
        file.write("x")
    raise {error}
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "kvcheck.core.errors.SpecError('device cuda is not there', '--kv-device=cpu')",
            "cuda is not there\n  --kv-device=cpu",
        ),
        ("OSError('the weights end early')", "OSError: the weights end early"),
    ],
    ids=["our error", "any error"],
)
def test_a_model_that_cannot_be_opened_is_said_once_for_the_session(
    repo: pytest.Pytester, run: Run, dist: tuple[str, ...], error: str, said: str
) -> None:
    repo.makeconftest(NO_MODEL.format(error=error))
    result = run("--kv-method=fp16", "--kv-record=new", *dist)
    assert said in refused(result)
    assert (result.stdout.str() + result.stderr.str()).count("cannot open") == 1
    assert len((repo.path / "opened.txt").read_text()) <= 2  # workers


@pytest.mark.parametrize("narrow", ["--kv-lengths=512", "--kv-tasks=kv", "--kv-record=new"])
def test_properties_that_are_asked_for_by_name_are_there_however_narrow_the_run(
    repo: pytest.Pytester, narrow: str
) -> None:
    result = repo.runpytest(
        "--pyargs", "kvcheck.suites", "--kv-method=snapkv", narrow, "-m", "conformance", "--collect-only", "-q"
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_conformance*-snapkv[]]"])
    none = repo.runpytest(
        "--pyargs", "kvcheck.suites", "--kv-method=snapkv", narrow, "-m", "not conformance", "--collect-only", "-q"
    )
    none.stdout.no_fnmatch_line("*test_conformance*")


UNFED = """
from kvcheck.core.errors import MethodsUnfed
FakeSession.expect_fed = lambda self: throw(MethodsUnfed("cannot.Be cannot be fed 8 tokens"))
"""


def test_a_method_from_elsewhere_that_cannot_be_fed_ends_the_run_in_one_error(repo: pytest.Pytester, run: Run) -> None:
    repo.makeconftest(FAKE.read_text("utf-8") + UNFED)
    repo.makepyfile(
        cannot="from transformers.cache_utils import DynamicLayer\n"
        "class Be(DynamicLayer):\n    def update(self, *args, **kwargs):\n        return args.nope\n"
    )
    result = run("--kv-method=cannot.Be")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kvcheck: cannot.Be cannot be fed 8 tokens"])
    assert not (repo.path / "ran.txt").exists()
