"""The errors that kvcheck raises. Each says what was wrong, what would be right, and what to type."""

from __future__ import annotations

from collections.abc import Iterable


class KvcheckError(Exception):
    """Base of every error of kvcheck; `hint` names the remedy and is printed on a line of its own.

    option: the setting that it is about, where it is about one; the front end spells it.
    """

    def __init__(self, message: str, hint: str = "", *, option: str = "") -> None:
        self.message = message
        self.hint = hint
        self.option = option
        super().__init__(f"{message}\n  {hint}" if hint else message)


class SpecError(KvcheckError):
    """A method, task, model or option text that cannot be read, or a value out of range."""


class MethodUnsupported(KvcheckError):
    """A method that cannot serve this model or this setting."""


class ContextTooLong(KvcheckError):
    """A prompt that exceeds the model's context limit."""


class BaselineError(KvcheckError):
    """A baseline that is missing, damaged, foreign or stale."""


class MissingBaseline(BaselineError):
    """No stored record for this case."""


class NotComparable(BaselineError):
    """Two records that do not describe the same prompts, task version or model."""


class MethodFailed(KvcheckError):
    """The method under test raised, returned NaN, emptied the cache, broke its own claims or did nothing."""


class MethodsUnfed(KvcheckError):
    """Methods from elsewhere that cannot be fed a few tokens of the model: nothing can be measured with them."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest known words, or all of them when none is near.

    >>> did_you_mean("snapkw", ["snapkv", "kivi"])
    'did you mean snapkv?'
    """
    from difflib import get_close_matches  # only where something is wrong: every session of pytest loads this module

    known = sorted(known)
    spelled = {name.lower(): name for name in known}
    same = [word.lower()] if word.lower() in spelled else []
    near = same or get_close_matches(word.lower(), spelled, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(spelled[name] for name in near)}?"
    return f"known: {', '.join(known) or 'none'}"
