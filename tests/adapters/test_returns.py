"""What `update` of a transformers cache returns is looked at, and said by name."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from kvcheck.methods.adapters.foreign import sixteen_bits


class Returns(DynamicCache):
    """A cache whose update returns this."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def update(self, key, value, *args, **kwargs):
        return self.found


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (("keys", "values"), r"update \(keys\) returned str, not a tensor"),
        (None, "update returned NoneType, not keys and values"),
        ((1, 2, 3), "update returned tuple of 3, not keys and values"),
    ],
    ids=["texts", "nothing", "three"],
)
def test_what_update_returns_is_named_where_it_is_no_pair_of_tensors(found, says):
    key = torch.zeros(1, 2, 3, 4)
    with pytest.raises(TypeError, match=says), sixteen_bits(cache := Returns(found)):
        cache.update(key, key, 0)
