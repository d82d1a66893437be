"""Options and `[tool.kvcheck]`: every refusal names the option, the value and what would be right."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.core.front import command, option, spelled
from kvcheck.core.settings import OPTIONS, Settings
from kvcheck.plugin import parse

Run = Callable[..., pytest.RunResult]

REFUSED = [
    ("--kv-method=snapkw", "unknown method 'snapkw'", "did you mean snapkv"),
    ("--kv-method=snapkv:budget", "budget", "budget=VALUE"),
    ("--kv-method=mine.Mine:budget=0", "budget=0 is out of range", "above 0"),
    ("--kv-method=mine.Mine:budgit=0.5", "budgit", "did you mean budget"),
    ("--kv-method=mine.Mime", "mine has no 'Mime'", "did you mean Mine"),
    ("--kv-method=yours.Method", "no module named 'yours'", "PYTHONPATH"),
    ("--kv-tasks=needel", "unknown task 'needel'", "did you mean needle"),
    ("--kv-tasks=ruler/niah_single_9", "unknown task 'ruler/niah_single_9'", "ruler/niah_single_1"),
    ("--kv-modes=multi-turn", "unknown mode 'multi-turn'", "did you mean multi_turn"),
    ("--kv-profile=fast", "unknown value 'fast'", "full"),
    ("--kv-lengths=12,many", "--kv-lengths", "whole number"),
    ("--kv-lengths=8", "--kv-lengths", "from 64"),
    ("--kv-n=0", "--kv-n", "from 1 to"),
    ("--kv-n=2.5", "--kv-n", "whole number"),
    ("--kv-device=cuba", "unknown device 'cuba'", "did you mean cuda"),
    ("--kv-device=gpu", "unknown device 'gpu'", "did you mean cuda?"),
    ("--kv-device=GPU:1", "unknown device 'GPU:1'", "did you mean cuda:1?"),
    ("--kv-budget=bytes=30%", "'bytes=30%' is no limit", "write bytes=0.3"),
    ("--kv-budget=drop=2;bytes=0.3", "cannot read the limits", "separate them by commas: drop=2,bytes=0.3"),
    ("--kv-budget=kl=-1", "kl=-1 is out of range", "kl is nats, from 0 up"),
    ("--kv-dtype=bf16", "unknown value 'bf16'", "did you mean bfloat16"),
    ("--kv-tasks=KV", "unknown task 'KV'", "did you mean kv?"),
    ("--kv-tasks=multi_turn", "unknown task 'multi_turn'", "that is a mode: -m multi_turn"),
    ("--kv-seed=1e30", "--kv-seed: out of range: 1e30", "a whole number from 0 to"),
    ("--kv-method=snapkv,kivi:bits=4", "one method at a time", "--kv-method=snapkv --kv-method=kivi:bits=4"),
    ("--kv-method=mine.py:Own", "no class is written 'mine.py:Own'", "with a dot: mine.Own"),
    ("--kv-method=SnapKV", "unknown method 'SnapKV'", "did you mean snapkv?"),
    ("--kv-method=snapkv+", "nothing stands behind the +", "name a second method"),
    ("--kv-budget=2", "'2' does not say what is limited", "write drop=2"),
    ("--kv-budget=bytes:0.3", "'bytes:0.3' does not say what is limited", "write bytes=0.3"),
    ("--kv-resume=last", "--kv-resume: there is no earlier run to resume here", "without --kv-resume"),
    ("--kv-tasks=string_retrieval", "unknown task 'string_retrieval'", "that is a capability: -m string_retrieval"),
    ("--kv-rope=yarm:factor=4", "--kv-rope: unknown RoPE 'yarm:factor=4'", "did you mean yarn"),
    ("--kv-rope=yarn:fator=4", "--kv-rope: RoPE 'yarn:fator=4': unknown key 'fator'", "did you mean factor"),
    ("--kv-rope=yarn:factor=much", "factor='much' is not a number", "yarn:factor=4"),
    ("--kv-attention=flsh", "unknown value 'flsh'", "did you mean flash"),
    ("--kv-trust-remote-code=own/model", "own/model is not the model of this session", "--kv-trust-remote-code=mini"),
    ("--kv-dtype=fp17", "--kv-dtype", "float16"),
    ("--kv-against=fp61", "--kv-against", "did you mean fp16"),
    ("--kv-record=chnaged", "--kv-record", "did you mean changed"),
    ("--kv-budget=dorp=2", "dorp", "did you mean drop"),
    ("--kv-budget=drop=-1", "--kv-budget", "0 to 100"),
    ("--kv-budget=bytes=0", "--kv-budget", "above 0"),
    ("--kv-budget=drop", "--kv-budget", "write drop=1"),
    ("--kv-alpha=1.5", "--kv-alpha", "0.05"),
    ("--kv-timeout=soon", "--kv-timeout", "seconds per case"),
    ("--kv-query-aware=maybe", "--kv-query-aware", "mode"),
    ("--kv-resume=nowhere.json", "nowhere.json", "without --kv-resume"),
]


METHOD = """
from dataclasses import dataclass
from kvcheck.core.errors import SpecError
from kvcheck.methods.fp16 import Fp16

@dataclass(frozen=True)
class Mine(Fp16):
    budget: float = 0.5

    def __post_init__(self):
        if self.budget <= 0:
            raise SpecError(f"budget={self.budget:g} is out of range", "above 0")
"""


@pytest.mark.parametrize(("option", "wrong", "right"), REFUSED, ids=[option for option, _, _ in REFUSED])
def test_a_bad_value_is_refused_before_any_test_with_what_would_be_right(
    repo: pytest.Pytester, run: Run, option: str, wrong: str, right: str
) -> None:
    repo.makepyfile(mine=METHOD)
    repo.syspathinsert()
    given = () if option.startswith("--kv-method") else ("--kv-method=snapkv",)
    result = run(*given, option, small=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.errlines + result.outlines
    message = "\n".join(text)
    assert wrong in message
    assert right in message
    assert "Traceback" not in message


def test_an_unknown_model_is_refused_unless_another_engine_may_know_it(run: Run, repo: pytest.Pytester) -> None:
    assert run("--kv-method=fp16", "--kv-record=new", "--kv-model=minni").ret == 0
    (repo.path / "conftest.py").unlink()
    result = run("--kv-method=fp16", "--kv-model=~no-such-user")
    result.stderr.fnmatch_lines(["*there is no folder ~no-such-user*"])
    result = run("--kv-method=fp16", "--kv-model=minni")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown model 'minni'*", "*hub id*"])


def test_a_bad_value_is_refused_under_xdist_too(run: Run) -> None:
    result = run("--kv-method=snapkw", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*did you mean snapkv?*"])


def test_the_settings_come_from_pyproject_too(repo: pytest.Pytester, run: Run, dist: tuple[str, ...]) -> None:
    repo.makepyprojecttoml('[tool.kvcheck]\nmethods = ["fp16"]\ntasks = ["kv"]\nlengths = [512]\nn = 4\nrecord = "new"')
    result = run("-v", *dist, small=False)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*kv-multi_turn-512-fp16*", "*fp16 on fake: 2 cases*"])


def test_the_command_line_goes_before_pyproject(repo: pytest.Pytester, run: Run) -> None:
    repo.makepyprojecttoml('[tool.kvcheck]\nmethod = "fp16"\nlengths = [1024]\ntasks = ["kv"]')
    result = run("--collect-only", "-q", "--kv-lengths=512", small=False)
    assert "kv-multi_turn-512-fp16" in result.stdout.str()
    assert "1024" not in result.stdout.str()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('metod = "snapkv"', "unknown key 'metod' in [[]tool.kvcheck]*"),
        ("lengths = 'many'", "*[[]tool.kvcheck] lengths*"),
        ("n = true", "*[[]tool.kvcheck] n*"),
        ("strict = 1", "*expected true or false*"),
        ("[tool.kvcheck.budget]\ndorp = 2", "*did you mean drop*"),
    ],
)
def test_a_bad_key_or_value_in_pyproject_is_refused_by_name(
    repo: pytest.Pytester, run: Run, table: str, message: str
) -> None:
    repo.makepyprojecttoml(f"[tool.kvcheck]\n{table}")
    result = run("--kv-method=fp16", small=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message.lstrip('*')}"])


@pytest.mark.parametrize("more", [(), ("--collect-only",)], ids=["run", "collect only"])
def test_suites_without_a_method_are_a_usage_error_that_says_what_to_type(
    repo: pytest.Pytester, dist: tuple[str, ...], more: tuple[str, ...]
) -> None:
    result = repo.runpytest("--pyargs", "kvcheck.suites.test_needle", *dist, *more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    typed = "pytest --pyargs kvcheck.suites.test_needle --kv-method=snapkv"
    result.stderr.fnmatch_lines(["*kvcheck: no method to test", f"*: {typed}"])


def test_options_without_a_method_are_an_error_not_a_green_run(repo: pytest.Pytester) -> None:
    result = repo.runpytest("--pyargs", "kvcheck.suites.test_needle", "--kv-tasks=needle")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no method to test: --kv-tasks alone measures nothing"])


def test_tests_that_take_no_case_run_beside_deselected_ones_without_a_method(
    repo: pytest.Pytester, dist: tuple[str, ...]
) -> None:
    own = "@pytest.mark.parametrize('x', [1], ids=['no-method'])\ndef test_something_else(x): pass"
    repo.makepyfile(f"import pytest\n{own}\ndef test_a_case(kv_case): kv_case.gate()")
    repo.runpytest("-k", "something_else", *dist).assert_outcomes(passed=1, deselected=0 if "2" in dist else 1)


def test_a_session_without_a_test_that_takes_a_case_is_told_the_command(repo: pytest.Pytester) -> None:
    repo.makepyfile("def test_something_else(): pass")
    result = repo.runpytest("--kv-method=snapkv", "--kv-tasks=needle,kv", "--kv-strict")
    result.assert_outcomes(passed=1, failed=1)
    command = "pytest --pyargs kvcheck.suites --kv-method=snapkv --kv-tasks=needle,kv --kv-strict"
    result.stdout.fnmatch_lines([f"kvcheck: no test here takes a case, nothing was measured; type: {command}"])
    told = repo.runpytest("--pyargs", "kvcheck.suites.test_needle", "--kv-method=snapkv", "-k", "nothing")
    told.stdout.no_fnmatch_line("*no test here takes a case*")


def test_recording_is_refused_in_ci(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = run("--kv-method=fp16", "--kv-record=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kv-record-in-ci*"])
    assert run("--kv-method=fp16", "--kv-record=new", "--kv-record-in-ci").ret == 0


def test_the_name_of_a_family_stands_for_all_of_its_tasks() -> None:
    chosen = parse.settings({"tasks": "kv,ruler"}, {}).tasks
    assert chosen[0] == "kv"
    assert len(chosen) == 14
    assert all(name.startswith("ruler/") for name in chosen[1:])


GIVEN = {
    "prefill_cache_size": "3",
    "methods": "snapkv",
    "profile": "quick",
    "lengths": "512",
    "tasks": "kv",
    "modes": "single",
    "n": "3",
    "device": "cpu",
    "dtype": "float32",
    "query_aware": "yes",
    "seed": "7",
    "record": "new",
    "against": "fp16",
    "budget": "drop=3",
    "alpha": "0.01",
    "timeout": "5",
    "text": __file__,
    "chat": "no",
    "think": "64",
    "history": "own",
    "rope": "yarn:factor=4",
    "attention": "math",
    "trust_remote_code": "mini",
}
"""A value for every option that does not take just any text, other than its default."""


def test_every_option_is_declared_once_and_is_a_setting() -> None:
    assert list(OPTIONS) == [item.name for item in dataclasses.fields(Settings)]
    flags = [one.flag for one in OPTIONS.values()]
    assert len(set(flags)) == len(flags)
    assert all(one.help for one in OPTIONS.values())


def test_every_option_is_in_the_help_of_pytest(repo: pytest.Pytester) -> None:
    text = repo.runpytest("--help").stdout.str()
    for one in OPTIONS.values():
        shown = re.findall(rf"^  {one.flag}(?:=(\S+))?$|^  {one.flag}(?:=(\S+))?  +\S", text, re.MULTILINE)
        assert len(shown) == 1, one.flag
        assert "".join(shown[0]) == one.metavar


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_its_row_in_the_documentation(name: str) -> None:
    one = OPTIONS[name]
    flag = f"{one.flag}={one.metavar}" if one.metavar else one.flag
    key = f"{name}, {one.also}" if one.also else name
    row = f"| `{flag}` | `{key}` | {one.help} |".replace("hub|PATH", "hub\\|PATH")
    page = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
    assert row in page.read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_taken_from_pyproject_as_from_the_command_line(tmp_path: Path, name: str) -> None:
    one = OPTIONS[name]
    value = GIVEN.get(name, "some") if one.metavar else True
    written = "true" if value is True else f'"{value}"'
    for key in filter(None, (name, name.replace("_", "-"), one.also)):
        (tmp_path / "pyproject.toml").write_text(f"[tool.kvcheck]\n{key} = {written}\n", "utf-8")
        found = parse.settings(parse.table(tmp_path / "pyproject.toml"), {})
        assert found == parse.settings({name: [value] if one.repeat else value}, {})
        assert getattr(found, name) != getattr(Settings(), name)


@pytest.mark.parametrize("name", [name for name, one in OPTIONS.items() if one.metavar])
def test_a_refusal_carries_the_option_that_it_is_about(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse.settings({name: ""}, {name: "where it stands"})
    assert caught.value.option == name
    assert caught.value.message.startswith("where it stands: ")


def test_messages_spell_an_option_as_the_front_end_that_runs() -> None:
    assert option("lengths", 512) == "--kv-lengths=512"
    with spelled(lambda name, value: f"{name} of {value}"):
        assert option("lengths", 512) == "lengths of 512"
        assert command("fp16", record="new") == "pytest --kv-method=fp16 --kv-record=new"
    assert option("record_in_ci") == "--kv-record-in-ci"
    with pytest.raises(KeyError):
        option("length")
