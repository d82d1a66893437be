"""Digests of the code that a run is measured with: kvcheck's own, and of each method that comes from elsewhere.

Of such a method: its module and everything that it imports from the same project, found by reading, without importing
anything, with the kernels that lie beside these files (KERNELS). The same project is the package that the module is in
and, unless that is installed, what lies beside it. So too of plugins that take part in the run: an engine, a judge.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from kvcheck.core.spec import Spec

OWN, PLUGINS = "kvcheck", "plugins"
HOOKS = "pytest_kvcheck_"
KERNELS = frozenset((".so", ".pyd", ".cu", ".cuh", ".hip", ".c", ".cc", ".cpp", ".h", ".hpp", ".metal", ".ptx", ".pyx"))
_INSTALLED = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib", "stdlib"))


@lru_cache(maxsize=1)
def own() -> str:
    """Of kvcheck itself, wherever it is installed."""
    return _digest(sorted(Path(__file__).resolve().parents[1].rglob("*.py")))


def of_methods(specs: Iterable[str]) -> dict[str, str]:
    """Digests by spec, with kvcheck's own under its name. Built-in methods are kvcheck's own."""
    found = {spec: of_method(spec) for spec in specs}
    return {OWN: own()} | {spec: digest for spec, digest in sorted(found.items()) if digest}


def of_plugins(config: pytest.Config | None) -> dict[str, str]:
    """The digest of what others brought into the run, modules with a hook of ours and tasks, under PLUGINS.

    config: None outside of pytest, where there are tasks only. Of conftest files only the one at the root: which others
    are loaded differs between controller and workers.
    """
    from kvcheck.tasks import TASKS

    found: set[Path] = set()
    for plugin in config.pluginmanager.get_plugins() if config is not None else ():
        file = getattr(sys.modules.get(getattr(plugin, "__module__", "")), "__file__", None)
        file = getattr(plugin, "__file__", file)
        path = Path(file or "").resolve()
        inner = config is not None and path.name == "conftest.py" and path.parent != config.rootpath.resolve()
        if file and not inner and not _is_own(path) and any(name.startswith(HOOKS) for name in dir(plugin)):
            found |= {path, *_with(path, getattr(plugin, "__name__", getattr(plugin, "__module__", "")))}
    modules = {origin.partition(":")[0] for origin in TASKS.origins().values()}
    found |= {file for module in modules if module.partition(".")[0] != OWN for file in _project(module)}
    return {PLUGINS: _digest(sorted(found))} if found else {}


def _with(file: Path, module: str) -> Iterator[Path]:
    """The files that come with that of a plugin. A conftest.py is no module that could be found by its name."""
    if file.name == "conftest.py":
        return _reached(file.parent, _imports(file, file.parent))
    return _project(module)


def _is_own(file: Path) -> bool:
    return file.is_relative_to(Path(__file__).resolve().parents[1])


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
    yield from _reached(root, [module], "" if beside else top)


def _reached(root: Path, todo: list[str], top: str = "") -> Iterator[Path]:
    """The files of modules below the root and of what they import there. top: only those of this package."""
    seen: set[Path] = set()
    while todo:
        name = todo.pop()
        if top and name.partition(".")[0] != top:
            continue
        for file in _files(root, name):
            if file not in seen:
                seen.add(file)
                yield file
                todo = todo + _imports(file, root)
    folders = {file.parent for file in seen}
    yield from (file for folder in sorted(folders) for file in sorted(folder.iterdir()) if file.suffix in KERNELS)


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
