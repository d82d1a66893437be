"""Our own words for the prompts, slot by slot in the benchmarks' order; used where the upstream file is not at hand.

They carry the name `kvcheck/v1` in records. Changing one needs a new name.
"""

from __future__ import annotations

import json

_PASSAGES = (
    "Several passages follow, and one question comes after them. Reply with the bare answer.\n\n"
    "{context}\n\nReply with the bare answer to this question about the passages.\n\nQuestion: {input}\nAnswer:"
)

LONGBENCH = {
    "narrativeqa": "A story follows; it may be a book or a film script. A question about it comes last. Reply with a "
    "few words and explain nothing.\n\nStory: {context}\n\nReply with a few words and explain nothing.\n\n"
    "Question: {input}\n\nAnswer:",
    "qasper": "A research paper follows, and a question about it. Reply with one phrase or one sentence; reply "
    '"unanswerable" where the paper does not say, and "yes" or "no" where that is what is asked.\n\n'
    "Article: {context}\n\nReply to the question about this paper under the same rules.\n\n"
    "Question: {input}\n\nAnswer:",
    "multifieldqa_en": "A text follows. Reply shortly to the question about it.\n\n{context}\n\nReply with the bare "
    "answer.\n\nQuestion: {input}\nAnswer:",
    "multifieldqa_zh": "下面是一篇文章，读完后用中文作简短回答。\n\n{context}\n\n只写出答案本身。\n\n"
    "问题：{input}\n回答：",
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "dureader": "下面是一些文章，读完后回答一个问题。\n\n文章：{context}\n\n问题与以上文章有关。\n\n"
    "问题：{input}\n回答：",
    "gov_report": "An official report follows; sum it up on about one page.\n\nReport:\n{context}\n\nSum the report up "
    "on about one page.\n\nSummary:",
    "qmsum": "The transcript of a meeting follows, and a request about it. Reply with one sentence or a few.\n\n"
    "Transcript:\n{context}\n\nReply to the request about this meeting with one sentence or a few.\n\n"
    "Query: {input}\nAnswer:",
    "multi_news": "News articles follow; sum all of them up on about one page.\n\nNews:\n{context}\n\nSum all the "
    "articles up on about one page.\n\nSummary:",
    "vcsum": "下面是会议的记录，读完后概括它的内容。\n会议记录：\n{context}\n\n会议总结：",
    "trec": "Name the type of the last question, as the examples do.\n\n{context}\n{input}",
    "triviaqa": "Reply with the bare answer found in the last passage, as the examples do.\n\n{context}\n\n{input}",
    "samsum": "Sum the last dialogue up in a few sentences, as the examples do.\n\n{context}\n\n{input}",
    "lsht": "判断最后一条新闻的类别，写法与例子相同。\n\n{context}\n{input}",
    "passage_count": "Paragraphs follow, and some of them occur more than once. Count the different ones.\n\n{context}"
    "\n\nReply with that count as a bare number.\n\nThe final answer is: ",
    "passage_retrieval_en": "Thirty numbered paragraphs follow, then a summary of one of them. Find out which.\n\n"
    '{context}\n\nThe summary:\n\n{input}\n\nReply with the paragraph in the form "Paragraph 1".\n\nThe answer is: ',
    "passage_retrieval_zh": "下面是编号的段落，最后是其中一段的摘要，请找出是哪一段。\n\n{context}\n\n"
    "摘要：\n\n{input}\n\n按“段落1”的格式回答。\n\n答案是：",
    "lcc": "Continue this code by one line.\n{context}Next line of code:\n",
    "repobench-p": "Continue this code by one line.\n{context}{input}Next line of code:\n",
}

_BOOK = "A book follows, and a question about it.{how}\n\n{{context}}\n\nQuestion: {{question}}\n"
_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\n"
_KV = "Find the value of a key in this JSON object.\n\n{context}\n\n{input}"
_PLAIN = "{context}\n\n{input}"
_BOOK_ZH = "下面是一本书，读完后回答问题。\n\n{context}\n\n问题：{question}\n答案："
_HIDDEN = (
    "Somewhere in this long text something important is hidden. Remember it, it will be asked for."
    "\n\n{context}\n\n{input}"
)

SCBENCH = {
    "scbench_kv": _KV,
    "scbench_prefix_suffix": _PLAIN,
    "scbench_vt": _PLAIN,
    "scbench_repoqa": "Find the function that is described and repeat it exactly, in a code block between ``` marks."
    "\n\n{context}\n\n{input}",
    "scbench_qa_eng": _BOOK.format(how=" Use as few words as you can.") + "Answer:",
    "scbench_qa_chn": _BOOK_ZH,
    "scbench_choice_eng": _BOOK.format(how="") + _OPTIONS + "The correct answer is",
    "scbench_many_shot": _PLAIN,
    "scbench_mf": "{prefix}\n\n{context}\n\n{input}",
    "scbench_summary": _PLAIN,
    "scbench_summary_with_needles": _PLAIN,
    "scbench_repoqa_and_kv": _PLAIN,
}

INFINITEBENCH = {
    "passkey": _HIDDEN + "\n\nThe pass key is",
    "number_string": _HIDDEN + "\n\nThe sequence of digits is",
    "kv_retrieval": _KV,
    "longbook_sum_eng": "Sum this book up.\n\n{context}\n\nSummary:",
    "longbook_choice_eng": _BOOK.format(how="") + _OPTIONS + "The correct letter is",
    "longbook_qa_eng": _BOOK.format(how=" Use as few words as you can.") + "Answer:",
    "longbook_qa_chn": _BOOK_ZH,
    "math_find": "{prefix}\n\n{context}\n\n{input}",
    "math_calc": "Write down the value after every step of an expression.\n\nExpression: 2 + 5 - 3\nValues: [2, 7, 4]"
    "\n\nExpression: {context}\nValues:",
    "code_run": "The Python code below defines a function {func}.\n\n{context}\n\nWork out {func_call} exactly. "
    "The value of {func_call} is",
    "code_debug": "A mistake was put into one function of this Python code; it fails when it runs.\n\n{context}\n\n"
    "Options:\n" + _OPTIONS + "The correct option is:",
    "longdialogue_qa_eng": 'In this script one name has been replaced by "$$MASK$$"; find out whose it is.\n\n{context}'
    "\n\nThe name behind $$MASK$$ is most likely",
}

LONGBENCH_V2 = (
    "Read this document, then choose the answer to a question about it.\n\n<text>\n$DOC$\n</text>\n\nQuestion: $Q$\n"
    "Choices:\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
    'Reply in the form "The correct answer is (X)".'
)

NIAH_PASSKEY = json.dumps(
    {
        "eval_params": {
            "instruction": "One number is hidden in this long text. Keep it in mind, it is asked for at the end.\n",
            "retrieval_target_template": "The hidden number is <KEY>. Do not forget it: <KEY>.",
            "retrieval_target_placeholder": "<KEY>",
            "retrieval_question": "\nWhich number is hidden? The hidden number is ",
        }
    }
)
NIAH_SENTENCE = (
    "Read this text. A question about it comes at its end.\n\n{context}\n\nWhat is the best thing to do in {city}? "
    "Reply with what the text says, and with nothing else."
)

GSM8K = "Q: {context}\nA: Let's think step by step."
LONGGENBENCH = (
    "Work out every question below in steps, in the form of the examples: begin each answer with its Answer_ number, "
    'and end it with "The answer is". Do not write the questions again, and leave none out.'
)
_JARS = [(number, 2 * number, 3 * number) for number in range(1, 9)]
LONGGENBENCH_EXAMPLES = "\n\n".join(
    [f"Question_{at}: \nA jar has {at} pens, and {more} are put in. How many are there?" for at, more, _ in _JARS]
    + [f"Answer_{at}:\nThere are {at} + {more} = {all_} pens.\nThe answer is {all_}." for at, more, all_ in _JARS]
)
LONGMEMEVAL = (
    "Chats between you and a user follow. Reply to the question with what they say.\n\nChats:\n\n{context}\n\n"
    "Today: {date}\nQuestion: {question}\nAnswer:"
)
