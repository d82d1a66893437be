"""The zoo: would this gate, on this model, have caught bugs that real projects shipped?

    pytest --kv-zoo=all                          every bug, and the correct methods that they break
    pytest --kv-zoo=beam,h2o … -n 2              some families or bugs, on two workers
    pytest --kv-zoo=all --kv-method=your.Class   generic faults put around your own method
    pytest --kv-zoo=all --kv-json=zoo.json --kv-resume=zoo.json     go on where an earlier run of this commit stopped

The bugs: kvcheck/zoo/, one module per family. No property and no task knows any of them by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcheck.plugin.zoo import KvCandidate


def test_zoo(kv_candidate: KvCandidate) -> None:
    """A bug is caught, a correct method is not accused."""
    kv_candidate.check(kv_candidate.examine())
