"""Names to objects, found in a package's modules and in installed entry points, imported on demand."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.spec import raised

T = TypeVar("T")
Pick = Callable[[Any, str], T]
"""Takes the object of a name out of what was imported."""
SKIP = frozenset({"base", "attention"})


class Registry(Generic[T]):
    """The known objects of one kind, by name.

    kind: the word for messages ("method"). package: its modules are the built-in ones. group: the entry-point group of
    third parties. listing: gives {name: "module:ATTRIBUTE"} of the built-in ones; by default one name per module, the
    module's stem, exported under `attribute`. pick: takes the object of that name out of what was imported. beside: for
    a name of a family (family/member) all members of it, which are known though never listed; {} for other names.

    Listing names imports no module of a package that has one object per module.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        group: str,
        *,
        attribute: str = "METHOD",
        skip: Iterable[str] = SKIP,
        listing: Callable[[], Mapping[str, str]] | None = None,
        pick: Pick[T] | None = None,
        beside: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        self.kind, self.package, self.group = kind, package, group
        skip = frozenset(skip)
        self._listing = listing or (lambda: {stem: f"{package}.{stem}:{attribute}" for stem in stems(package, skip)})
        self._pick: Pick[T] = pick or (lambda found, name: found)
        self._beside = beside or (lambda name: {})
        self._origins: dict[str, str] | None = None

    def origins(self) -> dict[str, str]:
        """Every name with the "module:ATTRIBUTE" that it stands for, sorted. Raises SpecError when two claim a name."""
        if self._origins is None:
            origins = dict(self._listing())
            for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
                known = origins.setdefault(point.name, point.value)
                if known != point.value:
                    raise SpecError(
                        f"two {self.kind}s are named {point.name!r}: {known} and {point.value}",
                        f"rename one: the second comes from an entry point in the group {self.group}",
                    )
            self._origins = dict(sorted(origins.items()))
        return self._origins

    def names(self) -> tuple[str, ...]:
        """The known names, sorted, the same in every process."""
        return tuple(self.origins())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.around(name)

    def around(self, name: str) -> dict[str, str]:
        """Like origins, and what is known beside the listed names in the family of this one."""
        return {**self._beside(name), **self.origins()}

    def get(self, name: str) -> T:
        """Import and return the object of that name. Raises SpecError for an unknown name."""
        origins = self.around(name)
        if name not in origins:
            raise SpecError(f"unknown {self.kind} {name!r}", did_you_mean(name, origins))
        module, _, attribute = origins[name].partition(":")
        return self._pick(load_attribute(module, attribute), name)


def stems(package: str, skip: Iterable[str] = SKIP) -> list[str]:
    """Module names in a package, sorted, without importing them; `skip` and names that start with '_' are left out."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return sorted(name for name in found if name not in skip and not name.startswith("_"))


def exports(package: str, attribute: str, name_of: Callable[[T], str], skip: Iterable[str] = SKIP) -> dict[str, str]:
    """{name: "module:ATTRIBUTE"} of a package whose modules export tuples. Imports the modules that list them.

    A module without the attribute is a helper and is passed over. Raises SpecError when two objects share a name.
    """
    origins: dict[str, str] = {}
    for stem in stems(package, skip):
        module = importlib.import_module(f"{package}.{stem}")
        for item in getattr(module, attribute, ()):
            name, origin = name_of(item), f"{package}.{stem}:{attribute}"
            if name in origins:
                raise SpecError(f"two objects are named {name!r}: {origins[name]} and {origin}", "rename one of them")
            origins[name] = origin
    return origins


def picker(name_of: Callable[[T], str]) -> Pick[T]:
    """A `pick` for exported tuples (a single object is taken too): the member of that name. Raises SpecError."""

    def pick(found: Any, name: str) -> T:
        members = found if isinstance(found, (tuple, list)) else (found,)
        for member in members:
            if name_of(member) == name:
                return member
        raise SpecError(f"nothing named {name!r} is exported there", did_you_mean(name, map(name_of, members)))

    return pick


def load_dotted(path: str) -> Any:
    """Import `package.module.Class`. Raises SpecError: no such module, no such attribute, or the import failed."""
    module, dot, attribute = path.rpartition(".")
    if not dot or not all(part.isidentifier() for part in path.split(".")):
        raise SpecError(f"not an import path: {path!r}", "write package.module.Class")
    return load_attribute(module, attribute)


def importable(folder: Path) -> None:
    """Let modules of this folder be imported, behind all others: pytest and kvcheck leave out where they are typed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load_attribute(module: str, attribute: str) -> Any:
    """Import a module and return one attribute of it (dots allowed). Raises SpecError, whatever its code raises."""
    try:
        found: Any = importlib.import_module(module)
    except (KvcheckError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            hint = f"is it installed, or on PYTHONPATH? try: python -c 'import {error.name}'"
            raise SpecError(f"no module named {error.name!r} (from {module}.{attribute})", hint) from error
        raise SpecError(
            f"{module} needs {error.name!r}, which is not installed", f"pip install {error.name}"
        ) from error
    except BaseException as error:  # sys.exit and pytest.skip too: what cannot be imported is not skipped
        raise SpecError(f"importing {module} failed: {raised(error)}", f"try: python -c 'import {module}'") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise SpecError(f"{module} has no {attribute!r}", did_you_mean(part, public))
        found = getattr(found, part)
    return found
