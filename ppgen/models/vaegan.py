r"""The VAE/GAN: a variational autoencoder whose reconstructions are judged by a discriminator's features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppgen.models.game import Turn, check_players, contest, data_support, draw_latent, implicit, scores, seen
from ppgen.models.parts import CONDITIONAL, check_modules
from ppgen.nn import feed
from ppgen.numbers import positive_number
from ppgen.pair import adapt, data_plate, sample

__all__ = ["VAEGAN"]


class VAEGAN(nn.Module):
    r"""A VAE with a learned similarity (VAE/GAN), conditional where the batch is ``(x, y)``.

    .. math::
        z \sim p(z \mid y), \qquad x = G(z, y), \qquad \text{guide } q(z \mid x, y), \qquad \text{no density of } x

    The element-wise likelihood of a VAE is replaced by one of features: the last hidden layer D_l of the discriminator,
    Gaussian around the reconstruction's. With :math:`\tilde x = G(z, y)`, z ∼ q(z | x, y), each network minimises

    .. math::
        \text{posterior: } & \mathrm{KL}(q \,\|\, p)
            + \tfrac{1}{2} \mathbb{E} \| D_l(x) - D_l(\tilde x) \|^2 \\
        \text{generator: } & \tfrac{\gamma}{2} \mathbb{E} \| D_l(x) - D_l(\tilde x) \|^2 + \mathcal{L}_G \\
        \text{discriminator: } & \mathcal{L}_D

    where the discriminator meets draws of the prior and reconstructions, half of each.

    Use it where a VAE's samples are too blurred and an encoder is wanted: :func:`ppgen.inference.encode` and
    :func:`ppgen.inference.reconstruct` take it. The observation has no density, so there is no likelihood.

    References:
        Autoencoding beyond pixels using a learned similarity metric (Larsen, Sønderby, Larochelle & Winther, 2015),
        https://arxiv.org/abs/1512.09300

    Args:
        prior: called as ``prior(*y)``; the distribution of ``z``.
        generator: a network, called as ``generator(z, *y)``; of x, or of x in [−1, 1] if ``levels`` is given.
        posterior: called as ``posterior(x, *y)``; a distribution of ``z`` whose draws carry gradients. It sees what
            the discriminator sees, levels in [−1, 1].
        discriminator: a network, called as ``discriminator(x, *y)``, with a method ``features(x, *y)`` that returns its
            last hidden layer: :class:`ppgen.nn.DCGANDiscriminator` has one.
        weight: γ, of the features' likelihood against being taken for data, for the generator.
        levels: as in :class:`GAN`.

    Shape:
        ``x``: (N, \*event), ``y``: (N, ...), ``z``: (N, latent_dim), scores: (N,) or (N, 1).

    Raises:
        TypeError: a part that is not a module, or a discriminator without ``features``.
        ValueError: a weight that is not positive, or scores of another shape.

    Example:
        >>> from ppgen import nn, posteriors, priors
        >>> from ppgen.inference import reconstruct
        >>> gan = VAEGAN(
        ...     priors.StandardNormal(2),
        ...     nn.DCGANGenerator(2, (1, 8, 8), channels=(16,)),
        ...     posteriors.DiagNormal(nn.MLP((1, 8, 8), 16, 4)),
        ...     nn.DCGANDiscriminator((1, 8, 8), channels=(16,)),
        ... )
        >>> reconstruct(gan, torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        prior: nn.Module,
        generator: nn.Module,
        posterior: nn.Module,
        discriminator: nn.Module,
        *,
        weight: float = 1e-3,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        check_players("VAEGAN", levels, prior, generator=generator, discriminator=discriminator)
        check_modules("VAEGAN", CONDITIONAL, posterior=posterior)
        if not callable(getattr(discriminator, "features", None)):
            raise TypeError(
                f"VAEGAN: discriminator must have a method features(x, *y), its last hidden layer, and "
                f"{type(discriminator).__name__} has none; nn.DCGANDiscriminator has."
            )
        self.prior = prior
        self.generator = generator
        self.posterior = posterior
        self.discriminator = discriminator
        self.weight = positive_number("weight", weight)
        self.levels = levels

    data_support = property(data_support)

    def model(self, x: Tensor | None = None, *y: Any) -> Tensor:
        """p(z | y) and x = G(z, y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        with data_plate(x, *y):
            return implicit(self, x, *y)

    def guide(self, x: Tensor, *y: Any) -> Tensor:
        """q(z | x, y)."""
        with data_plate(x, *y):
            return sample("z", self.posterior(seen(x, self.levels, self.discriminator), *y))

    def critic_loss(self, loss: Any, x: Tensor, *y: Any) -> Turn:
        """What the discriminator minimises: the loss of its scores of data, and of draws and reconstructions."""
        x = seen(x, self.levels, self.discriminator)
        with torch.no_grad():
            fake = self._draws_and_reconstructions(adapt(self.posterior(x, *y)).rsample(), *y)
        return contest(loss, lambda x: scores(feed(self.discriminator, x, *y)), (x,), (fake,))

    def generator_loss(self, loss: Any, x: Tensor, *y: Any) -> Turn:
        """What the posterior and the generator minimise, each its own by one backward pass."""
        x = seen(x, self.levels, self.discriminator)
        posterior, prior = adapt(self.posterior(x, *y)), adapt(self.prior(*y))
        z = posterior.rsample()
        kl = (posterior.log_prob(z) - prior.log_prob(z)).mean()
        # The features' likelihood counts γ times for the generator, and once behind it, for the posterior.
        passed = z.view_as(z)
        if passed.requires_grad:  # which that of a frozen posterior does not
            passed.register_hook(lambda gradient: gradient / self.weight)
        reconstruction = feed(self.generator, passed, *y)
        discriminator: Any = self.discriminator
        difference = discriminator.features(x, *y) - discriminator.features(reconstruction, *y)
        mismatch = difference.square().flatten(1).sum(1).mean() / 2
        fake = self._draws_and_reconstructions(z.detach(), *y)
        taken = loss.generator(scores(feed(self.discriminator, fake, *y)))
        return kl + self.weight * mismatch + taken, {"kl": kl.detach(), "feature_mismatch": mismatch.detach()}

    def _draws_and_reconstructions(self, inferred: Tensor, *y: Any) -> Tensor:
        """What the generator makes of latents from the prior and from the posterior, at even odds."""
        z = draw_latent(self, len(inferred), *y)
        from_prior = torch.rand(len(z), *[1] * (z.dim() - 1), device=z.device) < 0.5
        return feed(self.generator, torch.where(from_prior, z, inferred), *y)
