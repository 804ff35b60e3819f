"""One-hot latents, discrete or relaxed, from logits: what their prior and their posterior share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppgen.numbers import positive_integer


class RelaxedOneHot(dist.RelaxedOneHotCategorical):
    r"""Concrete distribution on the simplex, whose draws stay inside it.

    .. math:: z_k \propto \exp\bigl((l_k + g_k) / \tau\bigr), \qquad g_k \sim \mathrm{Gumbel}(0, 1)

    At low temperatures coordinates of torch's draws round to 0, whose logarithm is minus infinity; here they stop at
    the smallest positive number.

    References:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Args:
        temperature: τ.
        logits: l, shape (\*, K).

    Example:
        >>> RelaxedOneHot(torch.tensor(0.01), logits=torch.zeros(3)).rsample((100,)).min() > 0
        tensor(True)
    """

    # The simplex is checked to 1e-6, which the sum of float32 coordinates misses.
    support = constraints.independent(constraints.unit_interval, 1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        value = super().rsample(torch.Size(sample_shape))
        return value.clamp(min=torch.finfo(value.dtype).tiny)


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
