"""Distributions of what was observed of a datum, the rest integrated out exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
)

from ppgen.pair import unadapted

from .gaussian import LowRankNormal
from .levels import LogisticMixture
from .mixture import Mixture

__all__ = ["Marginal", "marginal"]


class Marginal(TorchDistribution):
    r"""A distribution of which only the observed elements are scored.

    .. math:: p(x_{\text{observed}}) = \int p(x) \, \mathrm{d} x_{\text{missing}}

    It draws and averages whole objects, as the distribution behind it does; :meth:`complete` fills the missing
    elements given the observed ones. Made by :func:`marginal`.

    Args:
        whole: the distribution of whole objects.
        mask: True where an element was observed; its axes in front of the event broadcast with the batch.

    Example:
        >>> whole = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
        >>> marginal(whole, torch.tensor([True, False, False])).log_prob(torch.zeros(3))  # one of three
        tensor(-0.9189)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, whole: Distribution, mask: Tensor) -> None:
        self.whole: Any = whole
        self.observed_at = mask
        event_dim = len(whole.event_shape)
        lead = mask.shape[: mask.dim() - event_dim]
        super().__init__(torch.broadcast_shapes(whole.batch_shape, lead), whole.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch declares a class attribute
        return self.whole.has_rsample

    @property
    def support(self) -> Any:
        return self.whole.support

    @property
    def mean(self) -> Tensor:
        return self.whole.mean.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Marginal:
        return type(self)(self.whole.expand(torch.Size(batch_shape)), self.observed_at)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.whole.expand(self.batch_shape).sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.whole.expand(self.batch_shape).rsample(torch.Size(sample_shape))

    def complete(self, value: Tensor, *, mean: bool = False) -> Tensor:
        r"""The object with its missing elements drawn from p(missing | observed), or at their conditional mean.

        Args:
            value: (\*, \*event), of which the missing elements are ignored.
            mean: the conditional mean in place of a draw.

        Shape:
            batch and event of the distribution.
        """
        raise NotImplementedError


class _Elementwise(Marginal):
    """Elements that are independent of each other: those that are missing are left out of the sum."""

    def log_prob(self, value: Tensor) -> Tensor:
        elements = self.whole.base_dist if isinstance(self.whole, Independent) else self.whole
        log_prob = elements.log_prob(self._within(elements, value))
        log_prob = torch.where(self.observed_at, log_prob, torch.zeros_like(log_prob))
        return log_prob.sum(tuple(range(-self.event_dim, 0))) if self.event_dim else log_prob

    def _within(self, elements: Distribution, value: Tensor) -> Tensor:
        """The value with something that can be scored where it is missing: no density there may spoil the gradient."""
        filled = torch.where(self.observed_at, value, torch.zeros_like(value))
        try:
            support: Any = elements.support
            inside = support is None or bool(support.check(value.new_zeros(())).all())
        except NotImplementedError:
            inside = True
        return filled if inside else torch.where(self.observed_at, value, elements.mean.detach())

    def complete(self, value: Tensor, *, mean: bool = False) -> Tensor:
        return torch.where(self.observed_at, value, self.mean if mean else self.sample())


class _Pixelwise(Marginal):
    """Pixels that are independent of each other, each with all its channels or with none."""

    def __init__(self, whole: LogisticMixture, mask: Tensor) -> None:
        if not bool((mask == mask[..., :1, :, :]).all()):
            raise ValueError(
                "mask: some pixels were observed in some of their channels only, and the channels of a mixture of "
                "discretized logistics depend on each other: mask whole pixels, or take decoders.DiscretizedLogistic."
            )
        super().__init__(whole, mask)

    def log_prob(self, value: Tensor) -> Tensor:
        pixels = self.whole.log_prob_of_pixels(torch.where(self.observed_at, value, torch.zeros_like(value)))
        return torch.where(self.observed_at[..., 0, :, :], pixels, torch.zeros_like(pixels)).sum((-1, -2))

    def complete(self, value: Tensor, *, mean: bool = False) -> Tensor:
        return torch.where(self.observed_at, value, self.mean if mean else self.sample())


class _Gaussian(Marginal):
    r"""A multivariate normal; a missing element becomes a standard normal of its own, whose density is taken off.

    With M the diagonal matrix of the mask, the covariance is :math:`M \Sigma M + (I - M)`, so that a batch of different
    patterns stays one batch of matrices.
    """

    def _observed(self) -> MultivariateNormal | LowRankNormal:
        """The density of the deviations of observed elements, with standard normals in the others' places."""
        whole, mask = self.whole, self.observed_at
        zero = torch.zeros_like(whole.loc)
        if isinstance(whole, LowRankMultivariateNormal):
            factor = torch.where(mask.unsqueeze(-1), whole.cov_factor, torch.zeros_like(whole.cov_factor))
            diagonal = torch.where(mask, whole.cov_diag, torch.ones_like(whole.cov_diag))
            return LowRankNormal(zero, factor, diagonal, validate_args=False)
        covariance = whole.covariance_matrix
        both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        identity = torch.eye(mask.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return MultivariateNormal(zero, torch.where(both, covariance, identity), validate_args=False)

    def _deviation(self, value: Tensor, loc: Tensor) -> Tensor:
        return torch.where(self.observed_at, value - loc, torch.zeros_like(loc))

    def log_prob(self, value: Tensor) -> Tensor:
        observed = self._observed()
        log_prob = observed.log_prob(self._deviation(value, self.whole.loc))
        missing = (~self.observed_at).sum(-1).to(log_prob.dtype)
        return log_prob + 0.5 * math.log(2 * math.pi) * missing

    def complete(self, value: Tensor, *, mean: bool = False) -> Tensor:
        # Matheron's rule: a draw of everything, moved by the regression of its error on what was observed, is a draw
        # given what was observed; the mean moved so is the conditional mean.
        prior = self.mean if mean else self.sample()
        precision = self._observed().precision_matrix
        error = self._deviation(value, prior)
        solved = torch.where(self.observed_at, (precision @ error.unsqueeze(-1)).squeeze(-1), torch.zeros_like(error))
        moved = prior + (self.whole.covariance_matrix @ solved.unsqueeze(-1)).squeeze(-1)
        return torch.where(self.observed_at, value, moved)


class _Mixed(Marginal):
    """A mixture whose components can be marginalised."""

    def __init__(self, whole: Mixture, mask: Tensor) -> None:
        super().__init__(whole, mask)
        self.components = marginal(whole.components, mask.unsqueeze(-1 - self.event_dim))
        self.observed = Mixture(whole.logits, self.components, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.observed.log_prob(value)

    def complete(self, value: Tensor, *, mean: bool = False) -> Tensor:
        every = value.unsqueeze(-1 - self.event_dim)  # before each component
        log_joint = self.whole.logits.log_softmax(-1) + self.components.log_prob(every)
        # Expanded, since a mixture that was keeps the shape of its parameters: rows must not share their draws.
        shape = (*self.batch_shape, log_joint.shape[-1])
        completed = self.components.expand(shape).complete(every, mean=mean)  # (*, K, *event)
        if mean:
            chosen = log_joint.softmax(-1)
        else:
            index = Categorical(logits=log_joint).sample()
            chosen = torch.nn.functional.one_hot(index, log_joint.shape[-1]).to(completed.dtype)
        weights = chosen.reshape(*chosen.shape, *[1] * self.event_dim)
        return torch.where(self.observed_at, value, (weights * completed).sum(-1 - self.event_dim))


def marginal(distribution: Any, mask: Tensor | None) -> Any:
    r"""The distribution of the observed elements, the missing ones integrated out exactly.

    Exact for what factorises over elements (or pixels), for multivariate normals, and for mixtures of these.

    Args:
        distribution: a torch, Pyro or zuko distribution of batch shape \* and some event.
        mask: True where an element was observed, of shape (\*, \*event); None where everything was, which gives the
            distribution itself.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask of another shape than the event's, or a distribution whose elements depend on each other in a
            way that has no closed-form marginal (a flow, an autoregressive network).

    Example:
        >>> normal = torch.distributions.Normal(torch.zeros(3), 1.0)
        >>> d = marginal(torch.distributions.Independent(normal, 1), torch.tensor([True, False, False]))
        >>> bool(d.log_prob(torch.tensor([1.0, float("nan"), 7.0])) == normal.log_prob(torch.ones(3))[0])
        True
    """
    if mask is None:
        return distribution
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a boolean tensor, True where x was observed, got {mask.dtype}.")
    inner = unadapted(distribution)
    event = tuple(inner.event_shape)
    if tuple(mask.shape[mask.dim() - len(event) :]) != event:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, which does not end in the event {event} that it masks.")
    if isinstance(inner, MixtureSameFamily):
        inner = Mixture(inner.mixture_distribution.logits, inner.component_distribution, validate_args=False)
    if not event or (isinstance(inner, Independent) and not inner.base_dist.event_shape):
        return _Elementwise(inner, mask)
    if isinstance(inner, MultivariateNormal | LowRankMultivariateNormal):
        return _Gaussian(inner, mask)
    if isinstance(inner, Mixture):
        return _Mixed(inner, mask)
    if isinstance(inner, LogisticMixture):
        return _Pixelwise(inner, mask)
    if isinstance(inner, dist.Delta) and inner.event_dim == len(event):
        raise ValueError("mask: a Delta has no density whose missing elements could be integrated out.")
    raise ValueError(
        f"mask: {type(inner).__name__} has no exact marginal, since its elements depend on each other and the missing "
        "ones cannot be integrated out. Take a decoder that factorises over elements (Bernoulli, Normal, Categorical, "
        "DiscretizedLogistic) or a Gaussian, or drop the rows that are incomplete."
    )
