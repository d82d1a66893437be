"""Digests of the code that a run is measured with: kvcheck's own, and of each method that comes from elsewhere.

Of such a method: its module and everything that it imports from the same project, found by reading, without importing
anything. The same project is the package that the module is in and, unless that is installed, what lies beside it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from kvcheck.core.spec import Spec

OWN = "kvcheck"
_INSTALLED = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib", "stdlib"))


@lru_cache(maxsize=1)
def own() -> str:
    """Of kvcheck itself, wherever it is installed."""
    return _digest(sorted(Path(__file__).resolve().parents[1].rglob("*.py")))


def of_methods(specs: Iterable[str]) -> dict[str, str]:
    """Digests by spec, with kvcheck's own under its name. Built-in methods are kvcheck's own."""
    found = {spec: of_method(spec) for spec in specs}
    return {OWN: own()} | {spec: digest for spec, digest in sorted(found.items()) if digest}


def of_method(text: str) -> str:
    """The digest of the code behind a spec, "" for a built-in one and for what cannot be found."""
    files = sorted({file for module in elsewhere(text) for file in _project(module)})
    return _digest(files) if files else ""


def elsewhere(text: str) -> list[str]:
    """The modules that a spec names and that are not kvcheck's own, whether or not they can be found."""
    from kvcheck.methods import METHODS

    part: Spec | None = Spec.parse(text)
    modules = []
    while part is not None:
        module = METHODS.origins().get(part.name, "").partition(":")[0] or part.name.rpartition(".")[0]
        modules += [module] if module and module.partition(".")[0] != OWN else []
        part = part.then
    return modules


def _project(module: str) -> Iterator[Path]:
    """The file of a module, and those of what it imports from the same project."""
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    places = list(spec.submodule_search_locations or ())
    origin = Path(places[0] if places else spec.origin or "").resolve()
    root = origin.parent
    beside = not any(root.is_relative_to(place) for place in _INSTALLED)
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        if not beside and name.partition(".")[0] != top:
            continue
        for file in _files(root, name):
            if file not in seen:
                seen.add(file)
                yield file
                todo += _imports(file, root)


def _files(root: Path, module: str) -> Iterator[Path]:
    """The files of a module below the root, with the packages that it lies in; none for a module of elsewhere."""
    at = root
    for part in module.split("."):
        at = at / part
        for file in (at / "__init__.py", at.with_name(at.name + ".py")):
            if file.is_file():
                yield file


def _imports(file: Path, root: Path) -> list[str]:
    """The modules that a file may import, as dotted names from the root."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    package = list(file.relative_to(root).parent.parts)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [base] * bool(base) + [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
    return found


def _digest(files: Iterable[Path]) -> str:
    """Sixteen hex digits over names and contents."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return total.hexdigest()[:16]
