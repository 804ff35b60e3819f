r"""The bidirectional generative adversarial network: a generator, and an encoder that learns to undo it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppgen.models.game import Turn, check_players, contest, data_support, draw, implicit, scores, seen
from ppgen.models.parts import CONDITIONAL, check_modules
from ppgen.nn import feed
from ppgen.pair import adapt, data_plate, sample

__all__ = ["BiGAN"]


class BiGAN(nn.Module):
    r"""A bidirectional GAN (BiGAN, also ALI), conditional where the batch is ``(x, y)``.

    .. math::
        z \sim p(z \mid y), \qquad x = G(z, y), \qquad \text{guide } q(z \mid x, y), \qquad \text{no density of } x

    The discriminator sees pairs: data with latents that the posterior infers, (x, z ∼ q(z | x)), against draws of the
    latent with what the generator makes of them, (G(z), z). The generator and the posterior play together against it.
    Where the discriminator cannot tell the two kinds of pairs, their joint distributions are the same, and the
    posterior has learned to invert the generator without ever being shown a reconstruction.

    Use it where a representation is wanted besides samples: :func:`ppgen.inference.encode` and
    :func:`ppgen.inference.reconstruct` take it. Reconstructions of a network that has not converged are of the right
    kind rather than faithful. The discriminator needs dense layers in which x and z meet, ``nn.MLP(shape, ...,
    context_dim=latent_dim)``: with z as constant channels in front of convolutions, training on 8 × 8 digits collapsed.
    The observation has no density, so there is no likelihood.

    References:
        Adversarial Feature Learning (Donahue, Krähenbühl & Darrell, 2016), https://arxiv.org/abs/1605.09782
        Adversarially Learned Inference (Dumoulin et al., 2016), https://arxiv.org/abs/1606.00704

    Args:
        prior: called as ``prior(*y)``; the distribution of ``z``.
        generator: a network, called as ``generator(z, *y)``; of x, or of x in [−1, 1] if ``levels`` is given.
        posterior: called as ``posterior(x, *y)``; a distribution of ``z`` whose draws carry gradients. It sees what
            the discriminator sees, levels in [−1, 1].
        discriminator: a network, called as ``discriminator(x, z, *y)``; a score for each pair, high for data.
        levels: as in :class:`GAN`.

    Shape:
        ``x``: (N, \*event), ``y``: (N, ...), ``z``: (N, latent_dim), scores: (N,) or (N, 1).

    Raises:
        TypeError: a part that is not a module.
        ValueError: scores of another shape.

    Example:
        >>> from ppgen import nn, posteriors, priors
        >>> from ppgen.inference import encode
        >>> gan = BiGAN(
        ...     priors.StandardNormal(2),
        ...     nn.MLP(2, 16, 64),
        ...     posteriors.DiagNormal(nn.MLP(64, 16, 4)),
        ...     nn.MLP(64 + 2, 16, 1),
        ... )
        >>> encode(gan, torch.zeros(5, 64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        prior: nn.Module,
        generator: nn.Module,
        posterior: nn.Module,
        discriminator: nn.Module,
        *,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        check_players("BiGAN", levels, prior, generator=generator, discriminator=discriminator)
        check_modules("BiGAN", CONDITIONAL, posterior=posterior)
        self.prior = prior
        self.generator = generator
        self.posterior = posterior
        self.discriminator = discriminator
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
        """What the discriminator minimises: the loss of its scores of inferred and of generated pairs."""
        with torch.no_grad():
            real, fake = self._inferred(x, *y), draw(self, len(x), *y)
        return contest(loss, lambda *pair: self._score(*pair, *y), real, fake)

    def generator_loss(self, loss: Any, x: Tensor, *y: Any) -> Turn:
        """What the generator and the posterior minimise: each wants its pairs to be taken for the other's."""
        real, fake = self._inferred(x, *y), draw(self, len(x), *y)
        return loss.generator(self._score(*fake, *y)) + loss.generator(-self._score(*real, *y)), {}

    def _inferred(self, x: Tensor, *y: Any) -> tuple[Tensor, Tensor]:
        x = seen(x, self.levels, self.discriminator)
        return x, adapt(self.posterior(x, *y)).rsample()

    def _score(self, x: Tensor, z: Tensor, *y: Any) -> Tensor:
        return scores(feed(self.discriminator, x, z, *y))
