"""A rung of the ladder: what was measured in an exact case, and what it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Change", "Rung", "unchanged"]

Change = Callable[[Any], Any]


def unchanged(part: Any) -> Any:
    """What every rung is shown with, unless it shall be seen to notice what is broken."""
    return part


class Rung(NamedTuple):
    """What was measured in an exact case, and what it may be.

    Attributes:
        name: of the case.
        quantity: what was measured, in words.
        measured: its value; nats where nothing else is said.
        bound: the largest value that passes, or the smallest.
        at_least: whether the bound is the smallest.
    """

    name: str
    quantity: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the bound holds. Not for NaN."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}  {self.name}: {self.quantity} {self.measured:.3g}, {relation} {self.bound:g}"
