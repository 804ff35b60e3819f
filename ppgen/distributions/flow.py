"""Normalizing flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from ppgen.numbers import natural_number, positive_integer, positive_integers

from ._zuko import zuko
from .drawn import Drawn


class NormalizingFlow(TorchDistribution):
    r"""Distribution of a transformed variable, which scores its own draw without an inverse.

    .. math:: z = f(\epsilon), \quad \epsilon \sim p(\epsilon), \quad
        \log q(z) = \log p(\epsilon) - \log \left| \det \frac{\partial f}{\partial \epsilon} \right|

    The transforms of posteriors go from noise to latent in one pass, and back slowly or not at all. So the flow
    remembers, for the tensor that it drew last, the noise and the log-determinant: that same tensor, unless it was
    edited in place, is scored exactly, cheaply, and with the gradients of all parameters, its own way from them
    included. Any other value goes through ``transform.inv``; so does ``z.clone()``, of which the gradient by z itself
    is to be had. What is remembered is shared with the copies that ``expand`` makes.

    torch's and zuko's own classes differ: torch's keeps the cache in the transform (and computes a log-determinant
    of its own), zuko's has none.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Args:
        base: distribution of the noise.
        transform: the transform :math:`f`; torch's, Pyro's or zuko's.

    Shape:
        batch and event of the base.

    Example:
        >>> base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
        >>> flow = NormalizingFlow(base, torch.distributions.ExpTransform()).expand((5, 2))
        >>> z = flow.rsample()
        >>> z.shape, flow.log_prob(z).shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base: Distribution, transform: Transform, validate_args: bool | None = None) -> None:
        self.base = base
        self.transform: Any = transform  # zuko gives every transform a method call_and_ladj
        self._drawn = Drawn()
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch declares a class attribute
        return self.base.has_rsample

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        codomain = self.transform.codomain
        extra = self.event_dim - codomain.event_dim
        return constraints.independent(codomain, extra) if extra > 0 else codomain

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> NormalizingFlow:
        new = type(self)(self.base.expand(torch.Size(batch_shape)), self.transform, validate_args=False)
        new._validate_args = self._validate_args
        new._drawn = self._drawn
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._push(self.base.sample(torch.Size(sample_shape)))

    def _push(self, noise: Tensor) -> Tensor:
        value, log_det = self.transform.call_and_ladj(noise)
        self._drawn.keep(value, noise, log_det)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if (drawn := self._drawn.of(value)) is not None:
            noise, log_det = drawn
        else:
            lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - self.event_dim])
            noise, log_det = self.transform.inv.call_and_ladj(value.expand(*lead, *self.event_shape))
            log_det = -log_det
        extra = self.event_dim - self.transform.domain.event_dim
        return self.base.log_prob(noise) - (log_det.flatten(-extra).sum(-1) if extra > 0 else log_det)

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("The mean of a normalizing flow has no closed form: average samples instead.")


class AffineFlow(NormalizingFlow):
    r"""Normalizing flow through an affine transform, whose mean is the transformed mean.

    .. math:: z = A \epsilon + b, \quad \mathrm{E}[z] = A \, \mathrm{E}[\epsilon] + b

    Args:
        base: distribution of the noise.
        transform: an affine transform.

    Example:
        >>> base = torch.distributions.Normal(torch.ones(3), torch.ones(3))
        >>> AffineFlow(base, torch.distributions.AffineTransform(0., 2.)).mean
        tensor([2., 2., 2.])
    """

    @property
    def mean(self) -> Tensor:
        return self.transform(self.base.mean)


def compose(*transforms: Transform) -> Transform:
    """Several transforms, the first one first, as one (zuko's, which computes each log-determinant on the way).

    Raises:
        ValueError: there is none.
    """
    if not transforms:
        raise ValueError("compose needs at least one transform, but none was given.")
    return zuko.transforms.ComposedTransform(*transforms)


def check_sizes(context_dim: int, hidden: Sequence[int]) -> None:
    """Makes sure that a flow's networks can be built: zuko's own errors do not say what is wrong.

    Raises:
        ValueError: a negative number of contexts, or widths that are no sequence of positive whole numbers.
    """
    natural_number("context_dim", context_dim)
    positive_integers("hidden", hidden)


def autoregressive(features: int, context_dim: int, num_transforms: int, hidden: Sequence[int]) -> nn.Module:
    r"""Affine autoregressive transforms (zuko's) of which each takes the features in the order opposite to the last.

    The module takes a context (\*, context_dim), or nothing if that is 0, and returns a transform that is one pass of
    its masked networks forwards, and ``features`` passes for each of its steps backwards. A posterior samples forwards
    (inverse autoregressive flow), a prior scores forwards (masked autoregressive flow).
    """
    order = torch.arange(positive_integer("features", features))
    check_sizes(context_dim, hidden)
    return zuko.lazy.LazyComposedTransform(
        *(
            zuko.flows.MaskedAutoregressiveTransform(
                features, context_dim, order=order if t % 2 == 0 else order.flip(0), hidden_features=tuple(hidden)
            )
            for t in range(positive_integer("num_transforms", num_transforms))
        )
    )


def spline(
    features: int, context_dim: int, num_transforms: int, hidden: Sequence[int], bins: int, *, autoregressive: bool
) -> nn.Module:
    r"""Monotone rational-quadratic splines (zuko's), coupling or autoregressive, from a context.

    Coupling: one half of the features given the other, in turn. It is zuko's masked transform of two passes, since its
    transform for couplings looks up indices at every call, which a GPU waits for.
    """
    bins = positive_integer("bins", bins)
    check_sizes(context_dim, hidden)
    index = torch.arange(positive_integer("features", features))
    return zuko.lazy.LazyComposedTransform(
        *(
            zuko.flows.MaskedAutoregressiveTransform(
                features,
                context_dim,
                passes=None if autoregressive else 2,
                order=index if t % 2 == 0 else index.flip(0),
                univariate=zuko.transforms.MonotonicRQSTransform,
                shapes=[(bins,), (bins,), (bins - 1,)],
                hidden_features=tuple(hidden),
            )
            for t in range(positive_integer("num_transforms", num_transforms))
        )
    )
