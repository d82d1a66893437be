"""Models whose attention is no plain softmax: scores with a soft cap, and learned sinks in the denominator.

Tried on the small models of models.DENOMINATORS, whatever architecture was drawn.
"""

from __future__ import annotations

from dataclasses import replace

from kvcheck.conformance.base import LONGEST, not_lossless, other_prompt, property_test
from kvcheck.conformance.models import DENOMINATORS
from kvcheck.conformance.subject import NotServed, Subject, equal

ALL = 1e4
"""A sink that takes all of the attention."""


def _on(subject: Subject, architecture: str) -> Subject:
    """The same trial on another small model."""
    return Subject(subject.spec, replace(subject.draw, architecture=architecture))


@property_test(skip_reason=other_prompt, longest=LONGEST, share=0.4)
def sinks_that_take_all_leave_nothing(subject: Subject) -> None:
    """Where learned sinks take all of the attention, nothing that is held is read: the logits are the full cache's."""
    subject = _on(subject, "gpt_oss")
    for layer in subject.loaded.model.get_decoder().layers:
        layer.self_attn.sinks.data.fill_(ALL)
    subject.runner = subject.new_runner()
    mine, full = subject.life(*subject.texts()), subject.life(*subject.texts(), runner=subject.dense)
    equal(mine, full, "where the sinks take all")


@property_test(skip_reason=not_lossless, longest=LONGEST, share=0.4)
def caps_and_sinks_are_those_of_the_model(subject: Subject) -> None:
    """Where everything is held, scores are capped and sinks weighed as by the full cache."""
    kinds = sorted(DENOMINATORS)
    first = (subject.draw.prompt + subject.draw.block) % len(kinds)  # not the seed: a second opinion has another
    try:
        subject = _on(subject, kinds[first])
    except NotServed:
        subject = _on(subject, kinds[1 - first])
    whole = subject.lossless_runner()
    mine, full = subject.life(*subject.texts(), runner=whole), subject.life(*subject.texts(), runner=subject.dense)
    equal(mine, full, f"{whole.method.spec} and fp16")
