"""Faults of public projects that no property had met: each fails one, and the same without it holds them all."""

from __future__ import annotations

import pytest

from kvcheck.conformance import NAMES
from kvcheck.conformance.base import PROPERTIES
from kvcheck.conformance.runner import check
from kvcheck.conformance.subject import NotServed, Violation
from kvcheck.core.record import HOLDS
from kvcheck.methods import make

SIZES = {"prompt": 45, "block": 2, "steps": 2, "rows": 2, "cut": 500}
CHUNKS = "chunk=16,fresh=8"
FAULTS = {
    "RingReadFromTheHead": {"the_newest_token_is_seen": 10, "a_block_is_its_tokens_one_by_one": 10},
    "SavedRingPutBackInOrder": {"a_saved_cache_goes_on_as_it_was": 45, "forks_do_not_disturb_each_other": 45},
    "PagesReadTooFar": {"weights_add_up_to_one": 45},
    "PreRopeAdvancedFirst": {"a_row_of_a_batch_is_as_alone": 45},
    f"BlendAtPlacesBehindThePrefix:{CHUNKS}": {"everything_held_is_the_full_cache": 45},
    "WidePagesCountedAsNarrow": {"a_query_reads_as_many_tokens_as_declared": 45},
}
"""By faulty class of unseen.py, the properties that it fails, with the tokens of a prompt."""
RIGHT = ("Ring", "SavedRing", "Pages", "PreRope", f"BlendBehindAPrefix:{CHUNKS}", "WidePages")


@pytest.mark.parametrize(("faulty", "name"), [(faulty, name) for faulty in FAULTS for name in FAULTS[faulty]])
def test_a_fault_of_a_public_project_fails_a_property(faulty: str, name: str) -> None:
    with pytest.raises(Violation, match=r"differ|same logits|copied|are declared"):
        check(name, f"unseen.{faulty}", **{**SIZES, "prompt": FAULTS[faulty][name]})


@pytest.mark.parametrize("right", RIGHT)
def test_without_the_fault_all_properties_hold(right: str) -> None:
    spec = f"unseen.{right}"
    outcomes = {name: outcome(name, spec) for name in NAMES}
    assert {name: said for name, said in outcomes.items() if said not in ("", HOLDS)} == {}
    assert sum(said == HOLDS for said in outcomes.values()) >= 30


def outcome(name: str, spec: str) -> str:
    """HOLDS, "" where a property does not apply or says nothing, else what is said against the method, in one trial."""
    if PROPERTIES[name].exemption(make(spec).info):
        return ""
    try:
        check(name, spec, **SIZES)
    except NotServed:
        return ""
    except Violation as violation:
        return str(violation)
    return HOLDS
