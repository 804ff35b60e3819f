"""The variational autoencoder, conditional when the batch has more than one member."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ppgen.distributions import marginal
from ppgen.models.parts import CONDITIONAL, check_modules
from ppgen.pair import data_plate, expose_parameters, observed, sample

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational autoencoder of three parts, conditional where the batch is ``(x, y)``.

    .. math::
        z \sim p(z \mid y), \qquad x \sim p(x \mid z, y), \qquad \text{guide } q(z \mid x, y)

    Any prior goes with any decoder and any posterior: each is a module whose ``forward(*context)`` returns a
    distribution. An unconditional prior ignores ``y``.

    Use it wherever data are plenty and a latent of some tens of numbers explains them; its likelihood is estimated by
    importance sampling (:func:`ppgen.inference.log_likelihood`). Incomplete data are trained on and evaluated with a
    mask: what is missing is integrated out, and the posterior sees zeros in its place.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114
        Learning Structured Output Representation using Deep Conditional Generative Models
        (Sohn, Lee & Yan, 2015), https://papers.nips.cc/paper/5775

    Args:
        prior: called as ``prior(*y)``; the distribution of the latent site ``z``.
        decoder: called as ``decoder(z, *y)``; the distribution of the observed site ``x``.
        posterior: called as ``posterior(x, *y)``; the guide's distribution of ``z``.
        sees_mask: whether the posterior sees, behind ``x`` as further channels (of a vector: entries), what of it was
            observed: its network then takes (2 C, H, W) in place of (C, H, W), or 2 D numbers in place of D.

    Shape:
        ``x``: (N, *event), ``y``: (N, ...), ``z``: (N, latent_dim); a particle axis may stand before N.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn, posteriors, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 16, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 16, 4)),
        ... )
        >>> vae.model(torch.zeros(5, 64)).shape
        torch.Size([5, 64])
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, posterior: nn.Module, *, sees_mask: bool = False) -> None:
        super().__init__()
        check_modules("VAE", CONDITIONAL, prior=prior, decoder=decoder, posterior=posterior)
        self.prior = prior
        self.decoder = decoder
        self.posterior = posterior
        self.sees_mask = sees_mask

    def model(self, x: Tensor | None = None, *y: Any, mask: Tensor | None = None) -> Tensor:
        """p(z | y) p(x | z, y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        expose_parameters(self)
        with data_plate(x, *y):
            z = sample("z", self.prior(*y))
            return sample("x", marginal(self.decoder(z, *y), mask), obs=x)

    def guide(self, x: Tensor, *y: Any, mask: Tensor | None = None) -> Tensor:
        """q(z | x, y)."""
        expose_parameters(self)
        with data_plate(x, *y):
            return sample("z", self.posterior(observed(x, mask, seen_as=self._seen_as), *y))

    @property
    def _seen_as(self) -> int | None:
        """What the mask's True is to the posterior: the highest level, where its network takes levels and rescales."""
        levels = getattr(getattr(self.posterior, "net", None), "levels", None)
        return (levels or 2) - 1 if self.sees_mask else None
