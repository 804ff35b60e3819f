"""Posteriors of categorical latents."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import one_hot
from ppgen.nn import feed

from .outputs import check_width, split


class Categorical(nn.Module):
    r"""Independent categorical latents, one-hot: relaxed in training, discrete in evaluation.

    .. math:: q(z \mid x) = \prod_{l=1}^{L} \prod_{k=1}^{K} \pi_{lk}(x)^{z_{lk}}

    In training mode, with a temperature, the concrete distribution takes their place, whose draws have a gradient; in
    evaluation mode z is discrete, so likelihoods are those of the discrete model. The prior must change with it:
    :class:`ppgen.priors.Categorical`. Without a temperature z is discrete in training, too: for the score-function
    gradient, or for a single latent (no ``num_latents``) to be enumerated.

    References:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Args:
        net: gives the logits, L · K outputs.
        num_categories: K.
        num_latents: L, for events (L, K); None for one latent with events (K,), which Pyro can enumerate.
        temperature: of the relaxation in training mode; None for discrete z in training, too.

    Shape:
        batch: leading axes of the context, event: (L, K) or (K,).

    Raises:
        ValueError: a network of another width, or a temperature that is not positive.

    Example:
        >>> import torch
        >>> from ppgen import nn
        >>> q = Categorical(nn.MLP(64, 200), num_categories=10, num_latents=20).eval()
        >>> z = q(torch.zeros(5, 64)).sample()
        >>> z.shape, z.sum(-1).unique()
        (torch.Size([5, 20, 10]), tensor([1.]))
    """

    scores_foreign_values = True

    def __init__(
        self,
        net: nn.Module,
        num_categories: int,
        num_latents: int | None = None,
        *,
        temperature: float | None = 2 / 3,
    ) -> None:
        super().__init__()
        self.event_shape = one_hot.event_shape(num_categories, num_latents)
        one_hot.check_temperature(temperature)
        check_width(f"Categorical of shape {self.event_shape}", net, prod(self.event_shape))
        self.net = net
        self.temperature = temperature

    @staticmethod
    def num_outputs(num_categories: int, num_latents: int | None = None) -> int:
        """How many outputs the network must have: L · K."""
        return prod(one_hot.event_shape(num_categories, num_latents))

    def forward(self, *context: Tensor) -> Distribution:
        (outputs,) = split("Categorical", feed(self.net, *context), prod(self.event_shape))
        logits = outputs.unflatten(-1, self.event_shape)
        return one_hot.distribution(logits, len(self.event_shape), self.temperature if self.training else None)
