"""Metrics of English prose: token F1 and the two ROUGE-L of the benchmarks (they are not the same)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = rf"[^\W{_CJK}]"  # a word character of a script that sets words apart
_TOKEN = re.compile(r"[a-z0-9]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str, article: str = " ") -> str:
    """SQuAD normalisation: lowercase, delete ASCII punctuation, replace articles, collapse whitespace.

    Punctuation is deleted, not spaced: "twenty-one" becomes "twentyone". `article` is what an article becomes: a space
    in LongBench, SCBench and InfiniteBench, nothing in longctx_bench's passkey test.
    """
    return " ".join(_ARTICLES.sub(article, text.lower().translate(_PUNCTUATION)).split())


def holds_words(text: str, piece: str) -> bool:
    """Whether the piece occurs in the text as whole words, with any whitespace between them; case counts.

    Chinese, Japanese and Korean edges need no boundary. A number is whole only outside of "112", "12.5" and "3,12".
    """
    words = piece.split()
    pattern = r"\s+".join(re.escape(word) for word in words)
    first, last = words[0][0], words[-1][-1]
    if re.match(WORD, first):
        pattern = (rf"(?<!{WORD})(?<!\d[.,])" if first.isdigit() else rf"(?<!{WORD})") + pattern
    if re.match(WORD, last):
        pattern += rf"(?!{WORD})(?![.,]\d)" if last.isdigit() else rf"(?!{WORD})"
    return re.search(pattern, text) is not None


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multiset of tokens; 0.0 without overlap."""
    overlap = (Counter(prediction) & Counter(reference)).total()
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(prediction), overlap / len(reference)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, reference: str) -> float:
    """Token F1 after SQuAD normalisation; no special case for yes and no.

    Source: LongBench metrics.py `qa_f1_score`, the same in SCBench and InfiniteBench.
    """
    return token_f1(normalize(prediction).split(), normalize(reference).split())


def first_line(text: str) -> str:
    """The answer that LongBench grades in its few-shot sets (trec, triviaqa, samsum): leading newlines off, one line.

    Source: LongBench eval.py.
    """
    return text.lstrip("\n").split("\n")[0]


def qa_f1_line(prediction: str, reference: str) -> float:
    """`qa_f1` of the answer's first line. Source: LongBench eval.py, triviaqa."""
    return qa_f1(first_line(prediction), reference)


def rouge_l_line(prediction: str, reference: str) -> float:
    """`rouge_l` of the answer's first line. Source: LongBench eval.py, samsum."""
    return rouge_l(first_line(prediction), reference)


def _sentences(text: str) -> list[list[str]]:
    """Split on full stops, then on spaces. A part of spaces only is kept as a sentence of one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _longest_common(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The places (in the first, in the second) of the words of one longest common subsequence, from its end.

    Which one, where several are equally long, decides the score: backwards from the end, equal words are taken, else
    the second is shortened unless shortening the first keeps a strictly longer subsequence.
    """
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row, left = table[-1], [0], 0
        for column, other in enumerate(second):
            left = above[column] + 1 if word == other else max(above[column + 1], left)
            row.append(left)
        table.append(row)
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            yield i, j
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L as package `rouge` 1.0.1 computes it: F over distinct words in the union of sentence-wise LCS.

    Not the classic measure: sentences end at full stops, nothing is lowercased, repetition and sentence order do not
    count. 0.0 for an empty prediction or one of full stops only, where the package raises and LongBench counts 0.
    Deviation: the package rebuilds the LCS by recursion, so a pair of long segments without a full stop (about 1,000
    steps) raises RecursionError and LongBench scores it 0; this loop has no such limit and scores it properly.
    Source: LongBench metrics.py `rouge_score`; lm-eval and KVzip use the same package.
    """
    hypothesis, gold = _sentences(prediction), _sentences(reference)
    if not hypothesis or not gold:
        return 0.0
    union: set[str] = set()
    for sentence in gold:
        for candidate in hypothesis:
            union |= {sentence[place] for place, _ in _longest_common(sentence, candidate)}
    recall = len(union) / len({word for sentence in gold for word in sentence})
    precision = len(union) / len({word for sentence in hypothesis for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def rouge_lsum(prediction: str, reference: str) -> float:
    """rougeLsum F as package rouge-score 0.1.2 computes it: lowercase, tokens [a-z0-9]+, sentences end at newlines.

    Per sentence of the reference, the places that it shares with any sentence of the answer count once, and no word
    more often than the answer has it. Not called from the package, which would bring nltk (tests compare the two).
    Source: SCBench compute_scores.py (through `evaluate`, which calls that package), InfiniteBench En.Sum.
    """
    answer, gold = ([_TOKEN.findall(line) for line in text.lower().split("\n")] for text in (prediction, reference))
    shared: Counter[str] = Counter()
    for line in gold:
        shared.update(line[at] for at in {place for own in answer for _, place in _longest_common(own, line)})
    words = Counter(token for line in answer for token in line)
    hits, recalled, given = (shared & words).total(), sum(map(len, gold)), words.total()
    if not hits:
        return 0.0
    precision, recall = hits / given, hits / recalled
    return 2 * precision * recall / (precision + recall)
