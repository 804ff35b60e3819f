r"""Amortised posteriors q(z | x, y): a network in front of a distribution of the latent.

Each takes its network first. ``Posterior.num_outputs(latent_dim, ...)`` says how many outputs the network must have.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.flows.autoregressive import MaskedAutoregressiveTransform

from ppgen.distributions import TransformedSample
from ppgen.nn import feed

__all__ = ["IAF", "DiagNormal", "FullNormal", "Householder"]


def _check_width(name: str, net: nn.Module, needed: int, latent_dim: int) -> None:
    """Refuses a network that says it has another number of outputs."""
    out_shape = getattr(net, "out_shape", None)
    if out_shape is not None and tuple(out_shape) != (needed,):
        raise ValueError(
            f"{name} with latent_dim={latent_dim} needs a network with {needed} outputs, and this one has "
            f"{tuple(out_shape)}: make its last size {name}.num_outputs({latent_dim}, ...) = {needed}."
        )


def _split(name: str, outputs: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    if outputs.shape[-1] != sum(sizes):
        raise ValueError(f"{name} needs a network with {sum(sizes)} outputs, and this one gave {outputs.shape[-1]}.")
    return outputs.split(sizes, -1)


def _latent_dim(latent_dim: Any) -> int:
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim must be a positive whole number, got {latent_dim!r}.")
    return latent_dim


class DiagNormal(nn.Module):
    r"""Gaussian with a diagonal covariance.

    .. math:: q(z \mid x) = \mathcal{N}\bigl(z; \mu(x), \mathrm{diag}(\sigma^2(x))\bigr)

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Args:
        net: gives the means and the log standard deviations, 2 · latent_dim outputs.
        log_scale_range: where log σ is clamped to; the VampPrior paper has log σ² in [−6, 2], which is (−3, 1).

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: an odd number of outputs.

    Example:
        >>> from ppgen import nn
        >>> DiagNormal(nn.MLP(784, 300, 80))(torch.zeros(5, 784)).event_shape
        torch.Size([40])
    """

    scores_foreign_values = True

    def __init__(self, net: nn.Module, *, log_scale_range: tuple[float, float] = (-10.0, 10.0)) -> None:
        super().__init__()
        out_shape = getattr(net, "out_shape", None)
        if out_shape is not None and (len(out_shape) != 1 or out_shape[0] % 2):
            raise ValueError(
                f"DiagNormal needs a network with 2 · latent_dim outputs, and this one has {tuple(out_shape)}."
            )
        self.net = net
        self.log_scale_range = log_scale_range

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """How many outputs the network must have: 2 · latent_dim."""
        return 2 * _latent_dim(latent_dim)

    def forward(self, *context: Tensor) -> Distribution:
        outputs = feed(self.net, *context)
        if outputs.shape[-1] % 2:
            raise ValueError(
                f"DiagNormal needs a network with 2 · latent_dim outputs, and this one gave {outputs.shape[-1]}."
            )
        loc, log_scale = outputs.chunk(2, -1)
        return dist.Normal(loc, log_scale.clamp(*self.log_scale_range).exp()).to_event(1)


class FullNormal(nn.Module):
    r"""Gaussian with a full covariance, through its Cholesky factor.

    .. math:: q(z \mid x) = \mathcal{N}\bigl(z; \mu(x), L(x) L(x)^\top\bigr)

    References:
        Variational Inference in Nonconjugate Models (Challis & Barber, 2013: Cholesky parameters),
        https://jmlr.org/papers/v14/challis13a.html

    Args:
        net: gives the mean, the log diagonal of L and what is below it, d + d(d + 1)/2 outputs.
        latent_dim: d.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = FullNormal(nn.MLP(64, FullNormal.num_outputs(8)), 8)
        >>> q(torch.zeros(5, 64)).batch_shape
        torch.Size([5])
    """

    scores_foreign_values = True
    below: Tensor

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        _check_width("FullNormal", net, self.num_outputs(latent_dim), latent_dim)
        self.net = net
        self.latent_dim = latent_dim
        self.register_buffer("below", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """How many outputs the network must have: d + d(d + 1)/2."""
        d = _latent_dim(latent_dim)
        return d + d * (d + 1) // 2

    def forward(self, *context: Tensor) -> Distribution:
        d = self.latent_dim
        loc, log_diagonal, lower = _split("FullNormal", feed(self.net, *context), d, d, d * (d - 1) // 2)
        factor = torch.diag_embed(log_diagonal.clamp(-10, 10).exp())
        factor[..., self.below[0], self.below[1]] = lower
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False)


class Householder(nn.Module):
    r"""Diagonal Gaussian turned by T Householder reflections: a full covariance from few numbers, at no volume change.

    .. math::
        z = H_T \cdots H_1 (\mu + \sigma \odot \epsilon), \qquad
        H_t = I - 2 \frac{v_t v_t^\top}{\lVert v_t \rVert^2}, \qquad v_t = v_t(x)

    The reflections are Pyro's.

    References:
        Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016),
        https://arxiv.org/abs/1611.09630

    Args:
        net: gives μ, log σ and the T vectors, (2 + T) · latent_dim outputs.
        latent_dim: d.
        num_reflections: T.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = Householder(nn.MLP(64, Householder.num_outputs(8, num_reflections=4)), 8, num_reflections=4)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = True

    def __init__(self, net: nn.Module, latent_dim: int, *, num_reflections: int = 10) -> None:
        super().__init__()
        _check_width("Householder", net, self.num_outputs(latent_dim, num_reflections=num_reflections), latent_dim)
        self.net = net
        self.latent_dim = latent_dim
        self.num_reflections = num_reflections

    @staticmethod
    def num_outputs(latent_dim: int, *, num_reflections: int = 10) -> int:
        """How many outputs the network must have: (2 + T) · latent_dim."""
        return (2 + num_reflections) * _latent_dim(latent_dim)

    def forward(self, *context: Tensor) -> Distribution:
        d, count = self.latent_dim, self.num_reflections
        loc, log_scale, vectors = _split("Householder", feed(self.net, *context), d, d, d * count)
        base = dist.Normal(loc, log_scale.clamp(-10, 10).exp()).to_event(1)
        return TransformedSample(base, [ConditionedHouseholder(vectors.unflatten(-1, (count, d)))])


class IAF(nn.Module):
    r"""Inverse autoregressive flow: a diagonal Gaussian pushed through T affine autoregressive steps.

    .. math::
        z^{(0)} = \mu + \sigma \odot \epsilon, \qquad
        z^{(t)}_i = a_i\bigl(z^{(t-1)}_{<i}, h\bigr) z^{(t-1)}_i + b_i\bigl(z^{(t-1)}_{<i}, h\bigr)

    The network gives μ, log σ and a context h that enters every step; the order of the coordinates is reversed from
    step to step. A sample and its score take one pass; a value drawn elsewhere takes as many passes as there are
    dimensions, so it serves as the component of no VampPrior. The masked networks are zuko's.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Args:
        net: gives μ, log σ and h, 2 · latent_dim + context_dim outputs.
        latent_dim: d.
        context_dim: length of h.
        num_transforms: T.
        hidden: sizes of the masked networks' layers.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = IAF(nn.MLP(64, IAF.num_outputs(8, context_dim=16)), 8, context_dim=16)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = False  # exactly, but in latent_dim passes

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        context_dim: int = 64,
        num_transforms: int = 2,
        hidden: tuple[int, ...] = (128,),
    ) -> None:
        super().__init__()
        _check_width("IAF", net, self.num_outputs(latent_dim, context_dim=context_dim), latent_dim)
        self.net = net
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        forward = torch.arange(latent_dim)
        self.transforms = nn.ModuleList(
            MaskedAutoregressiveTransform(
                latent_dim,
                context_dim,
                order=forward if t % 2 == 0 else forward.flip(0),
                hidden_features=hidden,
            )
            for t in range(num_transforms)
        )

    @staticmethod
    def num_outputs(latent_dim: int, *, context_dim: int = 64) -> int:
        """How many outputs the network must have: 2 · latent_dim + context_dim."""
        return 2 * _latent_dim(latent_dim) + context_dim

    def forward(self, *context: Tensor) -> Distribution:
        d = self.latent_dim
        loc, log_scale, h = _split("IAF", feed(self.net, *context), d, d, self.context_dim)
        base = dist.Normal(loc, log_scale.clamp(-10, 10).exp()).to_event(1)
        return TransformedSample(base, [transform(h) for transform in self.transforms])
