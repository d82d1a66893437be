"""`kvcheck engine start`: a server in an environment of its own; whatever ends kvcheck ends it, and what it started."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from kvcheck.backends.engines import start
from kvcheck.backends.engines.dialects import DIALECTS, LAUNCHES
from kvcheck.backends.engines.start import EngineEnded, quiet, started
from kvcheck.cli.commands import main
from kvcheck.core.errors import KvcheckError, SpecError

ENGINE = """
import argparse, http.server, os, subprocess, sys, time
from pathlib import Path
given = argparse.ArgumentParser()
for flag in ("--model", "--host", "--port", "--note", "--loading"):
    given.add_argument(flag)
given = given.parse_args()
if given.model is None:
    sys.exit("\\x1b[31mValueError: no model was given")
child = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
grandchild = subprocess.Popen(child)
Path(given.note).write_text(f"{os.getpid()} {grandchild.pid} {given.host} {os.environ.get('OMP_WAIT_POLICY')}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if given.loading else 200)
        self.end_headers()
http.server.ThreadingHTTPServer((given.host, int(given.port)), Handler).serve_forever()
"""
"""An engine that starts a process which does not care for SIGTERM."""
STUB = Path(__file__).with_name("stub_server.py")
WRAPPED = f"""
import runpy, sys
at = sys.argv.index("--host")
assert sys.argv[at + 1] == "127.0.0.1"
del sys.argv[at : at + 2]
runpy.run_path({str(STUB)!r}, run_name="__main__")
"""
SOON = 20.0


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], str]:
    """The python of an environment in which vllm is this text."""

    def make(text: str) -> str:
        package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        for folder in (package, package.parent, package.parent.parent):
            (folder / "__init__.py").write_text("")
        (tmp_path / "site" / "vllm" / "__init__.py").write_text("import sys; print('imported', file=sys.stderr)\n")
        (package / "api_server.py").write_text(text)
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        site = shlex.quote(str(tmp_path / "site"))
        python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not end by SIGTERM is killed soon."""
    monkeypatch.setattr(start, "GRACE", 1.0)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(what: Callable[[], bool], seconds: float = SOON) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return what()


def pids(note: Path) -> list[int]:
    """The engine and what it started."""
    return [int(pid) for pid in note.read_text().split()[:2]]


@pytest.fixture
def command(environment: Callable[[str], str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`kvcheck engine start`, ready, with a parent of its own that says its id first."""
    words = ["engine", "start", "vllm", "--python", environment(ENGINE), "--log", str(tmp_path / "log")]
    words += ["--", "--model", "mini", "--note", str(tmp_path / "note")]
    script = f"import kvcheck.backends.engines.start as s; s.GRACE = 1.0\nfrom kvcheck.cli import main; main({words!r})"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {script!r}])"
    parent += "; print(p.pid, flush=True); p.wait()"
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environ)
    yield process
    process.kill()
    process.communicate()


def ready(command: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The id of kvcheck, the URL, and the line for pytest."""
    assert command.stdout is not None
    pid, first, option = (command.stdout.readline().strip() for _ in range(3))
    assert first.startswith("vllm is ready: http://127.0.0.1:")
    return int(pid), first.rpartition(" ")[2], option


def test_a_stub_in_an_environment_of_its_own_is_started_and_used(environment: Callable[[str], str]) -> None:
    from kvcheck.backends.engines import meeting
    from kvcheck.backends.engines.specs import checked

    with started("vllm", environment(WRAPPED), timeout=60, arguments=["--kind", "vllm"]) as server:
        settings = dict(checked(server.method).params)
        one = meeting.met(settings)
        one.http.close()
        assert (one.running, one.model) == ("vllm 1.2.3", "mini")
        assert "serving mini" in server.last()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_kvcheck_ends_the_engine_and_what_it_started(
    command: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    pid, url, option = ready(command)
    assert shlex.split(option) == [f'--kv-method=server:url="{url}",kind=vllm']
    assert tmp_path.joinpath("note").read_text().split()[2:] == ["127.0.0.1", "None"]
    both = pids(tmp_path / "note")
    assert all(map(alive, both))
    os.kill(pid, number)
    assert until(lambda: not any(map(alive, [pid, *both])))


def test_it_ends_with_the_process_that_started_kvcheck(command: subprocess.Popen[str], tmp_path: Path) -> None:
    pid, _, _ = ready(command)
    both = pids(tmp_path / "note")
    command.kill()
    assert until(lambda: not any(map(alive, [pid, *both])))


def test_one_that_is_never_ready_is_told_and_ended(environment: Callable[[str], str], tmp_path: Path) -> None:
    words = ["--model", "mini", "--note", str(tmp_path / "note"), "--loading", "1"]
    with (
        pytest.raises(KvcheckError, match=r"vllm is not ready after 3 s: /health says 503") as told,
        started("vllm", environment(ENGINE), timeout=3, arguments=words),
    ):
        pass
    assert "--timeout 12 -- --model mini" in told.value.hint
    assert not any(map(alive, pids(tmp_path / "note")))


def test_one_that_dies_at_once_is_told_with_its_last_lines(
    environment: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("what was there before\n")
    assert main(["engine", "start", "vllm", "--python", environment(ENGINE), "--log", str(log)]) == 2
    said = capsys.readouterr().err
    assert "vllm has ended with status 1" in said
    assert r"| \x1b[31mValueError: no model was given" in said
    assert "what was there before" not in said
    assert "-- --model FOLDER" in said
    assert log.read_text().startswith("what was there before\n")


def test_one_that_dies_later_is_told(environment: Callable[[str], str], tmp_path: Path) -> None:
    words = ["--model", "mini", "--note", str(tmp_path / "note")]
    with started("vllm", environment(ENGINE), timeout=60, arguments=words) as server:
        engine, other = pids(tmp_path / "note")
        os.kill(engine, signal.SIGKILL)
        assert until(lambda: server.keeper.poll() is not None)
        with pytest.raises(EngineEnded, match="status 137"):
            server.expect_alive()
        assert not alive(other)


def test_a_port_that_is_taken_is_refused_with_a_free_one(environment: Callable[[str], str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(SpecError, match=f"port {port} cannot be had: Address already in use") as told,
            started("vllm", environment(ENGINE), port=port),
        ):
            pass
    assert "--port" in told.value.hint
    assert f"--port {port} " not in told.value.hint


def test_an_engine_that_is_not_there_is_looked_for_without_importing_it(
    environment: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    python = environment(ENGINE)
    with pytest.raises(SpecError, match=r"sglang is not installed for .*: it has no sglang") as told:
        start._command("sglang", python, [])
    assert told.value.hint == f"{shlex.quote(python)} -m pip install sglang"
    assert start._command("vllm", python, [])[1][:2] == [python, "-m"]
    assert "imported" not in capfd.readouterr().err


def test_a_path_that_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no program is there"):
        start._command("vllm", str(tmp_path / "none"), [])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    with pytest.raises(SpecError, match="no program is there") as told:
        start._command("vllm", str(tmp_path), [])
    assert told.value.hint.endswith(f"--python {tmp_path}/bin/python")
    for program in ("true", "echo"):
        with pytest.raises(SpecError, match=f"{program} is no python: "):
            start._command("vllm", program, [])


def test_the_server_of_llamacpp_is_named_or_beside_what_is_named(tmp_path: Path) -> None:
    for name in ("python", "llama-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    server = str(tmp_path / "llama-server")
    for named in ("python", "llama-server"):
        assert start._command("llamacpp", str(tmp_path / named), ["-m", "F"])[1] == [server, "-m", "F"]
    (tmp_path / "llama-server").unlink()
    with pytest.raises(SpecError, match="there is no llama-server beside"):
        start._command("llamacpp", str(tmp_path / "python"), [])


def test_addresses_kinds_and_times_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine", "start", "vllm", "--python", sys.executable]
    assert main([*words, "--", "--model", "m", "--host=0.0.0.0"]) == 2
    assert "--host=0.0.0.0: kvcheck says itself where a server listens, 127.0.0.1" in capsys.readouterr().err
    assert main(["engine", "start", "vlm", *words[3:]]) == 2
    assert "did you mean vllm?" in capsys.readouterr().err
    with pytest.raises(SpecError, match="70000 is no port"):
        start._port(70000, "", "")


def test_what_is_started_is_a_dialect_and_what_it_keeps_to_itself_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(LAUNCHES) <= set(DIALECTS)
    assert quiet("vllm", ["--enable-prompt-tokens-details"]) == ["VLLM_SERVER_DEV_MODE=1"]
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    assert quiet("vllm", []) == ["--enable-prompt-tokens-details"]
    assert quiet("llamacpp", ["--metrics"]) == []
