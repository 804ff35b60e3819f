"""One-hot latents, discrete or relaxed, from logits: what their prior and their posterior share."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.numbers import positive_integer

from .univariate import RelaxedOneHot


def event_shape(num_categories: int, num_latents: int | None) -> tuple[int, ...]:
    """(L, K), or (K,) for a single latent that can be enumerated."""
    categories = positive_integer("num_categories", num_categories)
    return (categories,) if num_latents is None else (positive_integer("num_latents", num_latents), categories)


def check_temperature(temperature: float | None) -> None:
    """Raises a ValueError unless the temperature is positive and finite, or None."""
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number or None (no relaxation), got {temperature}.")


def distribution(logits: Tensor, event_dim: int, temperature: float | None) -> Distribution:
    """Independent one-hot variables from logits (*, L, K) or (*, K), relaxed if a temperature is given."""
    if temperature is None:
        return dist.OneHotCategorical(logits=logits).to_event(event_dim - 1)
    tau = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    return RelaxedOneHot(tau, logits=logits).to_event(event_dim - 1)
