"""What the two papers found about KV cache methods, measured on this model: `pytest --kv-findings`.

"KV Cache Compression, But What Must We Give in Return?" (arXiv 2407.01527) and SCBench (arXiv 2412.10319). Every number
is a mean over the same contexts for all methods, with its 95 % interval. The direction is asserted where the embedded
model shows it; what it does not show is measured and printed, not asserted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcheck.plugin.findings import KvFinding

STRINGS = ("kv", "prefix_suffix")
QUESTIONS = ("qa_single", "qa_multi")
RETRIEVAL = (*STRINGS, *QUESTIONS)
ALL = (*RETRIEVAL, "code_completion", "few_shot", "needle_multi", "summary")
EXACT = ("prefix_suffix", "path_trace")
FIRST, LATER = slice(0, 1), slice(1, None)


def test_four_bits_are_nearly_free_and_two_are_not(kv_finding: KvFinding) -> None:
    """4-bit quantization is nearly free and 2-bit is not (2407.01527)."""
    four, two = (kv_finding.drop(f"kivi:bits={bits}", ALL, "multi_turn") for bits in (4, 2))
    kv_finding.below("KIVI at 4 bits loses, all tasks", four, 2)
    kv_finding.measured("2 bits lose more than 4 bits, all tasks", two - four)
    four, two = (kv_finding.drop(f"kivi:bits={bits}", EXACT, "multi_request") for bits in (4, 2))
    kv_finding.above("the same where every character counts", two - four)


def test_eviction_holds_the_first_turn_and_loses_later_ones(kv_finding: KvFinding) -> None:
    """Sub-O(n) memory holds the first turn and loses later ones, O(n) memory holds them (SCBench)."""
    first, later = (kv_finding.drop("snapkv", RETRIEVAL, "multi_turn", turns) for turns in (FIRST, LATER))
    kv_finding.measured("SnapKV loses in turn 1", first)
    kv_finding.above("SnapKV loses more in later turns than in turn 1", later - first)
    for method in ("kivi:bits=4", "retrieval_attention"):
        kept = kv_finding.drop(method, RETRIEVAL, "multi_turn", LATER)
        kv_finding.below(f"{method} loses in later turns", kept, 5)
        lost = later - kept
        kv_finding.above(f"SnapKV loses more there than {method}", lost)


def test_dynamic_sparsity_beats_a_static_pattern(kv_finding: KvFinding) -> None:
    """Dynamic sparsity beats a static pattern (SCBench)."""
    static, dynamic = (kv_finding.scores(one, RETRIEVAL, "multi_turn", FIRST) for one in ("a_shape", "minference"))
    kv_finding.above("MInference above A-shape (prefill), turn 1", dynamic - static)
    static, dynamic = (kv_finding.scores(one, QUESTIONS, "multi_turn") for one in ("streaming_llm", "quest"))
    kv_finding.above("Quest above StreamingLLM (decoding), all turns", dynamic - static)


def test_tri_shape_repairs_the_first_turn_of_a_shape(kv_finding: KvFinding) -> None:
    """Tri-shape repairs the first turn of A-shape and not the next ones (SCBench)."""
    a, tri = (kv_finding.scores(one, RETRIEVAL, "multi_turn", FIRST) for one in ("a_shape", "tri_shape"))
    kv_finding.above("tri-shape above A-shape, turn 1", tri - a)
    later_a, later_tri = (kv_finding.scores(one, RETRIEVAL, "multi_turn", LATER) for one in ("a_shape", "tri_shape"))
    kv_finding.above("that gain in turn 1 above the gain in later turns", (tri - a) - (later_tri - later_a))
    kv_finding.measured("tri-shape above A-shape, later turns", later_tri - later_a)


def test_a_question_that_is_visible_at_compression_flatters_snapkv(kv_finding: KvFinding) -> None:
    """A question that is visible at compression flatters SnapKV (SCBench)."""
    seen, unseen = (kv_finding.scores("snapkv", RETRIEVAL, mode, FIRST) for mode in ("multi_turn", "multi_request"))
    kv_finding.above("SnapKV with the question visible above hidden", seen - unseen)


def test_a_larger_budget_is_better(kv_finding: KvFinding) -> None:
    """What eviction loses shrinks with the budget (2407.01527)."""
    less, more = (kv_finding.scores(f"snapkv:budget={budget}", RETRIEVAL, "multi_turn") for budget in (0.25, 0.75))
    kv_finding.above("SnapKV at 75 % of the slots above 25 %", more - less)


def test_prompt_compression_hurts_retrieval_and_code_before_qa(kv_finding: KvFinding) -> None:
    """Prompt compression hurts few-shot, code and retrieval before QA (2407.01527)."""
    answers, strings, code, shots = (
        kv_finding.drop("llmlingua2", tasks, "multi_request")
        for tasks in (QUESTIONS, STRINGS, ("code_completion", "code_function"), ("few_shot", "many_shot"))
    )
    kv_finding.measured("LLMLingua-2 loses in QA", answers)
    kv_finding.above("it loses more in string retrieval", strings - answers)
    kv_finding.above("it loses more in code", code - answers)
    kv_finding.measured("it loses more in few-shot", shots - answers)


def test_a_windowed_architecture_keeps_what_its_full_layers_find(kv_finding: KvFinding) -> None:
    """A linear or windowed architecture loses string retrieval (SCBench); a few full layers keep it (2409.15012)."""
    kv_finding.measured(
        "MixAttention loses in string retrieval",
        kv_finding.drop("mixattention", STRINGS, "multi_turn"),
    )
    kv_finding.measured("it loses in QA", kv_finding.drop("mixattention", QUESTIONS, "multi_turn"))
    kv_finding.above(
        "it loses in the extremes of an array", kv_finding.drop("mixattention", ("math_find",), "multi_turn")
    )
    kv_finding.above(
        "StreamingLLM, a window everywhere, loses there",
        kv_finding.drop("streaming_llm", STRINGS, "multi_turn"),
    )
