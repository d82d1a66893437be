"""What there is to choose from: methods, engines and tasks as lines."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from kvcheck.core.errors import SpecError
from kvcheck.core.front import command, option
from kvcheck.core.registry import load_attribute
from kvcheck.core.spec import Spec
from kvcheck.report.table import Table
from kvcheck.report.text import WIDTH, wrap

if TYPE_CHECKING:
    from kvcheck.backends.engines.base import EngineInfo, Key


@dataclass(frozen=True)
class Described:
    """A method as its class describes it. parameters: name -> default, as text."""

    name: str
    origin: str
    stage: str = ""
    summary: str = ""
    paper: str = ""
    parameters: tuple[tuple[str, str], ...] = ()


def describe(name: str, origin: str) -> Described:
    """Import what "module:ATTRIBUTE" names. A method that cannot be imported is named and not described."""
    from kvcheck.cache.method import MethodInfo

    module, _, attribute = origin.partition(":")
    try:
        kind = load_attribute(module, attribute)
    except SpecError:
        return Described(name, origin)
    info = getattr(kind, "info", None)
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    parameters = tuple(
        (each.name, repr(each.default).strip("'\"")) for each in fields if each.default is not dataclasses.MISSING
    )
    if not isinstance(info, MethodInfo):  # a press or a function of another package
        return Described(name, origin, "", (inspect.getdoc(kind) or "").partition("\n")[0], "", parameters)
    return Described(name, origin, str(info.stage), info.summary, info.paper, parameters)


def methods() -> Iterator[str]:
    """Every registered method: name, stage, measured bytes, what it does, parameters with their defaults."""
    from kvcheck.methods import METHODS
    from kvcheck.methods.adapters import NAMED
    from kvcheck.report.recorded import MODELS, shown

    yield f"{'method':<20} {'stage':<12} {'KV bytes':<10} what it does"
    for name, origin in METHODS.origins().items():
        found = describe(name, origin)
        one = shown(name)
        head = f"{name:<20} {found.stage:<12} {one.bytes_text if one else '':<10} {found.summary or found.origin}"
        yield from wrap(head + (f" ({found.paper})" if found.paper else ""), " " * 44)
        if found.parameters:
            yield from wrapped_parameters(found, " " * 4)
        if one and one.spec != name:
            yield f"    recorded as {one.spec}"
        far = [f"{real.kl_text} on {model}" for model in MODELS if (real := shown(name, model)) and real.kl_text]
        if far:
            yield f"    KL from fp16: {', '.join(far)}"
    yield ""
    yield "KV bytes: share of fp16's on the embedded model, at these parameters unless others are named"
    yield "KL from fp16: in nats, mean over the recorded cases of each model"
    yield f"{command('NAME')}, or {option('methods')}=NAME:key=value,key=value"
    yield f"two at once, the second quantizes what the first keeps: {option('methods')}=snapkv+kivi:bits=4"
    yield f"your own class, cache, function or press: {option('methods')}=package.module.Class:key=value"
    yield f"a press of kvpress: {option('methods')}=kvpress.SnapKVPress:compression_ratio=0.5"
    yield from wrap(f"a cache of transformers: {', '.join(NAMED)}", " " * 25)


def wrapped_parameters(found: Described, indent: str = "") -> Iterator[str]:
    """The spec with all parameters at their defaults, folded at commas."""
    line = f"{indent}{found.name}:"
    for at, (key, value) in enumerate(found.parameters):
        piece = f"{key}={value}" + ("," if at + 1 < len(found.parameters) else "")
        if len(line) + len(piece) > WIDTH:
            yield line
            line = " " * (len(indent) + len(found.name) + 1)
        line += piece
    yield line


def tasks() -> Iterator[str]:
    """Every registered task by capability."""
    from kvcheck.core.record import CAPABILITIES
    from kvcheck.tasks import TASKS

    infos = [TASKS.get(name).info for name in TASKS.names()]
    order = {name: at for at, name in enumerate(CAPABILITIES)}
    infos.sort(key=lambda info: (order.get(info.capability, len(order)), info.name))
    body = []
    for info in infos:
        modes = " ".join(info.modes)
        lengths = f"{min(info.lengths)}-{max(info.lengths)}"
        body.append((info.name, str(info.version), info.capability, f"{info.chance:.2f}", modes, lengths))
    yield from Table(("task", "v", "capability", "chance", "modes", "lengths"), "<><><<", body).text()
    yield ""
    for info in infos:
        first = info.doc.strip().partition("\n")[0]
        yield from wrap(f"{info.name:<22} {first}", " " * 23)


def engines() -> Iterator[str]:
    """Every engine: what is installed of it, what it can, and its settings; those of the KV cache by themselves."""
    from kvcheck.backends.engines.specs import ENGINES, full, missing, too_old

    for name in ENGINES.names():
        info = ENGINES.get(name)
        installed = info.version and not missing(info) and not too_old(info)
        yield f"{name:<12} {info.version if installed else f'not installed: {info.pip}'}"
        yield from wrap(f"    {info.summary}; {', '.join(_cans(info))}", "      ")
        for what, cache in (("KV cache", True), ("other settings", False)):
            keys = [_kind(key, about) for key, about in info.keys.items() if about.cache is cache]
            yield from wrap(f"    {what}: {', '.join(keys)}", "      ")
        yield from wrap(f"    reference: {full(Spec(name))}, and the other settings alike", "      ")
        yield ""
    yield f"{command('NAME:key=value,key=value')}; docs/howto/engines.md"


def _cans(info: EngineInfo) -> Iterator[str]:
    from kvcheck.backends.engines.base import CANCELS, FLUSHES, SCORES, WEIGHS

    for can in (SCORES, WEIGHS, CANCELS, FLUSHES):
        yield can if can in info.can else f"no {can}"


def _kind(name: str, about: Key) -> str:
    """`KV_CACHE_PRECISION=f16|u8`, or `max_num_seqs=int`."""
    choices = get_args(about.kind)
    kind = "|".join(map(str, choices)) if choices else getattr(about.kind, "__name__", str(about.kind))
    return f"{name}={kind}"
