"""Where the shipped folders lie: beside the package in a wheel, beside the repository's `kvcheck/` in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

from kvcheck.core.errors import KvcheckError, did_you_mean

BUNDLES = ("baselines", "fixtures", "suites")
_PACKAGE = Path(__file__).resolve().parents[1]


def bundle(name: str) -> Path:
    """The folder of that name. Raises KvcheckError when the name is unknown or the installation lacks the folder."""
    if name not in BUNDLES:
        raise KvcheckError(f"no bundle named {name!r}", did_you_mean(name, BUNDLES))
    installed, checkout = _PACKAGE / name, _PACKAGE.parent / name
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise KvcheckError(
        f"this installation lacks its {name} folder (looked in {installed} and {checkout})",
        "pip install --force-reinstall kvcheck",
    )


def user_baselines(rootdir: Path) -> Path:
    """Where recording goes when nothing else is said: `.kvcheck/baselines` under the user's root folder."""
    return rootdir / ".kvcheck" / "baselines"


def cache_folder(name: str) -> Path:
    """Where what was fetched or unpacked is kept: $KVCHECK_CACHE, else ~/.cache/kvcheck, below it the folder `name`."""
    return Path(os.environ.get("KVCHECK_CACHE") or Path.home() / ".cache" / "kvcheck") / name
