"""What runs the cases: prefill, fork, ask, decode."""

from kvcheck.engine.base import Engine, OnBlock, Progress, Timer
from kvcheck.engine.led import follow, open_engine
from kvcheck.engine.session import Session

__all__ = ["Engine", "OnBlock", "Progress", "Session", "Timer", "follow", "open_engine"]
