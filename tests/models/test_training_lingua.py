"""The script that made the token classifier of LLMLingua-2: what it takes for needed, and that it is repeatable."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from kvcheck.core import paths
from kvcheck.fixtures.training import lingua
from kvcheck.fixtures.training.seeds import TRAIN_SEED
from kvcheck.fixtures.training.tokenizer import build_tokenizer
from kvcheck.models.encoder import Encoder
from kvcheck.tasks import TASKS

FOLDER = paths.bundle("fixtures") / "llmlingua"
ENCODER = Encoder(build_tokenizer())


def test_training_is_the_same_every_time() -> None:
    tokenizer = lingua.classifier_tokenizer()
    recipe = lingua.Recipe(steps=2, rows=1, shortest=300, longest=310)
    one, two = (lingua.train(recipe, tokenizer)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_mark_the_evidence_of_all_questions_and_nothing_else() -> None:
    tokenizer = lingua.classifier_tokenizer()
    sample = TASKS.get("needle_multi").generate(TRAIN_SEED, 0, 400, ENCODER)
    ids, labels = lingua.labelled(sample, tokenizer)
    assert ids == ENCODER.encode(sample.context)
    marked = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label])
    spans = sorted({span for turn in sample.turns for span in turn.evidence})
    assert marked == "".join(sample.context[start:end] for start, end in spans)


def test_where_a_task_names_no_evidence_every_clause_with_an_answer_counts() -> None:
    sample = TASKS.get("few_shot").generate(TRAIN_SEED, 0, 400, ENCODER)
    clauses = [sample.context[start:end] for start, end in lingua.needed(sample)]
    answers = {turn.references[0] for turn in sample.turns}
    assert len(clauses) == 6 * len(answers)
    assert all(any(f"group {answer};" in clause for answer in answers) for clause in clauses)


def test_the_shipped_classifier_is_small_and_has_the_tokens_of_the_embedded_model() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    vocabulary = ENCODER.tokenizer.get_vocab()
    assert {piece: at for piece, at in tokenizer.get_vocab().items() if at < len(vocabulary)} == vocabulary
    weights = load_file(FOLDER / "model.safetensors")
    assert weights["bert.embeddings.word_embeddings.weight"].shape[0] == len(vocabulary) + 3
