"""Whether numbers can be believed: the library's on cases that are known exactly, a user's on their own pair."""

from ppgen.check.ladder import RUNGS, Rung, climb
from ppgen.check.trust import Calibration, Trust, trust

__all__ = ["RUNGS", "Calibration", "Rung", "Trust", "climb", "trust"]
