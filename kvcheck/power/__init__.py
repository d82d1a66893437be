"""Do the statistics keep what they promise? Simulated runs on recorded per-context scores. No torch, no model.

Read `runs.py` first. recorded.py reads the baselines; noise.py and resample.py make the records of a simulated run;
judging.py judges them as a run does, runs.py whole runs of them; needed.py counts the contexts that a drop needs;
coverage.py looks at the intervals; sections.py, tables.py and report.py say what was found.
"""

from kvcheck.power.noise import ANOTHER_MACHINE, IDENTICAL, ONE_WAY, Noise
from kvcheck.power.recorded import Recorded, load
from kvcheck.power.report import Plan, measure

__all__ = ["ANOTHER_MACHINE", "IDENTICAL", "ONE_WAY", "Noise", "Plan", "Recorded", "load", "measure"]
