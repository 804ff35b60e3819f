"""Univariate distributions that torch has in a form that fails at the ends of their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import softplus


class Bernoulli(dist.Bernoulli):
    """Bernoulli distribution that scores bytes, integers and booleans as it does floats.

    Example:
        >>> Bernoulli(logits=torch.zeros(2)).log_prob(torch.tensor([True, False]))
        tensor([-0.6931, -0.6931])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        # Torch's gives the precision of the value, and fails for what is not a float.
        return super().log_prob(value.to(torch.promote_types(value.dtype, self.logits.dtype)))


class ContinuousBernoulli(TorchDistribution):
    r"""Continuous Bernoulli distribution on [0, 1], exact for any logit.

    .. math:: p(x) = C(l) \, \sigma(l)^x (1 - \sigma(l))^{1 - x}, \qquad C(l) = \frac{l}{\tanh(l / 2)}

    torch's clamps the probability and so its constant: at a logit of 60 it is off by 1.3 nats, and its mean stops at
    0.937.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem and Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Args:
        logits: l, of any shape.

    Example:
        >>> ContinuousBernoulli(torch.zeros(3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> ContinuousBernoulli:
        new = ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _away_from_zero(self) -> tuple[Tensor, Tensor]:
        """Whether a logit is nearly zero, where series take over, and logits of which none is."""
        near = self.logits.abs() < 0.02
        return near, torch.where(near, 1.0, self.logits)

    @property
    def mean(self) -> Tensor:
        near, logits = self._away_from_zero()
        size = logits.abs()  # of a negative logit the mirror image, since exp(-logit) overflows
        upper = -(-size).expm1().reciprocal() - size.reciprocal()
        return torch.where(near, 0.5 + self.logits / 12, torch.where(logits > 0, upper, 1 - upper))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        near, logits = self._away_from_zero()
        log_norm = torch.where(near, math.log(2) + self.logits.square() / 12, (logits / (logits / 2).tanh()).log())
        return value * self.logits - softplus(self.logits) + log_norm

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        near, logits = self._away_from_zero()
        # The inverse distribution function for a positive logit; a negative one is its mirror image.
        size = logits.abs()
        u = torch.where(logits > 0, uniform, 1 - uniform)
        upper = 1 + (u + (1 - u) * (-size).exp()).clamp(min=torch.finfo(u.dtype).tiny).log() / size
        exact = torch.where(logits > 0, upper, 1 - upper)
        return torch.where(near, uniform + self.logits * uniform * (1 - uniform) / 2, exact).clamp(0, 1)
