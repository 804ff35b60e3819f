r"""Cases whose likelihoods are known exactly, from the simplest up: rungs that an estimator must stand on.

Each rung builds its own pairs and data. What it tests passes through ``change`` first, which leaves it as it is, or
breaks it, so that it can be seen that the rung notices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppgen.check.densities import autoregressive, discretized, flow_priors
from ppgen.check.exact import (
    bidirectional,
    bracketed,
    constant_weights,
    coverage,
    enumerable,
    exact_guide,
    mixture,
    perturbed_guide,
    quadrature,
)
from ppgen.check.invariance import chunking, num_processes, plate_scale
from ppgen.check.rung import Rung
from ppgen.inference.programs.seeds import seeded

__all__ = ["RUNGS", "Rung", "climb"]

RUNGS: dict[str, Callable[..., Rung]] = {
    rung.__name__: rung
    for rung in (
        exact_guide,
        constant_weights,
        perturbed_guide,
        coverage,
        mixture,
        enumerable,
        quadrature,
        flow_priors,
        discretized,
        autoregressive,
        bidirectional,
        bracketed,
        chunking,
        num_processes,
        plate_scale,
    )
}


def climb(name: str, *change: Any, seed: int = 0) -> Rung:
    """One rung of the ladder, by its name in :data:`RUNGS`; torch's generator is left as it was.

    Args:
        name: of the rung.
        change: what breaks it on purpose, if it takes that.
        seed: of parameters, data and noise.

    Example:
        >>> climb("mixture").passed
        True
    """
    with seeded(seed):
        return RUNGS[name](*change)
