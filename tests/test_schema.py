"""The published JSON Schema of run files is that of the code, and real runs fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_runfile import full_run

from kvcheck.cli.commands import main
from kvcheck.core.record import Run
from kvcheck.judging import shipped
from kvcheck.store.run_file import run_from_json, run_to_json
from kvcheck.store.schema import schema

SOME = ("fp16", "snapkv", "kivi:bits=4", "offload", "think")
"""Methods whose shipped records are looked at every day; those of all others nightly."""
PUBLISHED = Path(__file__).parents[1] / "docs" / "reference" / "run.schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_the_published_schema_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert PUBLISHED.read_text("utf-8") == capsys.readouterr().out


def some_shipped() -> Run:
    """What the shipped records of some methods are as a run."""
    known = {method: cases for method, cases in shipped.records(shipped.MODEL).items() if method in SOME}
    assert set(known) == set(SOME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "records", lambda model: known)
        return shipped.shipped()


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(full_run, id="every kind of field"),
        pytest.param(some_shipped, id="some of the shipped records"),
        pytest.param(shipped.shipped, id="the shipped records", marks=pytest.mark.nightly),
    ],
)
def test_a_run_file_fits_it(validator: Any, run: Callable[[], Run]) -> None:
    """Runs are made within the test: while tests are collected, every process would make them."""
    validator.validate(json.loads(run_to_json(run())))


@pytest.mark.parametrize(
    ("field", "value"), [("score", 2), ("score", "1"), ("depth", -0.1), ("answer", None), ("colour", "red")]
)
def test_what_is_refused_when_it_is_read_does_not_fit_it(validator: Any, field: str, value: object) -> None:
    data = json.loads(run_to_json(full_run()))
    data["cases"][0]["samples"][0]["turns"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(data)


def test_a_file_of_before_a_field_was_kept_fits_it_and_is_read(validator: Any) -> None:
    data = json.loads(run_to_json(full_run()))
    del data["header"]["time"], data["header"]["branch"], data["header"]["sources"]
    validator.validate(data)
    assert run_from_json(json.dumps(data)).header.time == ""
