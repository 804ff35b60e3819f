"""Sides of a comparison that take turns in one process, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch


def in_turns(
    sides: dict[str, Callable[[], object]], *, rounds: int, steps: int, device: str = "cpu", limit: float = math.inf
) -> dict[str, list[float]]:
    """Milliseconds a step of each side: in each round every side, in a new order, takes so many steps in a row.

    Rounds end early, but not before the third, when the limit of seconds has passed: on a busy machine threads wait for
    each other. On a GPU the time is that between two CUDA events, so that it ends when the work has, and not when it
    is queued.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    began = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - began > limit:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(_milliseconds(sides[name], steps, device) / steps)
    return found


def seconds(function: Callable[[], object]) -> float:
    """The time of one call on the CPU."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _milliseconds(run: Callable[[], object], steps: int, device: str) -> float:
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(steps):
            run()
        return 1e3 * (time.perf_counter() - began)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(steps):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def ratio(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """The median over rounds of a side's time over the reference's of the same round, with its quartiles."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}
