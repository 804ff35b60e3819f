"""The variational mixture of posteriors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import Mixture, as_diagonal_normal
from ppgen.nn import as_shape, concat
from ppgen.nn.shapes import Shape
from ppgen.numbers import interval, positive_integer


class VampPrior(nn.Module):
    r"""Variational mixture of posteriors: the posterior, averaged over learned pseudo-inputs.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, q(z \mid u_k), \qquad \pi_k = 1 / K \text{ unless learned}

    or, conditional, :math:`p(z \mid y) = \sum_k \pi_k \, q(z \mid u_k, y)`.

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
        conditional: whether it is p(z | y), by a posterior q(z | x, y). All pseudo-inputs are encoded for each distinct
            y of a batch (for each y, distinct or not, unless the posterior is a diagonal Gaussian): cheap for labels.

    Shape:
        batch: (), or the leading axes of y; event: (latent_dim,).

    Raises:
        TypeError: pseudo-inputs that are no tensor.
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
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if not getattr(posterior, "scores_foreign_values", True):
            name = type(posterior).__name__
            raise ValueError(
                f"A VampPrior scores values drawn elsewhere under each of its components, and posteriors.{name} does "
                "that slowly or not at all. Give it an encoder of its own: VampPrior(DiagNormal(...), ...)."
            )
        low, high = interval("the range of the data, (low, high),", (low, high))
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
        self.conditional = conditional
        if learn_weights:
            self.logits = nn.Parameter(torch.zeros(len(start)))
        else:
            self.register_buffer("logits", torch.zeros(len(start)), persistent=False)

    @property
    def latent_dim(self) -> int | None:
        """The posterior's."""
        return getattr(self.posterior, "latent_dim", None)

    def forward(self, *context: Tensor) -> Distribution:
        inputs = self.pseudo_inputs.clamp(self.low, self.high)
        if not self.conditional:
            return Mixture(self.logits, self.posterior(inputs))
        if not context:
            raise ValueError("A conditional VampPrior p(z | y) was called without y: give prior(y), a batch (x, y).")
        y = concat(*context)
        if y.requires_grad:  # of a layer below, where no two rows are alike
            return Mixture(self.logits, self.posterior(inputs, y.unsqueeze(-2)))
        distinct, index = y.reshape(-1, y.shape[-1]).unique(dim=0, return_inverse=True)
        components = self.posterior(inputs, distinct.unsqueeze(-2))  # batch (distinct, K)
        normal = as_diagonal_normal(components)
        if normal is None:
            return Mixture(self.logits, self.posterior(inputs, y.unsqueeze(-2)))
        index = index.reshape(y.shape[:-1])
        return Mixture(self.logits, dist.Normal(normal.loc[index], normal.scale[index]).to_event(1))


def _checked(pseudo_inputs: Tensor, low: float, high: float) -> Tensor:
    """A floating-point copy of the pseudo-inputs to start from, if they are fit for that."""
    if not isinstance(pseudo_inputs, Tensor):
        raise TypeError(
            f"pseudo_inputs must be a tensor of shape (K, *event), got {type(pseudo_inputs).__name__}: give "
            "torch.tensor() of an array, or K rows of a data set, x_train[:500]."
        )
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
