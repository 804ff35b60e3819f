"""Gaussians of diagonal, full and low-rank covariance, whose densities keep their digits in float32."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from .drawn import Drawn

# Where log-scales are clamped to: wide enough for any posterior, narrow enough for float32.
LOG_SCALE_RANGE = (-10.0, 10.0)


def diagonal_normal(loc: Tensor, log_scale: Tensor, log_scale_range: tuple[float, float] = LOG_SCALE_RANGE) -> Any:
    """N(loc, exp(log_scale)²) with independent coordinates, the log-scale clamped."""
    return dist.Normal(loc, log_scale.clamp(*log_scale_range).exp()).to_event(1)


class FullNormal(dist.MultivariateNormal):
    r"""Gaussian with a full covariance :math:`L L^\top`, which remembers the noise of its draw.

    .. math:: z = \mu + L \epsilon, \qquad
        \log q(z) = \log \mathcal{N}(\epsilon; 0, I) - \sum_i \log L_{ii}

    torch's class solves for the noise. How much of it is left then in float32 depends on the condition of L, which can
    grow exponentially with d: in 40 dimensions draws were scored wrong by thousands of nats. The very tensor that was
    drawn last is scored without; a value from elsewhere has to be solved for.

    Args:
        loc: μ, shape (\*, d).
        scale_tril: L, lower triangular with a positive diagonal, shape (\*, d, d).

    Shape:
        batch: leading axes of the parameters, broadcast; event: (d,).

    Example:
        >>> q = FullNormal(torch.zeros(3), torch.eye(3)).expand((5,))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        self._drawn = Drawn()
        super().__init__(loc, scale_tril=scale_tril, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FullNormal:
        new: FullNormal = super().expand(batch_shape, self.__new__(type(self)))
        new._drawn = self._drawn
        return new

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        value = self.loc + torch.einsum("...ij,...j->...i", self._unbroadcasted_scale_tril, noise)
        self._drawn.keep(value, noise)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if (drawn := self._drawn.of(value)) is None:
            return super().log_prob(value)
        log_det = torch.diagonal(self._unbroadcasted_scale_tril, dim1=-2, dim2=-1).log().sum(-1)
        log_prob = -log_det - (drawn[0].square().sum(-1) + value.shape[-1] * math.log(2 * math.pi)) / 2
        return log_prob.expand(torch.broadcast_shapes(self.batch_shape, log_prob.shape))


class LowRankNormal(dist.LowRankMultivariateNormal):
    r"""Gaussian with a covariance of low rank plus a diagonal, :math:`W W^\top + D`, a sum of squares.

    With :math:`D = \mathrm{diag}(\sigma^2)`, from the QR decomposition of W in units of the noise above the identity:

    .. math::
        Q R = \begin{pmatrix} \sigma^{-1} W \\ I \end{pmatrix}, \qquad
        (z - \mu)^\top \Sigma^{-1} (z - \mu)
        = \left\lVert (I - Q Q^\top) \begin{pmatrix} \sigma^{-1} (z - \mu) \\ 0 \end{pmatrix} \right\rVert^2, \qquad
        \det \Sigma = \det{}^2 R \prod_i \sigma_i^2

    torch's class takes a difference of squares, of which float32 keeps nothing where W is a thousand times the noise.

    Args:
        loc: μ, shape (\*, d).
        cov_factor: W, shape (\*, d, r).
        cov_diag: σ², shape (\*, d).

    Shape:
        batch: leading axes of the parameters, broadcast; event: (d,).

    Example:
        >>> LowRankNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)).log_prob(torch.zeros(2, 3))
        tensor([-3.4500, -3.4500])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        scale = self._unbroadcasted_cov_diag.sqrt()
        factor = self._unbroadcasted_cov_factor / scale.unsqueeze(-1)
        rank = factor.shape[-1]
        identity = torch.eye(rank, dtype=factor.dtype, device=factor.device).expand(*factor.shape[:-2], rank, rank)
        q, r = torch.linalg.qr(torch.cat([factor, identity], -2))
        left = pad((value - self.loc) / scale, (0, rank))
        for _ in range(2):  # the second time takes what rounding left of the first
            left = left - torch.einsum("...dr,...r->...d", q, torch.einsum("...dr,...d->...r", q, left))
        log_det = torch.diagonal(r, dim1=-2, dim2=-1).abs().log().sum(-1) + scale.log().sum(-1)
        return -log_det - (left.square().sum(-1) + value.shape[-1] * math.log(2 * math.pi)) / 2
