"""The engine of this process: a model from transformers, whose caches methods replace.

Read first: session.py (one model, ready for any method), then work.py (a method at work on a case), contexts.py
(contexts compressed, forked, asked), prefill.py (the full cache beside it, computed once for all methods), meter.py
(what is held). What enters: how this engine does what kvcheck/backends/base.py asks for; nothing that makes prompts or
grades.
"""

from kvcheck.backends.transformers.distributed import follow, open_engine
from kvcheck.backends.transformers.session import Session

__all__ = ["Session", "follow", "open_engine"]
