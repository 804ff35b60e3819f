"""Gaussian posteriors: diagonal, full, low-rank and reflected covariances, and mixtures."""

from __future__ import annotations

import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import distributions
from ppgen.distributions import LOG_SCALE_RANGE, AffineFlow, Mixture, diagonal_normal, transforms
from ppgen.nn import feed
from ppgen.numbers import interval, positive_integer

from .outputs import check_width, split


class DiagNormal(nn.Module):
    r"""Gaussian with a diagonal covariance.

    .. math:: q(z \mid x) = \mathcal{N}\bigl(z; \mu(x), \mathrm{diag}(\sigma^2(x))\bigr)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114

    Args:
        net: gives the means and the log standard deviations, 2 · latent_dim outputs.
        latent_dim: number of coordinates of z; by default half of the network's outputs.
        log_scale_range: where log σ is clamped to; the VampPrior paper has log σ² in [−6, 2], which is (−3, 1).

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: an odd number of outputs, or another than 2 · latent_dim.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> DiagNormal(nn.MLP(784, 300, 80))(torch.zeros(5, 784)).event_shape
        torch.Size([40])
    """

    scores_foreign_values = True

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int | None = None,
        *,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        if latent_dim is None and (out_shape := getattr(net, "out_shape", None)) is not None:
            latent_dim = max(1, out_shape[0] // 2)
        if latent_dim is not None:
            check_width(f"DiagNormal of latent_dim {latent_dim}", net, self.num_outputs(latent_dim))
        self.net = net
        self.latent_dim = latent_dim
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """How many outputs the network must have: 2 · latent_dim."""
        return 2 * positive_integer("latent_dim", latent_dim)

    def forward(self, *context: Tensor) -> Distribution:
        outputs = feed(self.net, *context)
        d = self.latent_dim or max(1, outputs.shape[-1] // 2)
        loc, log_scale = split("DiagNormal", outputs, d, d)
        return diagonal_normal(loc, log_scale, self.log_scale_range)


class FullNormal(nn.Module):
    r"""Gaussian with a full covariance, through its Cholesky factor.

    .. math:: q(z \mid x) = \mathcal{N}\bigl(z; \mu(x), L(x) L(x)^\top\bigr)

    A draw is scored by its noise, exactly. A value from elsewhere, and a draw that is scored once more with parameters
    held (``dreg``, ``sticking_the_landing``), is solved for, as far as the condition of L lets float32: in many
    dimensions take ``elbo`` or ``iwae``, or double precision.

    References:
        Gaussian Kullback-Leibler Approximate Inference (Challis and Barber, 2013),
        https://jmlr.org/papers/v14/challis13a.html

    Args:
        net: gives the mean, the log diagonal of L and what is below it, d + d(d + 1)/2 outputs.
        latent_dim: d.
        log_scale_range: where the log diagonal of L is clamped to.

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

    def __init__(
        self, net: nn.Module, latent_dim: int, *, log_scale_range: tuple[float, float] = LOG_SCALE_RANGE
    ) -> None:
        super().__init__()
        check_width(f"FullNormal of latent_dim {latent_dim}", net, self.num_outputs(latent_dim))
        self.net = net
        self.latent_dim = latent_dim
        self.log_scale_range = interval("log_scale_range", log_scale_range)
        self.register_buffer("below", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """How many outputs the network must have: d + d(d + 1)/2."""
        d = positive_integer("latent_dim", latent_dim)
        return d + d * (d + 1) // 2

    def forward(self, *context: Tensor) -> Distribution:
        d = self.latent_dim
        loc, log_diagonal, lower = split("FullNormal", feed(self.net, *context), d, d, d * (d - 1) // 2)
        factor = torch.diag_embed(log_diagonal.clamp(*self.log_scale_range).exp())
        factor[..., self.below[0], self.below[1]] = lower
        return distributions.FullNormal(loc, factor, validate_args=False)


class LowRankNormal(nn.Module):
    r"""Gaussian with a covariance of low rank plus a diagonal.

    .. math:: q(z \mid x) = \mathcal{N}\bigl(z; \mu(x), W(x) W(x)^\top + \mathrm{diag}(\sigma^2(x))\bigr),
        \qquad W(x) \in \mathbb{R}^{d \times r}

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende et al., 2014),
        https://arxiv.org/abs/1401.4082

    Args:
        net: gives the mean, log σ and W, d(2 + r) outputs.
        latent_dim: d.
        rank: r.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = LowRankNormal(nn.MLP(64, LowRankNormal.num_outputs(8, rank=2)), 8, rank=2)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = True

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        rank: int = 4,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, rank=rank)
        check_width(f"LowRankNormal of latent_dim {latent_dim} with rank {rank}", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.rank = rank
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int, *, rank: int = 4) -> int:
        """How many outputs the network must have: d(2 + r)."""
        return positive_integer("latent_dim", latent_dim) * (2 + positive_integer("rank", rank))

    def forward(self, *context: Tensor) -> Distribution:
        d, r = self.latent_dim, self.rank
        loc, log_scale, factor = split("LowRankNormal", feed(self.net, *context), d, d, d * r)
        variance = (2 * log_scale.clamp(*self.log_scale_range)).exp()
        return distributions.LowRankNormal(loc, factor.unflatten(-1, (d, r)), variance, validate_args=False)


class Householder(nn.Module):
    r"""Diagonal Gaussian turned by T Householder reflections.

    A full covariance from few numbers, with no change of volume:

    .. math::
        z = H_T \cdots H_1 (\mu + \sigma \odot \epsilon), \qquad
        H_t = I - 2 \frac{v_t v_t^\top}{\lVert v_t \rVert^2}, \qquad v_t = v_t(x)

    The reflections are Pyro's. The network's outputs move :math:`v_t` away from the t-th coordinate axis.

    References:
        Improving Variational Auto-Encoders using Householder Flow (Tomczak and Welling, 2016),
        https://arxiv.org/abs/1611.09630

    Args:
        net: gives μ, log σ and the T vectors, (2 + T) · latent_dim outputs.
        latent_dim: d.
        num_reflections: T.
        log_scale_range: where log σ is clamped to.

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

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_reflections: int = 10,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, num_reflections=num_reflections)
        check_width(f"Householder of latent_dim {latent_dim} with {num_reflections} reflections", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.num_reflections = num_reflections
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int, *, num_reflections: int = 10) -> int:
        """How many outputs the network must have: (2 + T) · latent_dim."""
        return (2 + positive_integer("num_reflections", num_reflections)) * positive_integer("latent_dim", latent_dim)

    def forward(self, *context: Tensor) -> Distribution:
        d, count = self.latent_dim, self.num_reflections
        loc, log_scale, vectors = split("Householder", feed(self.net, *context), d, d, d * count)
        base = diagonal_normal(loc, log_scale, self.log_scale_range)
        normals = transforms.reflection_vectors(vectors.unflatten(-1, (count, d)))
        return AffineFlow(base, ConditionedHouseholder(normals))


class MixtureOfGaussians(nn.Module):
    r"""Mixture of K diagonal Gaussians.

    .. math:: q(z \mid x) = \sum_{k=1}^{K} \pi_k(x) \, \mathcal{N}\bigl(z; \mu_k(x), \mathrm{diag}(\sigma_k^2(x))\bigr)

    A draw carries the exact pathwise gradient of all parameters, the weights included, so one draw serves every
    objective; a gradient through the chosen component alone would leave the weights without one, and stratifying
    over the components takes a decoder pass for each.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al., 2021),
        https://arxiv.org/abs/2003.01687
        Implicit Reparameterization Gradients (Figurnov et al., 2018), https://arxiv.org/abs/1805.08498

    Args:
        net: gives the weights' logits, then all means, then all log-scales, K(2d + 1) outputs.
        latent_dim: d.
        num_components: K.
        log_scale_range: where the log-scales are clamped to.

    Shape:
        batch: leading axes of the context, event: (latent_dim,).

    Raises:
        ValueError: a network of another width.

    Example:
        >>> from ppgen import nn
        >>> q = MixtureOfGaussians(nn.MLP(64, MixtureOfGaussians.num_outputs(8)), 8)
        >>> q(torch.zeros(5, 64)).event_shape
        torch.Size([8])
    """

    scores_foreign_values = True

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_components: int = 5,
        log_scale_range: tuple[float, float] = LOG_SCALE_RANGE,
    ) -> None:
        super().__init__()
        needed = self.num_outputs(latent_dim, num_components=num_components)
        check_width(f"MixtureOfGaussians of latent_dim {latent_dim}, {num_components} components", net, needed)
        self.net = net
        self.latent_dim = latent_dim
        self.num_components = num_components
        self.log_scale_range = interval("log_scale_range", log_scale_range)

    @staticmethod
    def num_outputs(latent_dim: int, *, num_components: int = 5) -> int:
        """How many outputs the network must have: K(2d + 1)."""
        d = positive_integer("latent_dim", latent_dim)
        return positive_integer("num_components", num_components) * (2 * d + 1)

    def forward(self, *context: Tensor) -> Distribution:
        k, d = self.num_components, self.latent_dim
        logits, loc, log_scale = split("MixtureOfGaussians", feed(self.net, *context), k, k * d, k * d)
        loc, log_scale = loc.unflatten(-1, (k, d)), log_scale.unflatten(-1, (k, d))
        return Mixture(logits, diagonal_normal(loc, log_scale, self.log_scale_range))
