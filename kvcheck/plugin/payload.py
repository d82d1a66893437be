"""What rides on a test report: one case's result as JSON text. xdist ships reports anyway."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kvcheck.escape import json_text
from kvcheck.record import CaseRecord, Verdict
from kvcheck.runfile import case_from_json, dumps, verdicts_from_json


@dataclass(frozen=True)
class Payload:
    """The result of one item: the case, the method, the model, and what came of it.

    model: {"name", "fingerprint"}. record is None where the case failed before there was one; failure is the message
    it failed with, "" if none.
    """

    case: str
    method: str
    model: dict[str, str]
    record: CaseRecord | None
    verdicts: tuple[Verdict, ...]
    failure: str


def write(payload: Payload) -> str:
    """As JSON text. Raises ValueError for a number that is not finite."""
    found = {
        "case": payload.case,
        "method": payload.method,
        "model": payload.model,
        "record": None if payload.record is None else dumps(payload.record),
        "verdicts": dumps(payload.verdicts),
        "failure": payload.failure,
    }
    return json_text(json.dumps(found, ensure_ascii=False))


def read(text: str) -> Payload:
    """Back from JSON text."""
    found = json.loads(text)
    found["record"] = None if found["record"] is None else case_from_json(found["record"])
    found["verdicts"] = verdicts_from_json(found["verdicts"])
    return Payload(**found)
