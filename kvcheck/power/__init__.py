"""How much does the gate see, and does it keep what it promises? Simulated runs on recorded answers. No model.

Read `runs.py` first. recorded.py reads the baselines; resample.py draws the records of a simulated run, noise.py and
losses.py change them; judging.py judges them as a run does. coverage.py looks at the intervals, needed.py counts the
contexts that a loss needs, reach.py lists the tests that cannot fail; sections.py, tables.py and report.py say it.
"""

from kvcheck.power.noise import ANOTHER_MACHINE, IDENTICAL, Noise
from kvcheck.power.recorded import Recorded, load
from kvcheck.power.report import Plan, measure

__all__ = ["ANOTHER_MACHINE", "IDENTICAL", "Noise", "Plan", "Recorded", "load", "measure"]
