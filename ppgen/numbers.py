"""Numbers that people give: the value, or an error that names it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex

__all__ = [
    "finite_number",
    "interval",
    "natural_number",
    "positive_integer",
    "positive_integers",
    "positive_number",
    "several_levels",
]


def natural_number(name: str, value: object) -> int:
    """The value, if it is a whole number of at least 0; otherwise a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < 0:
        raise ValueError(f"{name} must be a whole number that is not negative, got {value!r}.")
    return operator.index(value)


def positive_integer(name: str, value: object) -> int:
    """The value, if it is a whole number of at least 1; otherwise a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
    return operator.index(value)


def positive_integers(name: str, values: Any) -> tuple[int, ...]:
    """The values, none or several, if each is a whole number of at least 1; otherwise a ValueError that names them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of positive whole numbers, such as (300, 300), got {values!r}.")
    return tuple(positive_integer(f"each of {name}", value) for value in values)


def several_levels(name: str, value: object) -> int:
    """The value, if it is a number of levels that can be told apart; otherwise a ValueError that names it."""
    if (number := positive_integer(name, value)) < 2:
        raise ValueError(f"{name} must be at least 2 (binary data), got {value!r}.")
    return number


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except TypeError:  # no number at all
        return False


def positive_number(name: str, value: Any) -> float:
    """The value, if it is a finite number above 0; otherwise a ValueError that names it."""
    if not (_is_finite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)


def finite_number(name: str, value: Any, *, least: float = -math.inf) -> float:
    """The value, if it is a finite number (of at least so much); otherwise a ValueError that names it."""
    if not (_is_finite(value) and value >= least):
        above = " that is not negative" if least == 0 else ""
        raise ValueError(f"{name} must be a finite number{above}, got {value!r}.")
    return float(value)


def interval(name: str, value: Any) -> tuple[float, float]:
    """The value, if it is two numbers of which the second is larger; otherwise a ValueError that names it."""
    try:
        low, high = (float(end) for end in value)
        good = low < high
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{name} must be two numbers (low, high), the second the larger one, got {value!r}.")
    return low, high
