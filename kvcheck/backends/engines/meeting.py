"""Which server it is: its dialect, its model, its tokenizer, as far as it tells. One that is another than named is
refused before it is asked anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcheck.backends.engines.base import (
    CANCELS,
    COUNTS,
    FLUSHES,
    MEANWHILE,
    SALTS,
    SCORES,
    EngineInfo,
    Settings,
)
from kvcheck.backends.engines.dialects import DIALECTS, Dialect, taken
from kvcheck.backends.engines.said import prometheus
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option

if TYPE_CHECKING:
    from kvcheck.backends.engines.http import Http

HERE = "http://127.0.0.1:8000/v1"
TIMEOUT, WAIT = 300.0, 10.0
"""Seconds until the next bytes must be there, and until the server is ready."""
PROBE = "The grey cat asked for 17 keys:\n"


@dataclass(frozen=True)
class Met:
    """A server that is there. model: its own name of the model. running: kind and version."""

    http: Http
    dialect: Dialect
    model: str
    running: str


def connected(settings: Settings) -> Http:
    """The way to the server of these settings; nothing is sent yet."""
    from kvcheck.backends.engines.http import Http

    return Http(str(settings.get("url", HERE)), float(str(settings.get("timeout", TIMEOUT))))


def met(settings: Settings) -> Met:
    """The server of these settings. Raises SpecError, MethodFailed."""
    http = connected(settings)
    try:
        models = _models(http)
        dialect = _dialect(http, models, settings)
        version = "" if dialect.version is None else taken(http.find(dialect.version[0]), dialect.version[1])
        running = " ".join(filter(None, (dialect.name, str(version or ""))))
        return Met(http, dialect, _served(http, models, settings), running)
    except BaseException:
        http.close()
        raise


def meet(info: EngineInfo, folder: Path, settings: Settings) -> EngineInfo:
    """What the server at settings["url"] is. Raises SpecError where it is not there or is another one than named."""
    http = connected(settings)
    try:
        http.ready(float(str(settings.get("wait", WAIT))))
    finally:
        http.close()
    one = met(settings)
    try:
        expect_tokenizer(one.http.url, one.dialect.name, one.model, folder)
        dialect = one.dialect
        longest = None if dialect.longest is None else taken(one.http.find(dialect.longest[0]), dialect.longest[1])
        offers = {FLUSHES: dialect.flush, SALTS: dialect.salt, SCORES: dialect.scored, COUNTS: dialect.counters}
        return replace(
            info,
            running=one.running,
            longest=longest if isinstance(longest, int) and longest > 0 else None,
            block=_block(one) or info.block,
            can=frozenset({CANCELS, MEANWHILE, *(can for can, offered in offers.items() if offered)}),
            ways=info.ways if dialect.salt or dialect.anew or dialect.flush else {},
        )
    finally:
        one.http.close()


@lru_cache(maxsize=64)
def expect_alike(url: str, reference: str, timeout: float) -> None:
    """Raise SpecError where the reference is another engine, or another version or model of it."""
    seen = []
    for one in (url, reference):
        found = met({"url": one, "timeout": timeout})
        found.http.close()
        seen.append(f"{found.running} with {found.model}")
    if seen[0] != seen[1]:
        raise SpecError(
            f"server: {url} is {seen[0]}, its reference {reference} is {seen[1]}",
            "start the same one twice: they differ in their KV cache alone",
        )


@lru_cache(maxsize=64)
def expect_tokenizer(url: str, kind: str, model: str, folder: Path) -> None:
    """Raise SpecError where a server reads a text as other ids than the model's own tokenizer."""
    from kvcheck.backends.engines.http import Http

    if (asked := DIALECTS[kind].tokenize) is None or not (folder / "tokenizer.json").is_file():
        return
    path, body, place = asked
    filled = {name: PROBE if value == "" else value for name, value in body.items()}
    http = Http(url, TIMEOUT)
    try:
        said = http.post(path, filled | {"model": model})
    finally:
        http.close()
    theirs = taken(said.json(), place) if said.status_code == 200 else None
    mine = list(tokenizer(folder).encode(PROBE, add_special_tokens=False).ids)
    if theirs is not None and theirs != mine:
        raise SpecError(
            f"server: {url} has another tokenizer than {folder.name}: {PROBE!r} is {theirs}, not {mine}",
            f"the folder of the model that it serves: {option('model', 'FOLDER')}",
        )


@lru_cache(maxsize=8)
def tokenizer(folder: Path) -> Any:
    """The model's own, without transformers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _block(one: Met) -> int | None:
    """Tokens of a block, where /metrics tell."""
    name = one.dialect.counters.get("block", "")
    said = one.http.get("/metrics") if name else None
    if said is None or said.status_code != 200 or said.text.lstrip().startswith("["):  # these are read once
        return None
    return int(prometheus(said.text).get(name, 0)) or None


def _models(http: Http) -> list[Mapping[str, Any]]:
    found = taken(http.find("/v1/models"), "data")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise SpecError(f"server: {http.url} lists no models at /v1/models", "name an OpenAI-compatible server")
    return found


def _dialect(http: Http, models: list[Mapping[str, Any]], settings: Settings) -> Dialect:
    """Of `kind`, else as the server's answers tell. Raises SpecError where they tell otherwise, or nothing."""
    owners = {str(one.get("owned_by", "")) for one in models}
    seen = next((one for one in DIALECTS.values() if one.owner and one.owner in owners), None)
    kind = settings.get("kind")
    if kind is not None:
        if seen is not None and seen.name != kind:
            raise SpecError(f"server: {http.url} is {seen.name}, not {kind}", f"kind={seen.name}, or leave it out")
        return DIALECTS[str(kind)]
    for one in DIALECTS.values():
        if seen is None and one.sign is not None and one.sign[1] in http.get(one.sign[0]).text:
            seen = one
    if seen is None:
        raise SpecError(f"server: it is not known what {http.url} is", f"say it: kind={'|'.join(DIALECTS)}")
    return seen


def _served(http: Http, models: list[Mapping[str, Any]], settings: Settings) -> str:
    """The name that the server has for the model. Raises SpecError for one that it has not."""
    names = [str(one.get("id", "")) for one in models]
    wanted = settings.get("model")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise SpecError(f"server: {http.url} has {len(names)} models: {', '.join(names)}", "say which: model=NAME")
    if wanted not in names:
        raise SpecError(f"server: {http.url} has no model {wanted!r}", did_you_mean(str(wanted), names))
    return str(wanted)
