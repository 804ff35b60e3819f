"""Gaussians from the unbounded numbers that networks give and parameters hold."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

# Where log-scales are clamped to: wide enough for any posterior, narrow enough for float32.
LOG_SCALE_RANGE = (-10.0, 10.0)


def diagonal_normal(loc: Tensor, log_scale: Tensor, log_scale_range: tuple[float, float] = LOG_SCALE_RANGE) -> Any:
    """N(loc, exp(log_scale)²) with independent coordinates, the log-scale clamped."""
    return dist.Normal(loc, log_scale.clamp(*log_scale_range).exp()).to_event(1)
