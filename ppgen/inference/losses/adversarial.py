r"""The losses of the game between a generator and a discriminator, by Wasserstein GANs called a critic.

A loss says what each side minimises, as functions of scores, and brings the settings of its paper:
:func:`nonsaturating`, :func:`minimax`, :func:`hinge`, :func:`wasserstein`, :func:`wasserstein_gp`. Any of them goes
with any model that has the two turns of the game, ``critic_loss(loss, *batch)`` and ``generator_loss(loss, *batch)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.numbers import positive_number

__all__ = [
    "AdversarialLoss",
    "hinge",
    "minimax",
    "nonsaturating",
    "slopes",
    "wasserstein",
    "wasserstein_gp",
]

Critic = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]


def _adam(lr: float, beta1: float, beta2: float) -> Callable[..., torch.optim.Optimizer]:
    return functools.partial(torch.optim.Adam, lr=lr, betas=(beta1, beta2), fused=True)


DCGAN_ADAM = _adam(2e-4, 0.5, 0.999)


@dataclass(frozen=True)
class AdversarialLoss:
    """What the two sides of the game minimise, as functions of the critic's scores, of shape (N,), high for data.

    Attributes:
        critic: of the scores of data and of draws, what the critic minimises, beside the penalty.
        generator: of the scores of draws, what the generator minimises. Negated scores of data are scored alike, where
            data are inferred from (a BiGAN's pairs).
        estimate: of the scores of data and of draws, the divergence between the two as the critic sees it.
        penalty: of the critic, its inputs for data and those for draws.
        constrain: what is done to the discriminator's weights after each of its steps.
        has_zero: whether a score above 0 means data; where only differences of scores count, the middle between the
            two mean scores stands in for it in the discriminator's accuracy.
        critic_steps: steps of the critic for each of the generator.
        optimizer: a function of parameters that makes their optimiser.
        name: what it is called, with its settings: a run that was saved goes on with no other.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    estimate: Callable[[Tensor, Tensor], Tensor]
    penalty: Callable[[Critic, Inputs, Inputs], Tensor] = lambda critic, real, fake: real[0].new_zeros(())
    constrain: Callable[[nn.Module], None] = lambda discriminator: None
    has_zero: bool = True
    critic_steps: int = 1
    optimizer: Callable[..., torch.optim.Optimizer] = DCGAN_ADAM
    name: str = ""


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()


def _jensen_shannon(real: Tensor, fake: Tensor) -> Tensor:
    return math.log(2) - _cross_entropy(real, fake) / 2


def _difference(real: Tensor, fake: Tensor) -> Tensor:
    return real.mean() - fake.mean()


def minimax() -> AdversarialLoss:
    r"""The game of the first paper: the generator minimises what the discriminator maximises.

    .. math:: \min_G \max_D \; \mathbb{E}[\log D(x)] + \mathbb{E}[\log(1 - D(G(z)))]

    At the best discriminator this is twice the Jensen–Shannon divergence, less log 4. Where the discriminator is sure,
    the generator gets no gradient: :func:`nonsaturating` has the same fixed points and is what works. The estimate is
    a lower bound of that divergence in nats, which is at most log 2: the best discriminator would attain it, and one
    worse than chance makes it negative.

    References:
        Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
    """
    return AdversarialLoss(_cross_entropy, lambda fake: -softplus(fake).mean(), _jensen_shannon, name="minimax")


def nonsaturating() -> AdversarialLoss:
    r"""The game as it is played: the generator maximises the log-probability of being taken for data.

    .. math:: \mathcal{L}_D = -\mathbb{E}[\log D(x)] - \mathbb{E}[\log(1 - D(G(z)))], \qquad
        \mathcal{L}_G = -\mathbb{E}[\log D(G(z))]

    The optimiser is DCGAN's. The estimate is a lower bound of the Jensen–Shannon divergence, as of :func:`minimax`.

    References:
        Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
        (Radford, Metz & Chintala, 2015), https://arxiv.org/abs/1511.06434

    Example:
        >>> loss = nonsaturating()
        >>> undecided = torch.zeros(5)
        >>> loss.critic(undecided, undecided), loss.generator(undecided)
        (tensor(1.3863), tensor(0.6931))
    """
    return AdversarialLoss(_cross_entropy, lambda fake: softplus(-fake).mean(), _jensen_shannon, name="nonsaturating")


def hinge() -> AdversarialLoss:
    r"""The hinge loss, the usual one for spectrally normalised discriminators.

    .. math:: \mathcal{L}_D = \mathbb{E}[\max(0, 1 - f(x))] + \mathbb{E}[\max(0, 1 + f(G(z)))], \qquad
        \mathcal{L}_G = -\mathbb{E}[f(G(z))]

    References:
        Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894
        Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018),
        https://arxiv.org/abs/1802.05957
    """
    return AdversarialLoss(
        lambda real, fake: (1 - real).relu().mean() + (1 + fake).relu().mean(),
        lambda fake: -fake.mean(),
        _difference,
        name="hinge",
    )


def wasserstein(clip: float = 0.01) -> AdversarialLoss:
    r"""The Wasserstein distance, with a critic whose weights are clipped.

    .. math:: \mathcal{L}_f = \mathbb{E}[f(G(z))] - \mathbb{E}[f(x)], \qquad \mathcal{L}_G = -\mathbb{E}[f(G(z))],
        \qquad |w| \le c

    Bounded weights bound the critic's slope by some K, and the estimate is K times the distance at most: it says
    whether training goes well, not how far it is. As published: five steps of the critic for one of the generator,
    RMSProp at 5e-5.

    References:
        Wasserstein GAN (Arjovsky, Chintala & Bottou, 2017), https://arxiv.org/abs/1701.07875

    Args:
        clip: c, the bound of every weight and bias of the discriminator.

    Raises:
        ValueError: a bound that is not positive.
    """
    positive_number("clip", clip)

    @torch.no_grad()
    def constrain(discriminator: nn.Module) -> None:
        for parameter in discriminator.parameters():
            parameter.clamp_(-clip, clip)

    return AdversarialLoss(
        lambda real, fake: -_difference(real, fake),
        lambda fake: -fake.mean(),
        _difference,
        constrain=constrain,
        has_zero=False,
        critic_steps=5,
        optimizer=functools.partial(torch.optim.RMSprop, lr=5e-5),
        name=f"wasserstein(clip={clip:g})",
    )


def wasserstein_gp(weight: float = 10.0) -> AdversarialLoss:
    r"""The Wasserstein distance, with a critic whose slope is drawn to 1.

    .. math:: \mathcal{L}_f = \mathbb{E}[f(G(z))] - \mathbb{E}[f(x)]
        + \lambda \mathbb{E}\bigl[(\|\nabla f(\hat x)\| - 1)^2\bigr], \qquad \mathcal{L}_G = -\mathbb{E}[f(G(z))]

    at points :math:`\hat x` on the lines between data and draws. The estimate is near the distance itself, in the units
    of what the critic sees. As published: five steps of the critic for one of the generator, Adam at 1e-4 without
    momentum, and no batch normalisation in the critic.

    References:
        Improved Training of Wasserstein GANs (Gulrajani et al., 2017), https://arxiv.org/abs/1704.00028

    Args:
        weight: λ.

    Raises:
        ValueError: a weight that is not positive.
    """
    positive_number("weight", weight)
    return AdversarialLoss(
        lambda real, fake: -_difference(real, fake),
        lambda fake: -fake.mean(),
        _difference,
        penalty=lambda critic, real, fake: weight * (slopes(critic, real, fake) - 1).square().mean(),
        has_zero=False,
        critic_steps=5,
        optimizer=_adam(1e-4, 0.0, 0.9),
        name=f"wasserstein_gp(weight={weight:g})",
    )


def slopes(critic: Critic, real: Inputs, fake: Inputs) -> Tensor:
    r"""The norms of the critic's gradient, each at a random point on the line between a datum and a draw.

    Args:
        critic: a function of one or several inputs, with a score for each row.
        real: its inputs for data.
        fake: its inputs for draws.

    Shape:
        inputs: (N, \*event) each; the norms, over all inputs together: (N,).

    Example:
        >>> slopes(lambda x: x @ torch.tensor([3.0, 4.0]), (torch.zeros(2, 2),), (torch.ones(2, 2),))
        tensor([5., 5.])
    """
    share = torch.rand(len(real[0]), device=real[0].device)
    between = []
    for r, f in zip(real, fake, strict=True):
        weight = share.to(r.dtype).reshape(-1, *[1] * (r.dim() - 1))
        between.append(torch.lerp(r.detach(), f.detach(), weight).requires_grad_())
    gradients = torch.autograd.grad(critic(*between).sum(), between, create_graph=True)
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    return (square + 1e-12).sqrt()  # whose own gradient is finite at 0
