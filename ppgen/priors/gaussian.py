"""Gaussian priors and mixtures of Gaussians."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import posteriors
from ppgen.distributions import LOG_SCALE_RANGE, Mixture, diagonal_normal
from ppgen.numbers import interval, positive_integer


class StandardNormal(nn.Module):
    r"""Standard normal.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114

    Args:
        latent_dim: number of coordinates of z.

    Shape:
        batch: (), event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class DiagNormal(nn.Module):
    r"""Gaussian with a learned mean and a learned diagonal covariance.

    .. math:: p(z) = \mathcal{N}\bigl(z; \mu, \mathrm{diag}(\sigma^2)\bigr)
        \quad\text{or}\quad p(z \mid y) = \mathcal{N}\bigl(z; \mu(y), \mathrm{diag}(\sigma^2(y))\bigr)

    References:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015),
        https://papers.nips.cc/paper/5775

    Args:
        latent_dim: number of coordinates of z.
        net: makes it p(z | y): gives μ and log σ, 2 · latent_dim outputs.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number, or a network of another width.

    Example:
        >>> from ppgen import nn
        >>> DiagNormal(3)().event_shape
        torch.Size([3])
        >>> DiagNormal(3, nn.MLP(10, 6))(torch.zeros(5, 10)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent_dim: int,
        net: nn.Module | None = None,
        *,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.log_scale_range = interval("log_scale_range", log_scale_range)
        if net is None:
            self.conditional = None
            self.loc = nn.Parameter(torch.zeros(latent_dim))
            self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.conditional = posteriors.DiagNormal(net, latent_dim, log_scale_range=log_scale_range)

    def forward(self, *context: Tensor) -> Distribution:
        if self.conditional is not None:
            return self.conditional(*context)
        return diagonal_normal(self.loc, self.log_scale, self.log_scale_range)


class MixtureOfGaussians(nn.Module):
    r"""Mixture of K learned Gaussians with diagonal covariances.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}\bigl(z; \mu_k, \mathrm{diag}(\sigma_k^2)\bigr)

    and with a network p(z | y), whose weights, means and scales all depend on y.

    References:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel and Smyth, 2016),
        https://enalisnick.github.io/dlgmm_workshop.pdf

    Args:
        num_components: K.
        latent_dim: number of coordinates of z.
        net: makes it p(z | y): gives the logits, all means and all log-scales, K(2 · latent_dim + 1) outputs.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number, or a network of another width.

    Example:
        >>> MixtureOfGaussians(10, 3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        num_components: int,
        latent_dim: int,
        net: nn.Module | None = None,
        *,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        self.num_components = positive_integer("num_components", num_components)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.log_scale_range = interval("log_scale_range", log_scale_range)
        if net is None:
            self.conditional = None
            self.logits = nn.Parameter(torch.zeros(num_components))
            self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
            self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))
        else:
            self.conditional = posteriors.MixtureOfGaussians(
                net, latent_dim, num_components=num_components, log_scale_range=log_scale_range
            )

    def forward(self, *context: Tensor) -> Distribution:
        if self.conditional is not None:
            return self.conditional(*context)
        return Mixture(self.logits, diagonal_normal(self.loc, self.log_scale, self.log_scale_range))
