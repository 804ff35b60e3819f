r"""Priors p(z), and p(z | y) where they take a context: modules whose ``forward(*y)`` returns a distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import Mixture
from ppgen.nn import concat

__all__ = ["Flow", "MixtureOfGaussians", "StandardNormal", "VampPrior"]


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
    return value


class StandardNormal(nn.Module):
    r"""Standard normal, :math:`p(z) = \mathcal{N}(z; 0, I)`.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Args:
        latent_dim: number of coordinates of z.

    Shape:
        batch: (), event: (latent_dim,).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(_count("latent_dim", latent_dim)), persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class MixtureOfGaussians(nn.Module):
    r"""Mixture of K learned Gaussians with diagonal covariances.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}\bigl(z; \mu_k, \mathrm{diag}(\sigma_k^2)\bigr)

    References:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel & Smyth, 2016),
        https://enalisnick.github.io/dlgmm_workshop.pdf

    Args:
        num_components: K.
        latent_dim: number of coordinates of z.

    Shape:
        batch: (), event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number.

    Example:
        >>> MixtureOfGaussians(10, 3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_components: int, latent_dim: int) -> None:
        super().__init__()
        shape = (_count("num_components", num_components), _count("latent_dim", latent_dim))
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, *context: Tensor) -> Distribution:
        return Mixture(self.logits, dist.Normal(self.loc, self.log_scale.clamp(-10, 10).exp()).to_event(1))


class VampPrior(nn.Module):
    r"""Variational mixture of posteriors: the posterior, averaged over learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^{K} q(z \mid u_k)

    Handed the guide's own posterior it shares it (``prior.posterior is posterior``); handed another it has an encoder
    of its own. Pseudo-inputs are kept in the data's range by a clamp, whose gradient includes its two ends (the
    published Hardtanh's does not: pseudo-inputs started from binary data would never move).

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Args:
        posterior: a conditional q(z | x) that scores values drawn elsewhere.
        pseudo_inputs: where the K pseudo-inputs start, (K, \*event), for example ``x_train[:500]``; or
        num_components: K, and
        shape: the event shape of x, for free pseudo-inputs, which start at N(0.05, 0.01) as published.
        low: least value of the data.
        high: greatest value of the data.

    Shape:
        batch: (), event: (latent_dim,).

    Raises:
        ValueError: a posterior that cannot score foreign values in one pass; neither or both ways of starting; values
            outside [low, high].

    Example:
        >>> from ppgen import nn, posteriors
        >>> q = posteriors.DiagNormal(nn.MLP(64, 6))
        >>> VampPrior(q, torch.zeros(10, 64))().event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        posterior: nn.Module,
        pseudo_inputs: Tensor | None = None,
        *,
        num_components: int | None = None,
        shape: int | tuple[int, ...] | None = None,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        if not getattr(posterior, "scores_foreign_values", True):
            raise ValueError(
                f"A VampPrior scores values drawn elsewhere under its posterior, and {type(posterior).__name__} does "
                "that in as many passes as there are dimensions, if at all: give it an encoder of its own, "
                "VampPrior(posteriors.DiagNormal(...), ...)."
            )
        if (pseudo_inputs is None) == (num_components is None or shape is None):
            raise ValueError(
                "A VampPrior starts from pseudo_inputs (K, *event) or from num_components and shape: give one of them."
            )
        if pseudo_inputs is None:
            assert num_components is not None and shape is not None
            size = (shape,) if isinstance(shape, int) else tuple(shape)
            width = high - low
            pseudo_inputs = low + width * (0.05 + 0.01 * torch.randn(_count("num_components", num_components), *size))
        start = pseudo_inputs.detach().to(torch.get_default_dtype()).clone()
        if start.dim() < 2 or not start.isfinite().all():
            raise ValueError(
                f"pseudo_inputs must be finite and of shape (K, *event), got shape {tuple(start.shape)}"
                f"{'' if start.isfinite().all() else ' with values that are not finite'}."
            )
        if start.min() < low or start.max() > high:
            # A clamped start outside the range would have no gradient.
            if num_components is None:
                raise ValueError(
                    f"pseudo_inputs run from {start.min():g} to {start.max():g}, outside [low, high] = "
                    f"[{low:g}, {high:g}]: give the range of the data as low and high."
                )
            start = start.clamp(low, high)
        self.posterior = posterior
        self.pseudo_inputs = nn.Parameter(start)
        self.low, self.high = low, high

    def forward(self, *context: Tensor) -> Distribution:
        components = self.posterior(self.pseudo_inputs.clamp(self.low, self.high))
        return Mixture(self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)), components)


class Flow(nn.Module):
    r"""Any of zuko's normalizing flows as a prior.

    .. math:: p(z) = p_\epsilon(f(z)) \left| \det \frac{\partial f}{\partial z} \right|

    References:
        Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021),
        https://arxiv.org/abs/1912.02762
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    Args:
        flow: for example ``zuko.flows.MAF(40)``, ``zuko.flows.RealNVP(40)`` or ``zuko.flows.NSF(40)``; with a context,
            ``zuko.flows.MAF(40, context=10)``, it is p(z | y).
        conditional: whether the flow takes y.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Example:
        >>> import zuko
        >>> Flow(zuko.flows.MAF(3, transforms=2))().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, flow: nn.Module, *, conditional: bool = False) -> None:
        super().__init__()
        self.flow = flow
        self.conditional = conditional

    def forward(self, *context: Tensor) -> Distribution:
        return self.flow(concat(*context)) if self.conditional else self.flow()
