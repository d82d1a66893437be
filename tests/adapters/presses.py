"""Every press of kvpress 0.5.5 as a spec, and the table of them in the docs.

HF_HUB_OFFLINE=1 python tests/adapters/presses.py     runs the quick profile and writes docs/reference/presses.md
… presses.py RUN.json                                 only writes the table, from a run file
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "presses.md"
SNAP, NORM = "kvpress.SnapKVPress:compression_ratio=0.5", "kvpress.KnormPress"
DECODING = "compression_interval=8,target_size=256"

HALF = [
    "CURPress",
    "CapPress",
    "CompactorPress",
    "ExpectedAttentionPress",
    "ExpectedAttentionStatsPress",
    "FastKVzipPress",
    "FinchPress",
    "KVComposePress",
    "KVgradPress",
    "KVzapPress",
    "KVzipPress",
    "KeyDiffPress",
    "KnormPress",
    "LagKVPress",
    "LeverageScorePress",
    "NonCausalAttnPress",
    "ObservedAttentionPress",
    "PyramidKVPress",
    "QFilterPress",
    "RandomPress",
    "RestoreKVPress",
    "SnapKVPress",
    "StreamingLLMPress",
    "TOVAPress",
]
AROUND = [
    "AdaKVPress",
    "BlockPress",
    "ChunkKVPress",
    "ChunkPress",
    "CriticalAdaKVPress",
    "CriticalKVPress",
    "EntropyGatedChunkKVPress",
    "KeyRerotationPress",
    "MergingPress",
]
SPECS = {
    **{name: f"kvpress.{name}:compression_ratio=0.5" for name in HALF},
    **{name: f'kvpress.{name}:press="{SNAP}"' for name in AROUND},
    "CAMPress": f"kvpress.CAMPress:base_press={NORM},{DECODING}",
    "ComposedPress": f'kvpress.ComposedPress:presses="{SNAP};kvpress.ThinKPress:key_channel_compression_ratio=0.3"',
    "CompressionRatioDecodingPress": (
        f"kvpress.CompressionRatioDecodingPress:base_press={NORM},compression_interval=8,target_compression_ratio=0.5"
    ),
    "DMSPress": f"kvpress.DMSPress:press={NORM},threshold=-5.0,decoding=true",
    "DecodingPress": f"kvpress.DecodingPress:base_press={NORM},{DECODING}",
    "DuoAttentionPress": "kvpress.DuoAttentionPress:head_compression_ratio=0.5",
    "LUKVPress": f'kvpress.LUKVPress:press="{SNAP}",compression_ratio=0.5',
    "PerLayerCompressionPress": (
        f'kvpress.PerLayerCompressionPress:press="{SNAP}",compression_ratios="0.2;0.4;0.6;0.8"'
    ),
    "PrefillDecodingPress": (
        f'kvpress.PrefillDecodingPress:prefilling_press="{SNAP}",'
        f"decoding_press=\"kvpress.DecodingPress:base_press='{NORM}',{DECODING}\""
    ),
    "SimLayerKVPress": "kvpress.SimLayerKVPress:lazy_threshold=0.1,n_recent=128",
    "ThinKPress": "kvpress.ThinKPress:key_channel_compression_ratio=0.5",
    "BasePress": "kvpress.BasePress",
    "ScorerPress": "kvpress.ScorerPress",
}
REFUSED = [
    "BasePress",
    "DuoAttentionPress",
    "ExpectedAttentionStatsPress",
    "FastKVzipPress",
    "FinchPress",
    "KVzapPress",
    "LUKVPress",
    "QFilterPress",
    "RestoreKVPress",
    "ScorerPress",
]
"""Those that cannot be set up on the embedded model, each for its reason."""


def reason(name: str) -> str:
    """Why a press is refused on the embedded model."""
    import torch

    from kvcheck.core.errors import KvcheckError
    from kvcheck.methods import make
    from kvcheck.models import load

    try:
        make(SPECS[name]).runner(load("mini", torch.device("cpu"), torch.float32))
    except KvcheckError as error:
        return error.message.partition(": ")[2] if "cannot be set up" not in error.message else error.message
    return "is not refused"


def measure(run: Path) -> None:
    """The quick profile with all presses that are not refused."""
    named = [f"--kv-method={spec}" for name, spec in SPECS.items() if name not in REFUSED]
    options = ["--kv-profile=quick", "--kv-against=fp16", f"--kv-json={run}", "-q", "-n2", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, "-m", "pytest", "suites", *options, *named], cwd=ROOT, check=False)


def lines(run: Path) -> list[str]:
    """The page."""
    from kvcheck.core.spec import Spec
    from kvcheck.methods import make
    from kvcheck.report import rows
    from kvcheck.store.run_file import read_run

    found = read_run(run)
    out = [
        "# The presses of kvpress 0.5.5",
        "",
        "Quick profile on the embedded model, judged against fp16. Accuracy and KV bytes are means over the cases;",
        "bytes are those of the cache behind the prompt, as a share of fp16's. Written by `tests/adapters/presses.py`.",
        "",
        "| press | verdicts | accuracy | KV bytes | remark |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(SPECS):
        if name in REFUSED:
            continue
        records = rows.of_method(found, str(Spec.parse(SPECS[name])))
        counted = ", ".join(f"{count} {word}" for word, count in sorted(rows.outcomes(found, records).items()))
        accuracy = sum(record.accuracy for record in records) / max(1, len(records))
        ratios = [record.memory.ratio for record in records if record.memory is not None]
        remark = make(SPECS[name]).info.variant
        size = f"{sum(ratios) / len(ratios):.2f}" if ratios else "-"
        out.append(f"| `{name}` | {counted or 'failed'} | {100 * accuracy:.1f} | {size} | {remark} |")
    out += ["", "## Refused on the embedded model", "", "| press | reason |", "|---|---|"]
    out += [f"| `{name}` | {clean(reason(name))} |" for name in sorted(REFUSED)]
    out += ["", "## As they were given", "", "```", *(SPECS[name] for name in sorted(SPECS)), "```"]
    return out


def clean(text: str) -> str:
    """A reason without a path of this machine, and short enough for a table."""
    from kvcheck.core import paths

    folder = str(paths.bundle("fixtures") / "mini")
    return text.replace(folder, "mini").replace("|", "/")[:300]


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("presses.json")
    if len(sys.argv) == 1:
        measure(file)
    PAGE.write_text("\n".join(lines(file)) + "\n", "utf-8")
