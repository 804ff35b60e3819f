"""Priors that are normalizing flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import NormalizingFlow, diagonal_normal
from ppgen.distributions._zuko import zuko
from ppgen.distributions.flow import autoregressive, check_sizes
from ppgen.nn import concat
from ppgen.nn.shapes import check_event
from ppgen.numbers import positive_integer


class Flow(nn.Module):
    r"""Normalizing flow, any of zuko's.

    .. math:: p(z) = p_\epsilon(f(z)) \left| \det \frac{\partial f}{\partial z} \right|

    :meth:`realnvp`, :meth:`maf` and :meth:`nsf` build the usual ones; any other is passed in. RealNVP and the coupling
    spline score and sample in one pass; the autoregressive ones (MAF, NSF) sample in as many as there are dimensions.

    References:
        Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021),
        https://arxiv.org/abs/1912.02762

    Args:
        flow: for example ``zuko.flows.MAF(40)``, ``zuko.flows.RealNVP(40)`` or ``zuko.flows.NSF(40)``; with a context,
            ``zuko.flows.MAF(40, context=10)``, it is p(z | y).
        conditional: whether the flow takes y.
        latent_dim: number of coordinates of z, if it shall be known before the first call.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Raises:
        TypeError: something else than a flow.
        ValueError: a size that is not a positive whole number, or a conditional flow called without y or with one of
            another width.

    Example:
        >>> import zuko
        >>> Flow(zuko.flows.MAF(3, transforms=2))().sample((5,)).shape
        torch.Size([5, 3])
        >>> Flow.realnvp(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, flow: nn.Module, *, conditional: bool = False, latent_dim: int | None = None) -> None:
        super().__init__()
        if not isinstance(flow, nn.Module):
            raise TypeError(f"flow must be one of zuko's flows, such as zuko.flows.MAF(40), got {flow!r}.")
        self.flow = flow
        self.conditional = conditional
        self.latent_dim = latent_dim
        self.context_dim: int | None = None  # of y, where that is known

    @classmethod
    def realnvp(
        cls, latent_dim: int, *, context_dim: int = 0, num_transforms: int = 4, hidden: Sequence[int] = (128,)
    ) -> Flow:
        """Affine coupling flow: Density estimation using Real NVP (Dinh et al., 2017), arXiv 1605.08803."""
        return cls._of(zuko.flows.RealNVP, latent_dim, context_dim, num_transforms, hidden)

    @classmethod
    def maf(
        cls, latent_dim: int, *, context_dim: int = 0, num_transforms: int = 2, hidden: Sequence[int] = (128,)
    ) -> Flow:
        """Masked autoregressive flow (Papamakarios et al., 2017), arXiv 1705.07057."""
        return cls._of(zuko.flows.MAF, latent_dim, context_dim, num_transforms, hidden)

    @classmethod
    def nsf(
        cls,
        latent_dim: int,
        *,
        context_dim: int = 0,
        num_transforms: int = 2,
        hidden: Sequence[int] = (128,),
        coupling: bool = False,
        bins: int = 8,
    ) -> Flow:
        """Neural spline flow, autoregressive or coupling (Durkan et al., 2019), arXiv 1906.04032."""
        passes = min(2, positive_integer("latent_dim", latent_dim)) if coupling else None
        positive_integer("bins", bins)
        return cls._of(zuko.flows.NSF, latent_dim, context_dim, num_transforms, hidden, bins=bins, passes=passes)

    @classmethod
    def _of(
        cls,
        kind: type[nn.Module],
        latent_dim: int,
        context_dim: int,
        num_transforms: int,
        hidden: Sequence[int],
        **options: int | None,
    ) -> Flow:
        check_sizes(context_dim, hidden)
        flow = kind(
            positive_integer("latent_dim", latent_dim),
            context=context_dim,
            transforms=positive_integer("num_transforms", num_transforms),
            hidden_features=tuple(hidden),
            **options,
        )
        prior = cls(flow, conditional=context_dim > 0, latent_dim=latent_dim)
        prior.context_dim = context_dim
        return prior

    def forward(self, *context: Tensor) -> Distribution:
        flow = self.flow(self._joined(context)) if self.conditional else self.flow()
        if not isinstance(flow, zuko.distributions.NormalizingFlow):
            return flow
        # zuko's transforms go from the latent to the noise; what is drawn is then scored without another pass.
        return NormalizingFlow(flow.base, flow.transform.inv)

    def _joined(self, context: Sequence[Tensor]) -> Tensor:
        if not context:
            raise ValueError("A conditional flow p(z | y) was called without y: give prior(y), a batch (x, y).")
        y = concat(*context)
        if self.context_dim is not None:
            check_event(y, (self.context_dim,), "the context of priors.Flow")
        return y


class Autoregressive(nn.Module):
    r"""Autoregressive prior: noise after T affine autoregressive steps, the inverse of an IAF posterior.

    .. math:: \epsilon = f_T \circ \dots \circ f_1(z) \sim \mathcal{N}(0, I), \qquad
        f_t(z)_i = a_i(z_{<i}) z_i + b_i(z_{<i})

    A VAE with this prior and a Gaussian posterior is one with a standard normal prior and an IAF posterior whose
    decoder looks through the inverse. Scoring takes one pass, sampling as many as there are dimensions. With as many
    transforms of the same width it is the distribution of :meth:`Flow.maf`.

    References:
        Variational Lossy Autoencoder (Chen et al., 2017), https://arxiv.org/abs/1611.02731

    Args:
        latent_dim: number of coordinates of z.
        context_dim: makes it p(z | y): numbers that y brings.
        num_transforms: T.
        hidden: widths of the hidden layers of each step's masked network.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number.

    Example:
        >>> Autoregressive(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    zeros: Tensor

    def __init__(
        self, latent_dim: int, *, context_dim: int = 0, num_transforms: int = 2, hidden: Sequence[int] = (128,)
    ) -> None:
        super().__init__()
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.context_dim = context_dim
        self.transform = autoregressive(latent_dim, context_dim, num_transforms, hidden)
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        noise, c = diagonal_normal(self.zeros, self.zeros), None
        if self.context_dim:
            c = concat(*context)
            check_event(c, (self.context_dim,), "the context of priors.Autoregressive")
            noise = noise.expand(c.shape[:-1])
        return NormalizingFlow(noise, self.transform(c).inv)
