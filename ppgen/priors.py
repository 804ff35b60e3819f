r"""Priors p(z), and p(z | y) where they take a context: modules whose ``forward(*y)`` returns a distribution."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import LOG_SCALE_RANGE, Mixture, NormalizingFlow, diagonal_normal
from ppgen.distributions._zuko import zuko
from ppgen.nn import as_shape, concat
from ppgen.nn.shapes import Shape, positive_integer

__all__ = ["Flow", "MixtureOfGaussians", "StandardNormal", "VampPrior"]


class StandardNormal(nn.Module):
    r"""Standard normal.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114

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
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class MixtureOfGaussians(nn.Module):
    r"""Mixture of K learned Gaussians with diagonal covariances.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}\bigl(z; \mu_k, \mathrm{diag}(\sigma_k^2)\bigr)

    References:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel and Smyth, 2016),
        https://enalisnick.github.io/dlgmm_workshop.pdf

    Args:
        num_components: K.
        latent_dim: number of coordinates of z.
        log_scale_range: where log σ is clamped to.

    Shape:
        batch: (), event: (latent_dim,).

    Raises:
        ValueError: a size that is not a positive whole number.

    Example:
        >>> MixtureOfGaussians(10, 3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, num_components: int, latent_dim: int, *, log_scale_range: tuple[float, float] = LOG_SCALE_RANGE
    ) -> None:
        super().__init__()
        self.num_components = positive_integer("num_components", num_components)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.log_scale_range = log_scale_range
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, *context: Tensor) -> Distribution:
        return Mixture(self.logits, diagonal_normal(self.loc, self.log_scale, self.log_scale_range))


class VampPrior(nn.Module):
    r"""Variational mixture of posteriors: the posterior, averaged over learned pseudo-inputs.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, q(z \mid u_k), \qquad \pi_k = 1 / K \text{ unless learned}

    Handed the guide's own posterior it shares it (``prior.posterior is posterior``); handed another it has an encoder
    of its own. Pseudo-inputs are kept in the data's range by a clamp, whose gradient includes its two ends (the
    published Hardtanh's does not: pseudo-inputs started from binary data would never move).

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Args:
        posterior: a conditional q(z | x) that scores values drawn elsewhere cheaply.
        pseudo_inputs: where the K pseudo-inputs start, (K, \*event), for example ``x_train[:500]``; or
        num_components: K, for free pseudo-inputs, which start at N(0.05, 0.01) of the range as published, and
        shape: their event shape; by default what ``posterior.net.in_shape`` states.
        low: least value of the data.
        high: greatest value of the data.
        learn_weights: whether the components' weights are learned, too.

    Shape:
        batch: (), event: (latent_dim,).

    Raises:
        ValueError: a posterior that does not score foreign values cheaply; neither or both ways of starting; values
            that are not finite or outside [low, high]; a posterior that takes inputs of another shape.

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
        shape: Shape | None = None,
        low: float = 0.0,
        high: float = 1.0,
        learn_weights: bool = False,
    ) -> None:
        super().__init__()
        if not getattr(posterior, "scores_foreign_values", True):
            name = type(posterior).__name__
            raise ValueError(
                f"A VampPrior scores values drawn elsewhere under each of its components, and posteriors.{name} does "
                "that slowly or not at all. Give it an encoder of its own: VampPrior(DiagNormal(...), ...)."
            )
        if not low < high:
            raise ValueError(f"low = {low} must be less than high = {high}: they are the range of the data.")
        if (pseudo_inputs is None) == (num_components is None):
            raise ValueError(
                "A VampPrior starts either from pseudo_inputs of shape (K, *event), such as x_train[:500], or from "
                f"num_components: give one of them, not {'neither' if pseudo_inputs is None else 'both'}."
            )
        stated = getattr(getattr(posterior, "net", None), "in_shape", None)
        if pseudo_inputs is None:
            shape = stated if shape is None else shape
            if shape is None:
                raise ValueError(
                    "Free pseudo-inputs need an event shape, and the posterior's network states none (in_shape): "
                    "give shape, for example shape=(1, 28, 28)."
                )
            size = (positive_integer("num_components", num_components), *as_shape(shape))
            start = low + (high - low) * (0.05 + 0.01 * torch.randn(size)).clamp(0, 1)
        else:
            start = _checked(pseudo_inputs, low, high)
        self.posterior = posterior
        self.pseudo_inputs = nn.Parameter(start)
        self.low, self.high = low, high
        if learn_weights:
            self.logits = nn.Parameter(torch.zeros(len(start)))
        else:
            self.register_buffer("logits", torch.zeros(len(start)), persistent=False)

    @property
    def latent_dim(self) -> int | None:
        """The posterior's."""
        return getattr(self.posterior, "latent_dim", None)

    def forward(self, *context: Tensor) -> Distribution:
        return Mixture(self.logits, self.posterior(self.pseudo_inputs.clamp(self.low, self.high)))


def _checked(pseudo_inputs: Tensor, low: float, high: float) -> Tensor:
    """A floating-point copy of the pseudo-inputs to start from, if they are fit for that."""
    start = pseudo_inputs.detach().clone()
    if not start.is_floating_point():
        start = start.to(torch.get_default_dtype())
    if start.dim() < 2 or not len(start):
        raise ValueError(
            f"pseudo_inputs must be a tensor of shape (K, *event) with K ≥ 1, but its shape is {tuple(start.shape)}."
        )
    if not start.isfinite().all():
        raise ValueError("pseudo_inputs must be finite, but some values are NaN or infinite: clean the data first.")
    if start.min() < low or start.max() > high:  # outside the clamp there is no gradient
        raise ValueError(
            f"pseudo_inputs must lie in [low, high] = [{low:g}, {high:g}], but run from {start.min():g} to "
            f"{start.max():g}: give the range of the data, for example low=0, high=255."
        )
    return start


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
        passes = min(2, latent_dim) if coupling else None
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
        flow = kind(
            positive_integer("latent_dim", latent_dim),
            context=context_dim,
            transforms=positive_integer("num_transforms", num_transforms),
            hidden_features=tuple(hidden),
            **options,
        )
        return cls(flow, conditional=context_dim > 0, latent_dim=latent_dim)

    def forward(self, *context: Tensor) -> Distribution:
        flow = self.flow(concat(*context)) if self.conditional else self.flow()
        if not isinstance(flow, zuko.distributions.NormalizingFlow):
            return flow
        # zuko's transforms go from the latent to the noise; what is drawn is then scored without another pass.
        return NormalizingFlow(flow.base, flow.transform.inv)
