"""What there is to choose from: methods and tasks as lines.

Methods are read from their source, not imported: a list needs no torch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvcheck.core.front import command, option
from kvcheck.report.table import Table
from kvcheck.report.text import WIDTH, wrap


@dataclass(frozen=True)
class Described:
    """A method as its source describes it. parameters: name -> default, as text."""

    name: str
    origin: str
    stage: str = ""
    summary: str = ""
    paper: str = ""
    parameters: tuple[tuple[str, str], ...] = ()


def describe(name: str, origin: str) -> Described:
    """Read a method's source. A method whose source cannot be found or read is named and not described."""
    module, _, attribute = origin.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text("utf-8")) if spec and spec.origin else None
    except (ImportError, OSError, SyntaxError, UnicodeDecodeError, ValueError):
        tree = None
    if tree is None:
        return Described(name, origin)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = classes.get(_alias(tree, attribute) or attribute)
    if node is None:
        return Described(name, origin)
    info = _info(node)
    summary = info.get("summary") or (ast.get_docstring(node) or "").partition("\n")[0]
    parents = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    inherited = [pair for source in _imported(tree, node) for pair in describe(name, source).parameters]
    parameters = (*inherited, *(pair for each in (*parents, node) for pair in _parameters(each)))
    return Described(name, origin, info.get("stage", ""), summary, info.get("paper", ""), parameters)


def _imported(tree: ast.Module, node: ast.ClassDef) -> Iterator[str]:
    """The "module:Class" of base classes that come from other modules."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    for item in tree.body:
        if isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
            yield from (f"{item.module}:{alias.name}" for alias in item.names if (alias.asname or alias.name) in bases)


def _alias(tree: ast.Module, name: str) -> str | None:
    """The class that `METHOD = Class` names."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and name in map(ast.unparse, node.targets):
            return node.value.id
    return None


def _info(node: ast.ClassDef) -> dict[str, str]:
    """The literal texts in `info = MethodInfo(…)`."""
    for item in node.body:
        value = item.value if isinstance(item, (ast.AnnAssign, ast.Assign)) else None
        if isinstance(value, ast.Call) and "MethodInfo" in ast.unparse(value.func):
            pairs = ((key.arg, key.value) for key in value.keywords)
            return {name: str(word.value) for name, word in pairs if name and isinstance(word, ast.Constant)}
    return {}


def _parameters(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The fields of the dataclass with their defaults."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name) or item.value is None:
            continue
        if "ClassVar" not in ast.unparse(item.annotation):
            yield item.target.id, ast.unparse(item.value).strip("'\"")


def methods() -> Iterator[str]:
    """Every registered method: name, stage, measured bytes, what it does, parameters with their defaults."""
    from kvcheck.methods import METHODS
    from kvcheck.methods.adapters import NAMED
    from kvcheck.report.recorded import shown

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
    yield ""
    yield "KV bytes: share of fp16's on the embedded model, at these parameters unless others are named"
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
