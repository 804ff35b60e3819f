"""The prior of categorical latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import posteriors
from ppgen.distributions import one_hot


class Categorical(nn.Module):
    r"""Independent categorical latents, one-hot: uniform, learned, or given y.

    .. math:: p(z) = \prod_{l=1}^{L} \prod_{k=1}^{K} \pi_{lk}^{z_{lk}}

    In training mode, with a temperature, the concrete distribution takes their place, as in
    :class:`ppgen.posteriors.Categorical`, which this prior goes with; in evaluation mode z is discrete.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Args:
        num_categories: K.
        num_latents: L, for events (L, K); None for one latent with events (K,), which Pyro can enumerate.
        net: makes it p(z | y): gives the logits, L · K outputs.
        learn: whether the logits are learned; otherwise z is uniform.
        temperature: of the relaxation in training mode, the posterior's; None for discrete z in training, too.

    Shape:
        batch: (), or the leading axes of y; event: (L, K) or (K,).

    Raises:
        ValueError: a size that is not a positive whole number, a temperature that is not positive, or a
            network of another width.

    Example:
        >>> Categorical(10, 20)().event_shape
        torch.Size([20, 10])
    """

    logits: Tensor

    def __init__(
        self,
        num_categories: int,
        num_latents: int | None = None,
        net: nn.Module | None = None,
        *,
        learn: bool = False,
        temperature: float | None = 2 / 3,
    ) -> None:
        super().__init__()
        self.event_shape = one_hot.event_shape(num_categories, num_latents)
        one_hot.check_temperature(temperature)
        self.temperature = temperature
        self.conditional = None
        if net is not None:
            self.conditional = posteriors.Categorical(net, num_categories, num_latents, temperature=temperature)
        elif learn:
            self.logits = nn.Parameter(torch.zeros(self.event_shape))
        else:
            self.register_buffer("logits", torch.zeros(self.event_shape), persistent=False)

    def forward(self, *context: Tensor) -> Distribution:
        if self.conditional is not None:
            return self.conditional(*context)
        return one_hot.distribution(self.logits, len(self.event_shape), self.temperature if self.training else None)
