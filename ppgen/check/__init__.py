"""Whether numbers can be believed: the library's on cases that are known exactly, a user's on their own pair."""

from ppgen.check.ladder import RUNGS, Rung, climb

__all__ = ["RUNGS", "Rung", "climb"]
