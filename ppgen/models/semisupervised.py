r"""Semi-supervised variational autoencoders: classes that are observed for some of the data (M2 and M1+M2)."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen.distributions import marginal
from ppgen.models.parts import CONDITIONAL, NETWORK, check_modules
from ppgen.models.vae import VAE
from ppgen.nn import feed
from ppgen.numbers import positive_integer
from ppgen.pair import data_plate, expose_parameters, observed, sample, tracing

__all__ = ["SemiSupervisedVAE", "StackedSemiSupervisedVAE"]

# The log-odds of a class that the label rules out. Its probability is exactly 0 in any floating-point type, and unlike
# −inf it leaves every product with it, and every gradient, finite.
RULED_OUT = -1e4
ENUMERATED = {"enumerate": "parallel"}


class SemiSupervisedVAE(nn.Module):
    r"""A semi-supervised VAE (M2): the class is one more latent, observed where a label is given.

    .. math::
        y \sim \mathrm{Cat}(\pi), \qquad z \sim p(z \mid y), \qquad x \sim p(x \mid z, y), \qquad
        \text{guide } q(y \mid x) \, q(z \mid x, y)

    A batch is ``(x, y)``, with −1 in the place of a label that is missing; labelled and unlabelled rows may be mixed.
    The guide puts all probability on a label that is given, and enumerates the classes of a row without one, so the
    ELBO of a row is exactly

    .. math::
        \mathcal{L}(x, y) = \mathbb{E}_{q(z \mid x, y)}\bigl[\log p(y) + \log p(z \mid y) + \log p(x \mid z, y)
            - \log q(z \mid x, y)\bigr], \qquad
        \mathcal{U}(x) = \sum_y q(y \mid x) \bigl(\mathcal{L}(x, y) - \log q(y \mid x)\bigr)

    with a label and without, and ``log_likelihood`` estimates log p(x, y) and log p(x). The bound of a labelled row
    does not contain the classifier q(y | x): train with :func:`ppgen.inference.semi_supervised`, whose loss does, and
    classify with :func:`ppgen.inference.classify`. ``sample(pair, n, y)`` draws given classes, ``sample(pair, n)``
    draws the classes, too.

    Use it where labels are few and unlabelled data are many, or to separate class and style. The decoder runs once for
    each class, on labelled rows, too.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
        https://arxiv.org/abs/1406.5298

    Args:
        prior: called as ``prior(y)`` with y one-hot; the distribution of ``z``. An unconditional prior ignores y.
        decoder: called as ``decoder(z, y)``; the distribution of ``x``.
        posterior: called as ``posterior(x, y)``; the guide's distribution of ``z``.
        classifier: a network from x to the logits of q(y | x), or a conditional that returns a distribution with
            ``logits``.
        num_classes: C.
        class_probs: π, the C probabilities of the classes; equal ones if not given.

    Shape:
        ``x``: (N, \*event), ``y``: (N,), integers from −1 to C − 1. To the parts, and at the site ``y``, y is
        one-hot: (N, C).

    Raises:
        TypeError: a part that is not a module.
        ValueError: bad class probabilities; when called, labels that are not integers from −1 to C − 1, or a
            classifier of another width.

    Example:
        >>> from ppgen import decoders, nn, posteriors, priors
        >>> ssvae = SemiSupervisedVAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2 + 10, 16, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64 + 10, 16, 4)),
        ...     classifier=nn.MLP(64, 16, 10),
        ...     num_classes=10,
        ... )
        >>> ssvae.model(torch.zeros(3, 64), torch.tensor([7, -1, 0])).shape
        torch.Size([3, 64])
    """

    class_logits: Tensor

    def __init__(
        self,
        prior: nn.Module,
        decoder: nn.Module,
        posterior: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        *,
        class_probs: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        check_modules("SemiSupervisedVAE", CONDITIONAL, prior=prior, decoder=decoder, posterior=posterior)
        check_modules("SemiSupervisedVAE", NETWORK, classifier=classifier)
        self.prior = prior
        self.decoder = decoder
        self.posterior = posterior
        self.classifier = classifier
        self.num_classes = positive_integer("num_classes", num_classes)
        probs = torch.ones(num_classes) if class_probs is None else torch.as_tensor(class_probs).detach().float()
        if probs.shape != (num_classes,) or not (probs.isfinite().all() and (probs > 0).all()):
            raise ValueError(
                f"class_probs must be {num_classes} positive numbers, one a class, got {probs.tolist()}: leave out a "
                "class that never occurs."
            )
        self.register_buffer("class_logits", (probs / probs.sum()).log())

    def class_prior(self, y: Tensor | None = None) -> Distribution:
        """p(y); of the rows that have a label, all probability on it."""
        return self._where_known(y, self.class_logits)

    def class_posterior(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(y | x); of the rows that have a label, all probability on it."""
        outputs = feed(self.classifier, x)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"The classifier gives {logits.shape[-1]} logits (shape {tuple(logits.shape)}), and there are "
                f"num_classes={self.num_classes}: build it with as many outputs."
            )
        return self._where_known(y, logits)

    def _where_known(self, y: Tensor | None, logits: Tensor) -> Distribution:
        """One-hot classes from logits, row by row the label where there is one."""
        if y is not None:
            if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.dim() != 1:
                raise ValueError(
                    "y must hold one integer a row, the class or −1 where it is missing, got shape "
                    f"{tuple(y.shape)} of {y.dtype}. Of one-hot labels take y.argmax(-1)."
                )
            y = y.long()  # −1 is 255 to uint8
            valid = (y >= -1) & (y < self.num_classes)
            if tracing():
                torch._assert_async(valid.all(), "labels out of range")
            elif not bool(valid.all()):
                raise ValueError(
                    f"y runs from {int(y.min())} to {int(y.max())}: labels must lie in 0, ..., {self.num_classes - 1}, "
                    "or be −1 where they are missing."
                )
            others = y.unsqueeze(-1) != torch.arange(self.num_classes, device=y.device)
            logits = torch.where((y >= 0).unsqueeze(-1), RULED_OUT * others.to(logits.dtype), logits)
        return dist.OneHotCategorical(logits=logits)

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """p(y) p(z | y) p(x | z, y). Without ``x``: draws, of the classes that are given."""
        expose_parameters(self)
        with data_plate(x, y):
            # With x, the guide proposes y, a label included, and p(y) scores it.
            label = sample("y", self.class_prior(y if x is None else None))
            z = sample("z", self.prior(label))
            return sample("x", marginal(self.decoder(z, label), mask), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """q(y | x) q(z | x, y), all labels missing if none are given."""
        expose_parameters(self)
        x = observed(x, mask)
        with data_plate(x, y):
            label = sample("y", self.class_posterior(x, y), infer=ENUMERATED)
            return sample("z", self.posterior(x, label))


class StackedSemiSupervisedVAE(nn.Module):
    r"""The stacked semi-supervised model (M1+M2): an M2 in the place of a VAE's prior.

    .. math::
        y \sim \mathrm{Cat}(\pi), \quad z_2 \sim p(z_2 \mid y), \quad z_1 \sim p(z_1 \mid z_2, y), \quad
        x \sim p(x \mid z_1), \qquad \text{guide } q(z_1 \mid x) \, q(y \mid z_1) \, q(z_2 \mid z_1, y)

    Batches are those of :class:`SemiSupervisedVAE`. The paper trains the VAE first and keeps it:

    .. code-block:: python

        fit(vae, x, epochs=100)
        stack = StackedSemiSupervisedVAE(vae.requires_grad_(False), m2)
        fit(stack, (x, y), loss=semi_supervised(alpha), epochs=100)

    so that M2 learns from fresh draws of q(z₁ | x); with ``requires_grad_(True)`` all is trained together. The classes
    are enumerated in the small space of z₁ only, so a step costs little more than one of the VAE.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
        https://arxiv.org/abs/1406.5298

    Args:
        m1: a :class:`VAE` of x; its prior is not used any more.
        m2: a :class:`SemiSupervisedVAE` whose data are the latents of ``m1``: its decoder is over real vectors of that
            size, ``decoders.Normal`` say.

    Shape:
        ``x``: (N, \*event), ``y``: (N,), integers from −1 to C − 1.

    Raises:
        TypeError: ``m1`` is not a VAE or ``m2`` not a semi-supervised one.

    Example:
        >>> from ppgen import decoders, nn, posteriors, priors
        >>> m1 = VAE(
        ...     priors.StandardNormal(4),
        ...     decoders.Bernoulli(nn.MLP(4, 16, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 16, 8)),
        ... )
        >>> m2 = SemiSupervisedVAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Normal(nn.MLP(2 + 10, 16, 8)),
        ...     posteriors.DiagNormal(nn.MLP(4 + 10, 16, 4)),
        ...     classifier=nn.MLP(4, 16, 10),
        ...     num_classes=10,
        ... )
        >>> StackedSemiSupervisedVAE(m1, m2).model(torch.zeros(3, 64), torch.tensor([7, -1, 0])).shape
        torch.Size([3, 64])
    """

    def __init__(self, m1: VAE, m2: SemiSupervisedVAE) -> None:
        super().__init__()
        if not isinstance(m1, VAE) or not isinstance(m2, SemiSupervisedVAE):
            raise TypeError(
                "StackedSemiSupervisedVAE takes a VAE of the data and a SemiSupervisedVAE of its latents, got "
                f"{type(m1).__name__} and {type(m2).__name__}."
            )
        self.m1 = m1
        self.m2 = m2

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """p(y) p(z2 | y) p(z1 | z2, y) p(x | z1). Without ``x``: draws, of the classes that are given."""
        expose_parameters(self)
        with data_plate(x, y):
            label = sample("y", self.m2.class_prior(y if x is None else None))
            z2 = sample("z2", self.m2.prior(label))
            z1 = sample("z1", self.m2.decoder(z2, label))
            return sample("x", marginal(self.m1.decoder(z1), mask), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """q(z1 | x) q(y | z1) q(z2 | z1, y), all labels missing if none are given."""
        expose_parameters(self)
        x = observed(x, mask)
        with data_plate(x, y):
            z1 = sample("z1", self.m1.posterior(x))
            label = sample("y", self.m2.class_posterior(z1, y), infer=ENUMERATED)
            return sample("z2", self.m2.posterior(z1, label))
