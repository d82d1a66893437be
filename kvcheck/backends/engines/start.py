"""A server of an engine, started in an environment that the user names: `kvcheck engine start`, or from Python:

    with started("vllm", "/opt/vllm/bin/python", arguments=["--model", "FOLDER"]) as server:
        print(server.url, server.method)

It listens on this machine's loopback only. Who ends it, and how: keeper.py. Command lines: LAUNCHES in dialects.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvcheck.backends.engines import keeper
from kvcheck.backends.engines.dialects import DIALECTS, LAUNCHES, Launch
from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean

LOOPBACK = "127.0.0.1"
TIMEOUT = 600.0
"""Seconds until a server must be ready: large weights are read, and kernels compiled."""
GRACE = 10.0
"""Seconds that a server may take to end before it is killed."""
PROBE = 60.0
"""Seconds in which a python must say what it has."""
PAUSE, ANSWER = 0.2, 5.0
"""Seconds between two questions whether it is ready, and until one is answered."""
LINES = 15
"""Of a log that are shown."""
_HAS = """
import importlib.util, json, sys
found = [importlib.util.find_spec(name) for name in sys.argv[1:]]
print(json.dumps([name for name, spec in zip(sys.argv[1:], found) if spec is None or spec.origin is None]))
"""


class EngineEnded(KvcheckError):
    """A server that has ended by itself."""


@dataclass
class Started:
    """A server that is ready. keeper: the process that ends it. shown: bytes that the log had before."""

    kind: str
    port: int
    log: Path
    again: str
    keeper: subprocess.Popen[bytes]
    shown: int = 0

    @property
    def url(self) -> str:
        """As specs take it."""
        return f"http://{LOOPBACK}:{self.port}/v1"

    @property
    def method(self) -> str:
        """The value of --kv-method."""
        return f'server:url="{self.url}",kind={self.kind}'

    def expect_alive(self) -> None:
        """Raise EngineEnded, with the last lines of the log, where it has ended."""
        status = self.keeper.poll()
        if status is not None:
            raise EngineEnded(
                f"{self.kind} has ended with status {status}; the last lines of {self.log}:\n{self.last()}",
                f"mend that and start it again: {self.again}",
            )

    def last(self) -> str:
        """The last lines that it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(self.shown, self.log.stat().st_size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-LINES:]) or "  (it said nothing)"

    def close(self) -> None:
        """End it and all that it started; SIGKILL where it takes longer than GRACE seconds."""
        self.keeper.send_signal(signal.SIGTERM)
        try:
            self.keeper.wait(3 * GRACE)
        except subprocess.TimeoutExpired:  # not even SIGKILL ended it: it waits for a device
            self.keeper.kill()
            self.keeper.wait()


@contextmanager
def started(
    kind: str,
    python: str,
    *,
    port: int | None = None,
    log: Path | None = None,
    timeout: float = TIMEOUT,
    arguments: Sequence[str] = (),
) -> Iterator[Started]:
    """A server of this kind that is ready, ended with the block.

    python: that of the engine's environment, or llama-server. port: a free one by default. log: what it says is
    appended there, to a new file by default. timeout: seconds until it must be ready. arguments: the engine's own.
    Raises SpecError for what cannot be started, KvcheckError for what ends early or is not ready in time.
    """
    launch, command = _command(kind, python, arguments)
    again = f"kvcheck engine start {kind} --python {shlex.quote(python)}"
    given = f" -- {shlex.join(arguments) or launch.example}"
    if timeout <= 0:
        raise SpecError(f"{timeout:g} is no time to wait", f"{again} --timeout {TIMEOUT:g}{given}")
    port = _port(port, again, given)
    log = log or Path(tempfile.mkdtemp(prefix="kvcheck-")) / f"{kind}-{port}.log"
    command += [launch.host, LOOPBACK, launch.port, str(port)]  # the last ones count
    folder = os.path.dirname(command[0])
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    try:
        with log.open("ab") as file:
            before = file.tell()
            process = subprocess.Popen(
                [sys.executable, "-I", keeper.__file__, str(os.getpid()), str(GRACE), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise SpecError(f"{log} cannot be written: {error.strerror}", f"{again} --log {kind}.log{given}") from error
    server = Started(kind, port, log, again + given, process, before)
    try:
        _wait(server, launch, timeout, f"{again} --timeout {4 * timeout:g}{given}")
        yield server
    finally:
        server.close()


def quiet(kind: str, arguments: Sequence[str]) -> list[str]:
    """What a server so started keeps to itself that properties need, as what turns it on."""
    given = {word.partition("=")[0] for word in arguments}
    flags = DIALECTS[kind].turn_on.values()
    return [flag for flag in flags if flag not in given and os.environ.get(flag.partition("=")[0]) is None]


def _command(kind: str, python: str, arguments: Sequence[str]) -> tuple[Launch, list[str]]:
    """How it is started but for its address. Raises SpecError."""
    if kind not in LAUNCHES:
        raise SpecError(f"kvcheck starts no {kind!r}", did_you_mean(kind, LAUNCHES))
    if os.name != "posix":
        raise KvcheckError("kvcheck starts engines on Linux and macOS only", "start it yourself, and name its url=")
    launch = LAUNCHES[kind]
    own = [word for word in arguments if word.partition("=")[0] in (launch.host, launch.port)]
    if own:
        raise SpecError(f"{own[0]}: kvcheck says itself where a server listens, {LOOPBACK}", "leave it out; --port N")
    found = shutil.which(python)
    if found is None:
        raise SpecError(f"--python {python}: no program is there", _right(Path(python)))
    path = Path(os.path.abspath(found))  # not resolved: a link says which environment it is
    if launch.program:
        return launch, [str(_program(launch.program, path)), *launch.words, *arguments]
    missing = _missing(path, launch.modules)
    if missing:
        raise SpecError(
            f"{kind} is not installed for {path}: it has no {', '.join(missing)}",
            f"{shlex.quote(str(path))} -m pip install {shlex.quote(launch.pip)}",
        )
    return launch, [str(path), *launch.words, *arguments]


def _program(name: str, path: Path) -> Path:
    """The program that is named, or is beside what is named."""
    if path.name == name:
        return path
    beside = path.with_name(name)
    if os.access(beside, os.X_OK):
        return beside
    raise SpecError(f"there is no {name} beside {path}", f"name it: --python {shutil.which(name) or f'/opt/{name}'}")


def _missing(path: Path, modules: Sequence[str]) -> list[str]:
    """Which of the modules a python does not have; it is asked, and imports none. Raises SpecError for no python."""
    wrong = ""
    try:
        asked = [str(path), "-c", _HAS, *modules]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=PROBE, stdin=subprocess.DEVNULL)
        lines = done.stdout.strip().splitlines()
        found = json.loads(lines[-1]) if lines and not done.returncode else None
        if isinstance(found, list):
            return found
        wrong = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    except ValueError:
        wrong = "it answers as none does"
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    raise SpecError(f"--python {path} is no python: {wrong}", _right(path))


def _right(path: Path) -> str:
    """Which python may have been meant by a folder, or by a program of its environment."""
    near = [one for one in (path / "bin" / "python", path.with_name("python")) if one.exists()]
    return f"name the environment's python: --python {near[0] if near else '/opt/ENVIRONMENT/bin/python'}"


def _port(port: int | None, again: str, given: str) -> int:
    """The port, a free one for None. Raises SpecError for one that is taken or none."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        other = int(free.getsockname()[1])
    if port is None:
        return other
    right = f"{again} --port {other}{given}"
    if not 0 < port < 65536:
        raise SpecError(f"{port} is no port: 1 to 65535", right)
    with socket.socket() as wanted:
        wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            wanted.bind((LOOPBACK, port))
        except OSError as error:
            raise SpecError(f"port {port} cannot be had: {error.strerror}", right) from error
    return port


def _wait(server: Started, launch: Launch, timeout: float, longer: str) -> None:
    """Wait until it is ready. Raises KvcheckError where it ends or the time is over."""
    import httpx

    until = time.monotonic() + timeout
    said = "nobody answers"
    place = server.url.removesuffix("/v1") + launch.ready
    with httpx.Client(timeout=min(ANSWER, timeout), trust_env=False) as client:
        while time.monotonic() < until:
            server.expect_alive()
            try:
                status = client.get(place).status_code
            except httpx.TransportError as error:
                said = f"nobody answers ({type(error).__name__})"
            else:
                if status == httpx.codes.OK:
                    server.expect_alive()  # it is not another one that answers
                    return
                said = f"{launch.ready} says {status}"
            time.sleep(PAUSE)
    raise KvcheckError(
        f"{server.kind} is not ready after {timeout:g} s: {said}; the last lines of {server.log}:\n{server.last()}",
        longer,
    )
