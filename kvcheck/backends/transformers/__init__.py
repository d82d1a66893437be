"""What runs the cases: prefill, fork, ask, decode."""

from kvcheck.backends.base import Engine, OnBlock, Progress, Timer
from kvcheck.backends.transformers.distributed import follow, open_engine
from kvcheck.backends.transformers.session import Session

__all__ = ["Engine", "OnBlock", "Progress", "Session", "Timer", "follow", "open_engine"]
