"""Posteriors whose flow is a network of its own, which the encoder's context enters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution

from ppgen.distributions import LOG_SCALE_RANGE, NormalizingFlow, compose, diagonal_normal
from ppgen.distributions.flow import autoregressive, spline
from ppgen.nn import feed
from ppgen.numbers import interval, positive_integer

from .outputs import check_width, split


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
        context_dim: width of h.
        num_transforms: T.
        hidden: widths of the hidden layers of each step's masked network.
        log_scale_range: where log σ is clamped to.

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

    scores_foreign_values = False

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        context_dim: int = 64,
        num_transforms: int = 2,
        hidden: Sequence[int] = (128,),
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, context_dim=context_dim)
        check_width(f"IAF of latent_dim {latent_dim} with context_dim {context_dim}", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.log_scale_range = interval("log_scale_range", log_scale_range)
        self.transform = autoregressive(latent_dim, context_dim, num_transforms, hidden)

    @staticmethod
    def num_outputs(latent_dim: int, *, context_dim: int = 64) -> int:
        """How many outputs the network must have: 2 · latent_dim + context_dim."""
        return 2 * positive_integer("latent_dim", latent_dim) + positive_integer("context_dim", context_dim)

    def forward(self, *context: Tensor) -> Distribution:
        d = self.latent_dim
        loc, log_scale, h = split("IAF", feed(self.net, *context), d, d, self.context_dim)
        return NormalizingFlow(diagonal_normal(loc, log_scale, self.log_scale_range), self.transform(h))


class Spline(nn.Module):
    r"""Neural spline flow: monotone rational-quadratic splines on standardised noise.

    .. math:: z = \mu + \sigma \odot f(\epsilon; h), \qquad f = f_T \circ \dots \circ f_1

    The network gives μ, log σ and a context h that enters every step. The splines act on [-5, 5] and are the identity
    outside, so the affine map comes last. They and their masked networks are zuko's. A sample and its score take one
    pass; a value drawn elsewhere takes two for couplings, and as many as there are dimensions otherwise, each through
    the flow's networks for every value and component: a VampPrior is better off with an encoder of its own.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Args:
        net: gives μ, log σ and h, 2 · latent_dim + context_dim outputs.
        latent_dim: d.
        context_dim: width of h.
        num_transforms: T.
        autoregressive: whether each step is autoregressive; otherwise one half of the coordinates is transformed given
            the other, in turn.
        bins: pieces of each spline.
        hidden: widths of the hidden layers of each step's network.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = Spline(nn.MLP(64, Spline.num_outputs(8, context_dim=16)), 8, context_dim=16)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = False

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        context_dim: int = 64,
        num_transforms: int = 2,
        autoregressive: bool = False,
        bins: int = 8,
        hidden: Sequence[int] = (128,),
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, context_dim=context_dim)
        check_width(f"Spline of latent_dim {latent_dim} with context_dim {context_dim}", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.log_scale_range = interval("log_scale_range", log_scale_range)
        self.transform = spline(latent_dim, context_dim, num_transforms, hidden, bins, autoregressive=autoregressive)

    @staticmethod
    def num_outputs(latent_dim: int, *, context_dim: int = 64) -> int:
        """How many outputs the network must have: 2 · latent_dim + context_dim."""
        return 2 * positive_integer("latent_dim", latent_dim) + positive_integer("context_dim", context_dim)

    def forward(self, *context: Tensor) -> Distribution:
        d = self.latent_dim
        loc, log_scale, h = split("Spline", feed(self.net, *context), d, d, self.context_dim)
        noise = diagonal_normal(torch.zeros_like(loc), torch.zeros_like(loc))
        scale = log_scale.clamp(*self.log_scale_range).exp()
        return NormalizingFlow(noise, compose(self.transform(h), AffineTransform(loc, scale, event_dim=1)))
