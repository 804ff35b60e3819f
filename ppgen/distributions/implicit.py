r"""Values that can be drawn and have no density."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Implicit(TorchDistribution):
    r"""A value that a network made of noise, without a density: :math:`x = G(z)`, given z.

    It stands at the observed site of a program that can be sampled only. All values of G lie on a manifold with no more
    dimensions than z has, so that log p(x | z) is no number, and asking for it is an error that says so.

    References:
        Learning in Implicit Generative Models (Mohamed & Lakshminarayanan, 2016), https://arxiv.org/abs/1610.03483

    Args:
        value: what the network made.
        event_dim: how many of its last axes are one event.

    Shape:
        value: (\*batch, \*event).

    Example:
        >>> d = Implicit(torch.zeros(5, 1, 28, 28), event_dim=3)
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([1, 28, 28]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, value: Tensor, event_dim: int) -> None:
        self.value = value
        cut = value.dim() - event_dim
        super().__init__(value.shape[:cut], value.shape[cut:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Implicit:
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        return Implicit(self.value.expand(shape + self.event_shape), len(self.event_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.value.expand(torch.Size(sample_shape) + self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise TypeError(
            "There is no log p(x | z) here: x is what a network makes of z, so it can be drawn and has no density, and "
            "with it there is neither a likelihood nor an ELBO. Draw it with ppgen.inference.sample, judge the draws "
            "with ppgen.judge, and train such a model by train(Adversarial(model), ...)."
        )
