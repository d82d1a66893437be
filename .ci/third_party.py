"""Published packages under kvcheck: how much glue each needs, and what comes out -> docs/reference/third_party.md.

    python .ci/third_party.py FOLDER [NAME ...]

Each package is installed by pip, without what it depends on, into a folder of its own under FOLDER, and tried in an own
process: TASKS of the quick profile on the embedded model, and all properties. A run file that is there is not made
again. The page has all packages whose run files are in FOLDER. No module of two packages meets another (several are
called `turboquant`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvcheck.core.record import PropertyRecord

ROOT = Path(__file__).resolve().parents[1]
GLUE = ROOT / ".ci" / "glue"
PAGE = ROOT / "docs" / "reference" / "third_party.md"


class Package(NamedTuple):
    """pip: what is installed. spec: of the method, which is in the module `glue` where lines of code are needed.

    note: why they are needed. also: what the package imports beside torch, transformers and scipy.
    """

    pip: str
    spec: str
    note: str = ""
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As on the index."""
        return self.pip.partition("==")[0]

    @property
    def glue(self) -> str:
        """The lines of code between kvcheck and the package."""
        path = GLUE / f"{self.name}.py"
        return path.read_text("utf-8") if path.exists() else ""


TASKS = "kv,needle_multi"
"""Two that lose most where a cache is at fault: one row is fed at a time, and the whole profile would take long."""
PACKAGES = (
    Package("turboquant==0.2.0", "glue.TurboQuantCache:bits=4", "it calls `numpy.trapz`, gone from numpy 2.4"),
    Package(
        "turboquant-serve==0.1.2",
        "glue.TurboQuantCache:key_bits=4,value_bits=4",
        "every cache fits its codebook anew, which takes seconds",
    ),
    Package("tqai==0.6.1", "tqai.patch:bits_k=4,bits_v=4,backend=torch"),
    Package(
        "nexusquant-kv==0.6.3",
        "glue.cache:key_bits=3,value_bits=2",
        "it is built by a class method",
        also=("zstandard==0.25.0",),
    ),
    Package("tiny-turboquant==0.18.0", "tiny_turboquant.cache.TinyKVCache:bits=4"),
    Package("turbokv==0.1.0", "turboquant.cache.TurboQuantCache:nbits=4"),
    Package(
        "turboquant-kv==1.0.0",
        "glue.cache:bits=4.0",
        "two methods of a layer are called otherwise in transformers 5.23; it imports triton on the CPU, too",
        also=("triton==3.9.0",),
    ),
    Package(
        "turboquant-torch==0.4.0",
        "glue.Compressed:bit_width=4",
        "it compresses when `compress_all` is called, here once behind the prompt",
    ),
    Package("optimum-quanto==0.2.7", "transformers.quanto:nbits=4"),
    Package("hqq==0.2.8.post1", "transformers.hqq:nbits=4"),
)


def main(folder: Path, names: list[str]) -> int:
    """Try what was not tried yet, and write the page."""
    for package in PACKAGES:
        if not names or package.name in names:
            try_out(package, folder / package.name)
    PAGE.write_text("\n".join(page(folder)) + "\n", encoding="utf-8")
    return 0


def try_out(package: Package, folder: Path) -> None:
    """Install a package and run its method, unless its run file is there."""
    run = folder / "run.json"
    if run.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "glue.py").write_text(package.glue, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site")]
    pip += [package.pip, *package.also]
    subprocess.run(pip, check=True)
    paths = [str(folder / "site"), str(folder), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "kvcheck.suites"]
    command += [f"--kv-method={package.spec}", "--kv-profile=quick", f"--kv-json={run}"]
    command += ["-m", "conformance or quick", f"--kv-tasks={TASKS}"]  # by name, or tasks alone would be run
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    print(f"{package.pip}: exit status {done.returncode}", flush=True)


def page(folder: Path) -> list[str]:
    """The page, a row for each run file."""
    found = [(one, folder / one.name / "run.json") for one in PACKAGES]
    rows = [row(one, path) for one, path in found if path.exists()]
    head = (
        "package", "method", "glue", "accuracy lost, points", "bytes after the prompt", "after decoding",
        "properties tried", "held", "failed", "not tried", "true batch", "fails",
    )  # fmt: skip
    before, _, after = PAGE.read_text("utf-8").partition("<!-- table -->\n")
    _, _, after = after.partition("<!-- end -->\n")
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return [*f"{before}<!-- table -->".splitlines(), *table, "<!-- end -->", *after.splitlines()]


def row(package: Package, path: Path) -> list[str]:
    """What a run file says of a package."""
    from kvcheck import read_run
    from kvcheck.core.record import FAILS, HOLDS, RUN

    run = read_run(path)
    memories = [one.memory for one in run.cases if one.memory is not None]
    prompt = sum(one.kv_bytes + one.host_bytes for one in memories) / max(1, sum(one.dense_bytes for one in memories))
    late = [one.end_ratio for one in memories if one.end_ratio is not None]
    drops = [one for name, found in run.verdicts.items() if name.startswith(f"{RUN}|") for one in found]
    drop = next((one for one in drops if one.question == "budget"), None)
    outcomes = Counter(one.outcome for one in run.properties)
    failed = [f"`{one.name}`" for one in run.properties if one.outcome == FAILS]
    return [
        package.pip.replace("==", " "),
        f"`{package.spec}`",
        f"{sum(map(bool, package.glue.splitlines()))} lines" + (f": {package.note}" if package.note else ""),
        f"{drop.value:.1f} [{drop.low:.1f}, {drop.high:.1f}]" if drop else "not measured",
        f"{prompt:.0%}" if memories else "not measured",
        f"{sum(late) / len(late):.0%}" if late else "not measured",
        str(outcomes[HOLDS] + outcomes[FAILS]),
        str(outcomes[HOLDS]),
        str(outcomes[FAILS]),
        str(sum(outcomes.values()) - outcomes[HOLDS] - outcomes[FAILS]),
        true_batch(run.properties),
        ", ".join(failed) or "none",
    ]


ALONE = "a_row_of_a_batch_is_as_alone"
BATCH = (
    ALONE,
    "permuted_rows_give_permuted_answers",
    "rows_that_finish_early_leave_the_others_alone",
    "beams_that_are_reordered_go_on_as_their_parents",
    "rows_can_be_repeated_and_taken_out_in_place",
)
"""The properties that feed several rows into one cache and change them by its own verbs."""


def true_batch(properties: Iterable[PropertyRecord]) -> str:
    """What became of several rows in one cache of the class, which is tried by its own verbs."""
    from kvcheck.core.record import FAILS, HOLDS, UNSERVED

    found = {one.name: one for one in properties if one.name in BATCH}
    outcomes = Counter(one.outcome for one in found.values())
    alone = found.get(ALONE)
    if outcomes[FAILS]:
        return f"failed ({outcomes[FAILS]})"
    if alone is not None and alone.outcome == UNSERVED and "knows no batch of rows" in alone.reason:
        return "rows are the fallback"
    return f"held by its own verbs ({outcomes[HOLDS]})" if outcomes[HOLDS] else "not tried"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
