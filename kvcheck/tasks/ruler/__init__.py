"""The 13 tasks of RULER, generated offline for any tokenizer and any length from 512 tokens up.

Counts, slots, limits and metrics are RULER's; the wording and the filler are kvcheck's own, so scores are not RULER's.
See docs/reference/ruler.md.
"""

from __future__ import annotations

from kvcheck.tasks.ruler import counting, niah, qa, tracing

TASKS = (*niah.TASKS, *tracing.TASKS, *counting.TASKS, *qa.TASKS)
