"""Metrics of mathematics: a number or an expression at the end of a worked solution.

Source, where no other is named: EleutherAI/lm-evaluation-harness at 4e7e0d47f33b.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvcheck.tasks.metrics.numbers import integer

_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_SAID = re.compile(r"The answer is (-?[0-9.,]+).")
_DIGITS = re.compile(r"\d*\.?\d+")
_ANSWER = re.compile(r"Answer_([0-9]{1,9}):\n(.*?)(?=\n\nAnswer_|\Z)", re.DOTALL)
_FIRST = re.compile(r"(?<=:\n)(.*?)(?=\n\n|$)", re.DOTALL)
_BOXED = "\\boxed"
FIRST = 9
"""Number of the first question of LongGenBench, behind eight examples."""


# -- gsm8k -------------------------------------------------------------------------------------------------------------


def gsm8k(prediction: str, reference: str) -> float:
    """1.0 if the last number of the answer is the reference; commas, dollar signs and a final full stop do not count.

    Source: lm_eval/tasks/gsm8k/gsm8k-cot-zeroshot.yaml, `flexible-extract`.
    """
    found = [match.group(1) or match.group(2) for match in _NUMBER.finditer(prediction)]
    return float(bool(found) and _bare(found[-1].strip()) == _bare(reference))


def gsm8k_strict(prediction: str, reference: str) -> float:
    """1.0 if the number behind the first "The answer is" is the reference, a character more behind it.

    Source: lm_eval/tasks/gsm8k/gsm8k-cot-zeroshot.yaml, `strict-match`.
    """
    found = _SAID.search(prediction)
    return float(found is not None and _bare(found.group(1).strip()) == _bare(reference))


def _bare(text: str) -> str:
    """A number as both rules compare it; of a worked solution, what stands behind its ####."""
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


# -- math500, aime -----------------------------------------------------------------------------------------------------


def math_equal(prediction: str, reference: str) -> float:
    """1.0 if the last box of the answer, else what stands between its outer dollar signs, else all of it, is the
    reference as LaTeX. Source: lm_eval/tasks/aime/utils.py `process_results`.
    """
    box = boxed(prediction)
    return _same(_dollars(prediction) if box is None else box, reference)


def math_dollars_compat(prediction: str, reference: str) -> float:
    """The same without boxes: what stands between the outer dollar signs, else all of the answer.

    Source: lm_eval/tasks/hendrycks_math/utils.py `process_results`.
    """
    return _same(_dollars(prediction), reference)


def aime(prediction: str, reference: str) -> float:
    """As `math_equal`, where numbers may have leading zeros, as they are filled in at the contest: 073 is 73."""
    box = boxed(prediction)
    said = _dollars(prediction) if box is None else box
    numbers = integer(said), integer(reference)
    return float(None not in numbers and numbers[0] == numbers[1]) or _same(said, reference)


def _dollars(text: str) -> str:
    """What stands between the first and the last dollar sign; all where there is at most one."""
    return text[text.index("$") + 1 : text.rindex("$")] if text.count("$") > 1 else text


def boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{...}, or of \boxed up to a dollar sign; None where there is none that ends."""
    if f"{_BOXED} " in text:
        return text.split(f"{_BOXED} ")[-1].split("$")[0]
    start, depth = text.rfind(f"{_BOXED}"), 0
    if not text.startswith(f"{_BOXED}{{", start) or start < 0:
        return None
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if text[at] == "}" and depth == 0:
            return text[start + len(_BOXED) + 1 : at]
    return None


def _same(one: str, other: str) -> float:
    """Whether two expressions are the same as LaTeX. One that the rules cannot read is compared as it is."""
    try:
        return float(latex(one) == latex(other))
    except (IndexError, ValueError):
        return float(one == other)


def latex(text: str) -> str:
    r"""An expression without spaces, units, signs of degree and percent, \left and \right; fractions and roots in one
    form, 0.5 and a/b as fractions.

    Raises IndexError and ValueError for an expression that ends in the middle of a command, or has several units.
    Source: lm_eval/tasks/hendrycks_math/utils.py `strip_string`, that of hendrycks/math.
    """
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""),
                     ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")):  # fmt: skip
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")
    for old, new in (("\\%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    text = f"0{text}" if text.startswith(".") else text
    left, sign, right = text.partition("=")
    text = right if sign and "=" not in right and len(left) <= 2 else text
    text = _fractions(_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    left, sign, right = text.partition("/")
    if not sign or "/" in right:
        return text
    over, under = int(left), int(right)  # ValueError where they are none
    return f"\\frac{{{over}}}{{{under}}}" if text == f"{over}/{under}" else text


def _roots(text: str) -> str:
    r"""\sqrt3 as \sqrt{3}."""
    first, *rest = text.split("\\sqrt")
    return first + "".join(f"\\sqrt{part}" if part[0] == "{" else f"\\sqrt{{{part[0]}}}{part[1:]}" for part in rest)


def _fractions(text: str) -> str:
    r"""\frac12 as \frac{1}{2}; all as it was where one has no second part."""
    first, *rest = text.split("\\frac")
    parts = [first]
    for part in rest:
        if part[0] == "{":
            parts.append(f"\\frac{part}")
        elif len(part) < 2:
            return text
        else:
            second = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            parts.append(f"\\frac{{{part[0]}}}{second}")
    return "".join(parts)


# -- longgenbench ------------------------------------------------------------------------------------------------------


def longgenbench(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Share of the questions, the first of which is number 9, whose own answer ("Answer_9:") ends in the reference.

    Commas do not count. Source: as `longgenbench_compat`, without its slips.
    """
    said = {int(number): text for number, text in _ANSWER.findall(prediction)}
    right = [_last(said.get(FIRST + at, "")) == _last(gold) != "" for at, gold in enumerate(references)]
    return sum(right) / len(right)


def longgenbench_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Share of the answers that end in the reference, in their order: questions that have none do not count.

    An answer without a number gives the place of its question, and commas of the reference stay.
    Source: Dominic789654/LongGenBench longgenbench_GSM8K_openai.py `process_question`, `parse_pred_ans`, `test_answer`.
    """
    answers = [text.strip() for text in _FIRST.findall("\n".join(prediction.split("Answer_")))]
    both = list(zip(references, answers, strict=False))
    right = [_last(f"Q_{at}\n{text}") == _DIGITS.findall(gold)[-1] for at, (gold, text) in enumerate(both)]
    return sum(right) / len(right) if right else 0.0


def _last(text: str) -> str:
    """The last number of a text, "" for none."""
    found = _DIGITS.findall(text.replace(",", ""))
    return found[-1] if found else ""
