r"""The importance-weighted bound, and Rényi's, of which it is one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.inference.losses.loss import Measured
from ppgen.inference.programs.traces import Program
from ppgen.inference.programs.weights import weigh
from ppgen.numbers import finite_number, positive_integer

__all__ = ["IWAE", "Renyi", "iwae", "renyi"]


class IWAE(nn.Module):
    r"""The negative importance-weighted bound of k samples, per datum.

    .. math::
        -\log \frac{1}{k} \sum_{s=1}^{k} \frac{p(x, z_s)}{q(z_s \mid x)}, \qquad z_s \sim q(z \mid x)

    A plate's subsampling scale never enters the log-sum-exp. That of ``poutine.scale`` does, as in :func:`elbo`, and a
    scale common to all terms tempers the weights: to measure in other units, scale the loss. Enumerated sites of the
    model are summed out inside it.
    Latents without a reparameterised sampler get the score-function gradient with VIMCO's leave-one-out signal.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), https://arxiv.org/abs/1602.06725

    Args:
        num_particles: k.

    Raises:
        ValueError: k is not a positive whole number.

    Example:
        >>> loss = iwae(50)
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__()
        self.num_particles = positive_integer("num_particles", num_particles)
        self._measured = Measured()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"num_particles={self.num_particles}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        k = self.num_particles
        log_w, score = weigh(model, guide, batch, k, structure, scaled=True)
        bound = log_w.logsumexp(0) - math.log(k)
        loss = -bound.mean()
        if score is not None:
            signal = bound.detach()
            if k > 1:  # the bound if this sample's weight were the geometric mean of the others
                held_out = log_w.detach().repeat(k, 1, 1)  # (k, k, N), each row about to lose its own
                index = torch.arange(k, device=log_w.device)
                held_out[index, index] = 0.0
                held_out[index, index] = held_out.sum(1) / (k - 1)
                without = held_out.logsumexp(1) - math.log(k)
                signal = signal - torch.where(without.isfinite(), without, 0.0)  # where all others weigh nothing
            surrogate = (score * signal).sum(0).mean()
            loss = loss - surrogate + surrogate.detach()
        return loss


class Renyi(nn.Module):
    r"""The negative variational Rényi bound.

    .. math:: -\frac{1}{1 - \alpha} \log \frac{1}{k} \sum_{s=1}^{k} \left( \frac{p(x, z_s)}{q(z_s \mid x)}
        \right)^{1 - \alpha}

    α = 0 is the IWAE bound, α → 1 the ELBO. The power is taken per datum: a plate's subsampling scale never enters it
    (in Pyro's ``RenyiELBO`` it does).

    References:
        Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311

    Args:
        alpha: α, any number but 1.
        num_particles: k.

    Raises:
        ValueError: α is 1 or not finite, k is not a positive whole number, or (when called) the guide is not
            reparameterised.

    Example:
        >>> loss = renyi(0.5, 10)
    """

    def __init__(self, alpha: float, num_particles: int) -> None:
        super().__init__()
        self.alpha = finite_number("alpha", alpha)
        if alpha == 1:
            raise ValueError(f"alpha must be a finite number other than 1 (which is the ELBO: elbo()), got {alpha!r}.")
        self.num_particles = positive_integer("num_particles", num_particles)
        self._measured = Measured()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"alpha={self.alpha:g}, num_particles={self.num_particles}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        log_w, score = weigh(model, guide, batch, self.num_particles, structure, scaled=True)
        if score is not None:
            raise ValueError(
                "renyi needs a guide that is reparameterised: use elbo or iwae, which have the score function."
            )
        power = 1 - self.alpha
        bound = ((power * log_w).logsumexp(0) - math.log(self.num_particles)) / power
        return -bound.mean()


iwae = IWAE
renyi = Renyi
