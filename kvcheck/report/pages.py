"""A page of documentation per method: what its class says, what it declares, what was recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from kvcheck.core.files import write_atomically
from kvcheck.core.spec import flag
from kvcheck.report.catalogue import describe, wrapped_parameters
from kvcheck.report.recorded import MODELS, Recorded, of_name, shown

HEAD = "<!-- written by `kvcheck methods --pages`; do not edit -->"


def write(folder: Path) -> list[str]:
    """Write a page per registered method and an index; returns the files. Imports torch."""
    from kvcheck.methods import METHODS

    pages = {"README.md": index(METHODS.names()), **{f"{name}.md": page(name) for name in METHODS.names()}}
    for name, lines in pages.items():
        write_atomically(str(folder / name), "\n".join(lines) + "\n")
    return list(pages)


def index(names: tuple[str, ...]) -> Iterator[str]:
    """All methods in one table."""
    from kvcheck.methods import METHODS

    yield HEAD
    yield "# Methods"
    yield ""
    yield "Bytes are the measured share of fp16's KV bytes on the embedded model, at the default parameters;"
    yield "where those have no record, at the ones that are named."
    yield ""
    yield "KL from fp16 in nats, mean over the recorded cases of the embedded model and of a pretrained one."
    yield ""
    yield "| method | stage | KV bytes | KL, `mini` | KL, `smollm2` | what it does | paper |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        found = describe(name, METHODS.origins()[name])
        far = " | ".join(one.kl_text if (one := shown(name, model)) else "" for model in MODELS)
        yield f"| [`{name}`]({name}.md) | {found.stage} | {_held(name)} | {far} | {found.summary} | {found.paper} |"


def _held(name: str) -> str:
    """The bytes of a method, and its parameters where they are not the default ones."""
    one = shown(name)
    if one is None or not one.bytes_text:
        return ""
    return one.bytes_text if one.spec == name else f"{one.bytes_text} (`{one.spec.removeprefix(name + ':')}`)"


def page(name: str) -> Iterator[str]:
    """The page of one method."""
    from kvcheck.methods import METHODS

    found, info, one = describe(name, METHODS.origins()[name]), METHODS.get(name).info, shown(name)
    yield HEAD
    yield f"# `{name}`"
    yield ""
    yield f"{found.summary[:1].upper()}{found.summary[1:]}." + (f" {found.paper}." if found.paper else "")
    yield ""
    yield "```"
    yield f"pytest {flag(name if one is None else one.spec)}"
    if found.parameters:
        yield from wrapped_parameters(found)
    yield "```"
    yield ""
    yield (inspect.getdoc(METHODS.get(name)) or "").replace("\n    ", "\n")
    yield ""
    yield "## What it declares"
    yield ""
    yield f"- stage: {info.stage}" + (f"; knob: `{info.knob}`" if info.knob else "")
    yield f"- KV bytes: {info.formula or 'not declared'}"
    yield f"- {'holds less than the full cache' if info.frees_memory else 'holds as much as the full cache'}"
    if info.exceeds:
        yield f"- with host memory, holds more than the full cache: {info.exceeds}"
    yield f"- what it stores of a token is {'' if info.verbatim else 'not '}what the model computed, bit for bit"
    yield f"- tokens {'may leave' if info.evicts_in_decode else 'do not leave'} after the prompt"
    yield f"- the prompt is computed {'as with the full cache' if info.shares_prefill else 'in its own way'}"
    if info.needs:
        yield f"- reads the {', '.join(info.needs)} of the prompt"
    if info.refuses:
        yield f"- cannot serve {info.refuses}"
    yield f"- where a model caches latents (MLA): {info.latents or 'refused'}"
    if info.variant:
        yield f"- which form this is: {info.variant}"
    yield ""
    for model in MODELS:
        yield from measured(model, of_name(name, model))


def measured(model: str, found: list[Recorded]) -> Iterator[str]:
    """Accuracy by capability beside fp16, KL and bytes."""
    yield f"## On `{model}`"
    yield ""
    if not found:
        yield "Not recorded."
        yield ""
        return
    fp16 = of_name("fp16", model)
    columns = [*(one for one in fp16 if one not in found), *found]
    yield f"Recorded on {MODELS[model]}: accuracy by capability, first and last turn of multi-turn mode, KL from fp16"
    yield "in nats, KV bytes as a share of fp16's."
    yield ""
    yield "| | " + " | ".join(f"`{one.spec}`" for one in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for capability in dict.fromkeys(name for one in columns for name in one.accuracy):
        cells = (f"{one.accuracy[capability]:.2f}" if capability in one.accuracy else "" for one in columns)
        yield f"| {capability.replace('_', ' ')} | " + " | ".join(cells) + " |"
    for label, at in (("first turn", 0), ("last turn", -1)):
        yield f"| {label} | " + " | ".join(f"{one.turns[at]:.2f}" if one.turns else "" for one in columns) + " |"
    yield "| KL from fp16 | " + " | ".join(one.kl_text for one in columns) + " |"
    yield "| KV bytes | " + " | ".join(one.bytes_text for one in columns) + " |"
    yield ""
