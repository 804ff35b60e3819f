"""What others' errors say, for the errors that name the cause in their own words."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException) -> str:
    """The first line in which an error says something, without the shapes or the stack behind it; or what it is."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
