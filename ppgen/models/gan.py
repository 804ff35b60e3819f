r"""Generative adversarial networks: programs that can be sampled and have no density; also with classes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ppgen.models.game import Turn, check_players, contest, data_support, draw, implicit, scores, seen, verdict
from ppgen.nn import feed
from ppgen.numbers import positive_integer
from ppgen.pair import data_plate, sample

__all__ = ["ACGAN", "GAN"]


class GAN(nn.Module):
    r"""A generative adversarial network, conditional where the batch is ``(x, y)``.

    .. math::
        z \sim p(z \mid y), \qquad x = G(z, y), \qquad \text{no density, no guide}

    The discriminator (of a Wasserstein GAN: the critic) learns to tell data from what the generator makes, and the
    generator learns to be taken for data. What exactly each of them minimises is a loss of its own:
    ``train(Adversarial(gan, loss), x, epochs=...)``, with one of :mod:`ppgen.inference.adversarial`.

    Use it for samples that look like data, where neither a likelihood nor an inferred latent is asked for. It can be
    drawn from by :func:`ppgen.inference.sample`; how good the draws are, and whether some of the data's modes are
    missing among them, :mod:`ppgen.judge` says. It has no ``.guide``, so :func:`ppgen.inference.log_likelihood` and
    :func:`ppgen.inference.fit` refuse it.

    References:
        Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
        Conditional Generative Adversarial Nets (Mirza & Osindero, 2014), https://arxiv.org/abs/1411.1784

    Args:
        prior: called as ``prior(*y)``; the distribution of the latent site ``z``.
        generator: a network, called as ``generator(z, *y)``; of x, or of x in [−1, 1] if ``levels`` is given.
        discriminator: a network, called as ``discriminator(x, *y)``; a score (a logit) for each x, high for data.
        levels: if given, data are levels 0, ..., levels − 1 (2: binary), which both networks see in [−1, 1]; samples
            are levels again, rounded.

    Shape:
        ``x``: (N, \*event), ``y``: (N, ...), ``z``: (N, latent_dim), scores: (N,) or (N, 1).

    Raises:
        TypeError: a part that is not a module.
        ValueError: scores of another shape.

    Example:
        >>> from ppgen import nn, priors
        >>> from ppgen.inference import sample
        >>> gan = GAN(priors.StandardNormal(2), nn.MLP(2, 16, 64), nn.MLP(64, 16, 1))
        >>> sample(gan, 5).shape
        torch.Size([5, 64])
    """

    def __init__(
        self, prior: nn.Module, generator: nn.Module, discriminator: nn.Module, *, levels: int | None = None
    ) -> None:
        super().__init__()
        check_players(type(self).__name__, levels, prior=prior, generator=generator, discriminator=discriminator)
        self.prior = prior
        self.generator = generator
        self.discriminator = discriminator
        self.levels = levels

    data_support = property(data_support)

    def model(self, x: Tensor | None = None, *y: Any) -> Tensor:
        """p(z | y) and x = G(z, y). With neither ``x`` nor ``y``: one draw for each plate that is open."""
        with data_plate(x, *y):
            return implicit(self, x, *y)

    def critic_loss(self, loss: Any, x: Tensor, *y: Any) -> Turn:
        """What the discriminator minimises: the loss of its scores of data and of new draws."""
        with torch.no_grad():
            fake, _ = draw(self, len(x), *y)
        real = seen(x, self.levels, self.discriminator)
        return contest(loss, lambda x: scores(feed(self.discriminator, x, *y)), (real,), (fake,))

    def generator_loss(self, loss: Any, x: Tensor, *y: Any) -> Turn:
        """What the generator minimises: the loss of the scores of new draws, as many as there are data."""
        fake, _ = draw(self, len(x), *y)
        return loss.generator(scores(feed(self.discriminator, fake, *y))), {}


class ACGAN(nn.Module):
    r"""A generative adversarial network with an auxiliary classifier (AC-GAN).

    .. math::
        y \sim \mathrm{Uniform}\{0, \dots, K-1\}, \qquad z \sim p(z \mid y), \qquad x = G(z, y), \qquad
        \text{no density, no guide}

    A batch is ``(x, y)`` with classes y. The discriminator gives a score and the logits of the classes; both players
    also minimise the classifier's cross-entropy, the discriminator on data and draws, the generator on its draws:

    .. math::
        \mathcal{L}_D - \mathbb{E}[\log C(y \mid x)] - \mathbb{E}[\log C(y \mid G(z, y))], \qquad
        \mathcal{L}_G - \mathbb{E}[\log C(y \mid G(z, y))]

    Use it where labels are known and draws of a wanted class are: ``sample(gan, n, y)``; ``sample(gan, n)`` draws the
    classes, too. The classifier rewards draws that are easy to classify, so a class may come out less varied than it is
    in the data; a :class:`GAN` whose two networks see a one-hot y has no such pull.

    References:
        Conditional Image Synthesis with Auxiliary Classifier GANs (Odena, Olah & Shlens, 2017),
        https://arxiv.org/abs/1610.09585

    Args:
        prior: called as ``prior(y)`` with y one-hot; the distribution of ``z``. An unconditional prior ignores y.
        generator: a network, called as ``generator(z, y)`` with y one-hot.
        discriminator: a network from x to 1 + K numbers: the score, and the logits of the classes.
        num_classes: K.
        levels: as in :class:`GAN`.

    Shape:
        ``x``: (N, \*event), ``y``: (N,), int64.

    Raises:
        TypeError: a part that is not a module.
        ValueError: classes that are not 0, ..., K − 1, or a discriminator with another number of outputs.

    Example:
        >>> from ppgen import nn, priors
        >>> from ppgen.inference import sample
        >>> gan = ACGAN(priors.StandardNormal(2), nn.MLP(2 + 10, 16, 64), nn.MLP(64, 16, 1 + 10), num_classes=10)
        >>> sample(gan, 5, torch.arange(5)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        prior: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        num_classes: int,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        check_players(type(self).__name__, levels, prior=prior, generator=generator, discriminator=discriminator)
        self.prior = prior
        self.generator = generator
        self.discriminator = discriminator
        self.num_classes = positive_integer("num_classes", num_classes)
        self.levels = levels

    data_support = property(data_support)

    def model(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """p(y) p(z) and x = G(z, y)."""
        with data_plate(x, y):
            logits = next(self.parameters()).new_zeros(self.num_classes)
            classes = sample("y", dist.OneHotCategorical(logits=logits), obs=None if y is None else self._one_hot(y))
            return implicit(self, x, classes)

    def critic_loss(self, loss: Any, x: Tensor, y: Tensor) -> Turn:
        """The loss of the scores, and the cross-entropy of the classes of data and of draws."""
        real, classes = seen(x, self.levels, self.discriminator), self._one_hot(y)
        with torch.no_grad():
            fake, _ = draw(self, len(x), classes)
        (real_scores, real_logits), (fake_scores, fake_logits) = self._judged(real), self._judged(fake)
        value = loss.critic(real_scores, fake_scores) + loss.penalty(lambda x: self._judged(x)[0], (real,), (fake,))
        watched = verdict(loss, real_scores, fake_scores)
        watched["class_accuracy"] = (real_logits.argmax(-1) == classes.argmax(-1)).float().mean()
        return value + cross_entropy(real_logits, classes) + cross_entropy(fake_logits, classes), watched

    def generator_loss(self, loss: Any, x: Tensor, y: Tensor) -> Turn:
        """The loss of the scores of draws of the same classes, and the cross-entropy of those classes."""
        classes = self._one_hot(y)
        fake, _ = draw(self, len(x), classes)
        fake_scores, fake_logits = self._judged(fake)
        return loss.generator(fake_scores) + cross_entropy(fake_logits, classes), {}

    def _judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the logits of the classes."""
        outputs = self.discriminator(x)
        if outputs.shape[1:] != (1 + self.num_classes,):
            raise ValueError(
                f"ACGAN(num_classes={self.num_classes}) needs a discriminator with {1 + self.num_classes} outputs, a "
                f"score and the logits of the classes, but its output has shape {tuple(outputs.shape)}."
            )
        return outputs[:, 0], outputs[:, 1:]

    def _one_hot(self, y: Tensor) -> Tensor:
        if y.is_floating_point() or y.dim() != 1:
            raise ValueError(f"y must hold one class a datum, integers of shape (N,), got {y.dtype} {tuple(y.shape)}.")
        y = y.long()  # torch cannot compare unsigned integers over 8 bits
        if not bool(((y >= 0) & (y < self.num_classes)).all()):
            raise ValueError(
                f"y must hold classes 0, ..., {self.num_classes - 1}, got values from {int(y.min())} to {int(y.max())}."
            )
        return one_hot(y, self.num_classes).to(next(self.parameters()).dtype)
