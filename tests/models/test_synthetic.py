"""Models of random weights: the shapes of well-known ones, made on the fly."""

from __future__ import annotations

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.models import load, synthetic
from kvcheck.runner.case import Runner


def test_the_engine_itself_refuses_a_case() -> None:
    runner = Runner(Session.open(Settings(model="random:tiny")), Settings())
    with pytest.raises(KvcheckError, match="random weights"):
        runner.run_case(CaseId("kv", 1, "single", 256, 0, 1), "fp16")


def test_the_same_shape_has_the_same_weights_and_fingerprint() -> None:
    one, other = (load("random:tiny", torch.device("cpu"), torch.float32) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("name", sorted(synthetic.SHAPES))
def test_a_shape_is_a_configuration_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    fields = synthetic.shape_of("random:" + name)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    assert {key: getattr(config, key) for key in fields if key != "rope_parameters"} == {
        key: value for key, value in fields.items() if key != "rope_parameters"
    }


def test_llama_8b_takes_128_kib_per_token() -> None:
    from transformers import AutoConfig

    from kvcheck.cache.shape import ModelShape

    fields = synthetic.shape_of("random:llama-3.1-8b")
    shape = ModelShape.of(AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert shape.dense_bytes(1, 1) == 128 * 1024


def test_an_unknown_shape_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError, match="unknown shape"):
        synthetic.shape_of("random:none")
