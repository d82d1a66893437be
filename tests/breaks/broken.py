"""Methods that are the full cache but for one thing. `Good` is it; `Raises…` raise, `Gives…` attend wrongly.

Used from outside: `--kv-method=broken.NoAnswer`. Each name says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import stat
import sys
import threading
import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported, MissingBaseline
from kvcheck.plugin.timelimit import TimeLimit

Attend = Callable[[CacheLayer, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Good(Method):
    """The full cache."""

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps everything", stage="compression", frees_memory=False, lossless=Lossless.ALWAYS
    )
    layers: ClassVar[type[CacheLayer]] = CacheLayer

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        return self.layers(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        return (prompt + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        return frozenset(range(prompt))


def method(name: str, **members: Any) -> None:
    """The full cache of this name, with these members of the class."""
    cls = type(name, (Good,), {"__module__": __name__, "__doc__": f"The full cache: {name}.", **members})
    globals()[name] = dataclass(frozen=True)(cls)


def with_layer(name: str, info: MethodInfo = Good.info, **members: Any) -> None:
    """The full cache of this name, with these members of its layers."""
    method(name, layers=type(f"{name}Layer", (CacheLayer,), members), info=info)


def throw(error: BaseException) -> Any:
    raise error


# -- it raises, wherever kvcheck calls it ------------------------------------------------------------------------------


def fails(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("broken here")


IN_THE_METHOD = ("build", "check", "layer", "slots", "protected", "runner", "host_bytes", "kv_bytes")
IN_A_LAYER = ("update", "attend", "compress", "select", "absorb", "write", "read", "step")
for place in IN_THE_METHOD:
    method(f"Raises_{place}", **{place: fails})
for place in IN_A_LAYER:
    with_layer(f"Raises_{place}", **{place: fails})
method("Raises_init", __post_init__=fails)
method("Raises_spec", spec=property(fails))


# -- it raises what is no error, or ends the process -------------------------------------------------------------------


def hang() -> None:
    while True:
        time.sleep(0.01)


def hang_and_swallow() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


def recurse() -> None:
    recurse()


def say_it_is_over() -> None:
    """End the process, having told every pipe that all is well."""
    for handle in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                os.write(handle, b'{"finished": 0}\n')
    os._exit(0)


def fork_and_exit() -> None:
    """Leave a process behind, which says where it is, and end this one."""
    child = os.fork()
    if not child:
        hang()
    Path("left.txt").write_text(str(child))
    os._exit(0)


def fork_in_a_thread() -> None:
    """Fork in a thread that ends at once; the process that it left must come to its own end."""
    children: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            time.sleep(0.3)
            os._exit(0)
        children.append(child)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    _, status = os.waitpid(children[0], 0)
    if status:
        raise RuntimeError(f"what a thread forked ended with {status}")


def in_a_thread(what: Callable[[], Any]) -> None:
    threading.Thread(target=what).start()


WAYS: dict[str, Callable[[], Any]] = {
    "Skips": lambda: pytest.skip("this kernel is not here"),
    "Xfails": lambda: pytest.xfail("a known flaw of mine"),
    "Importorskips": lambda: pytest.importorskip("no_such_kernel_package"),
    "UnittestSkips": lambda: throw(unittest.SkipTest("not on this machine")),
    "ExitsPytest": lambda: pytest.exit("enough for today", returncode=0),
    "Exits0": lambda: sys.exit(0),
    "Exits1": lambda: sys.exit(1),
    "RaisesBase": lambda: throw(BaseException("at the root")),
    "ExitsGenerator": lambda: throw(GeneratorExit("the generator is gone")),
    "IsCancelled": lambda: throw(asyncio.CancelledError("nobody waits")),
    "StopsIteration": lambda: throw(StopIteration("no more blocks")),
    "IsOutOfMemory": lambda: throw(MemoryError("no room for keys")),
    "Recurses": recurse,
    "MissesABaseline": lambda: throw(MissingBaseline("I have no baseline", "none")),
    "IsUnsupported": lambda: throw(MethodUnsupported("I serve no such model", "take another")),
    "SaysTimeIsUp": lambda: throw(TimeLimit("raised by the method")),
    "OsExit0": lambda: os._exit(0),
    "OsExit0WithAWord": say_it_is_over,
    "OsExit1": lambda: os._exit(1),
    "Segfaults": lambda: ctypes.string_at(0),
    "Aborts": os.abort,
    "Terminates": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "Kills": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "Interrupts": lambda: throw(KeyboardInterrupt()),
    "Stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "ForksAndExits": fork_and_exit,
    "ForksInAThread": fork_in_a_thread,
    "Hangs": hang,
    "HangsAndSwallows": hang_and_swallow,
    "ThreadRaises": lambda: in_a_thread(lambda: throw(OSError("a copy got lost"))),
    "ThreadStays": lambda: in_a_thread(hang),
}
for name, way in WAYS.items():
    with_layer(name, compress=lambda self, queries, way=way: way())


# -- what it gives is wrong --------------------------------------------------------------------------------------------


def gives(name: str, change: Callable[[CacheLayer, Any], Any]) -> None:
    """A full cache whose answer (B, q, H, d) is changed."""
    with_layer(name, attend=lambda self, query, scaling=None: change(self, CacheLayer.attend(self, query, scaling)))


def decoding(layer: CacheLayer) -> bool:
    """Whether the layer attends to something behind the prompt."""
    return layer.prompt is not None and layer.seen > layer.prompt


def only_row(row: int, value: float) -> Callable[[CacheLayer, torch.Tensor], torch.Tensor]:
    """Fill one row of the batch."""

    def change(layer: CacheLayer, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[row : row + 1] = value
        return out

    return change


NAN, INFINITE = float("nan"), float("inf")
gives("GivesNone", lambda layer, out: None)
gives("GivesText", lambda layer, out: "an answer")
gives("GivesNumpy", lambda layer, out: out.numpy())
gives("GivesHalf", lambda layer, out: out.half())
gives("GivesInt", lambda layer, out: out.int())
gives("GivesDouble", lambda layer, out: out.double())
gives("GivesHeadsFirst", lambda layer, out: out.transpose(1, 2))
gives("GivesOneHeadLess", lambda layer, out: out[:, :, :-1])
gives("GivesNanInOneLayer", lambda layer, out: out * NAN if layer.index == 2 else out)
gives("GivesInfInOneLayer", lambda layer, out: out + INFINITE if layer.index == 2 else out)
gives("GivesNanInRow1", only_row(1, NAN))
gives("GivesNanWhileDecoding", lambda layer, out: out * NAN if decoding(layer) else out)
gives("GivesZeros", lambda layer, out: torch.zeros_like(out))


def build_counted(self: Good, shape: ModelShape, store_dtype: torch.dtype | None = None) -> Any:
    """A cache whose layers know the how manieth it is."""
    cache = Good.build(self, shape, store_dtype)
    BUILT.append(len(BUILT) + 1)
    for layer in cache.layers:
        layer.number = BUILT[-1]
    return cache


def attend_counted(self: Any, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
    """NaN out of every cache but the first."""
    out = CacheLayer.attend(self, query, scaling)
    return out * NAN if self.number > 1 else out


BUILT: list[int] = []
method(
    "GivesNanFromTheSecondCache",
    build=build_counted,
    layers=type("CountedLayer", (CacheLayer,), {"attend": attend_counted, "number": 0}),
)


# -- it changes what it was given --------------------------------------------------------------------------------------

with_layer("HalvesKeys", compress=lambda self, queries: self.keys.mul_(0.5))
with_layer("DropsInSilence", compress=lambda self, queries: self.keep(self.every_head(torch.arange(0, self.stored, 2))))
READS = MethodInfo(
    summary="reads queries", stage="compression", frees_memory=False, lossless=Lossless.ALWAYS, needs=("queries",)
)
with_layer("ClearsQueries", info=READS, compress=lambda self, queries: queries.zero_())


def judge_all_good(*args: Any, **given: Any) -> tuple[Any, ...]:
    """What a method that wants to pass could put into the judge."""
    import dataclasses

    import kvcheck.judging.budget as place

    return tuple(dataclasses.replace(one, outcome="pass") for one in place.plain(*args, **given))


def swap_code(self: Any, queries: torch.Tensor) -> None:
    """Exchange what the judge does while it stays the same function."""
    import types

    import kvcheck.judging.budget as place

    if not hasattr(place, "plain"):
        judge = place.judge
        place.plain = types.FunctionType(judge.__code__, judge.__globals__, "judge", judge.__defaults__)
        judge.__code__ = judge_all_good.__code__


with_layer("SwapsTheJudge", compress=swap_code)
