"""What all adversarial models share: how they draw, what their networks see, how the two sides are scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.distributions import Implicit
from ppgen.models.parts import CONDITIONAL, NETWORK, check_modules
from ppgen.nn import feed
from ppgen.nn.levels import rescale
from ppgen.numbers import several_levels
from ppgen.pair import adapt, sample

Turn = tuple[Tensor, dict[str, Tensor]]  # what a player minimises, and what there is to watch
Inputs = tuple[Tensor, ...]  # what a critic sees


def check_players(owner: str, levels: int | None, prior: object, **networks: object) -> None:
    """Makes sure of the parts of an adversarial model.

    Raises:
        TypeError: the prior or a network is no module.
        ValueError: less than two levels.
    """
    check_modules(owner, CONDITIONAL, prior=prior)
    check_modules(owner, NETWORK, **networks)
    if levels is not None:
        several_levels("levels (None: real data)", levels)


def data_support(gan: Any) -> constraints.Constraint | None:
    """Where data may lie, which no density states; None: anywhere."""
    return None if gan.levels is None else constraints.integer_interval(0, gan.levels - 1)


def seen(x: Tensor, levels: int | None, network: nn.Module) -> Tensor:
    """Data as the networks see them: levels in [−1, 1], in the networks' precision."""
    parameter = next(network.parameters(), None)
    return rescale(x, levels, x.dtype if parameter is None else parameter.dtype)


def draw_latent(gan: Any, n: int, *y: Any) -> Tensor:
    """Draws of z ~ p(z | y), n of them."""
    with pyro.plate("data", n, dim=-1):
        return sample("z", gan.prior(*y))


def draw(gan: Any, n: int, *y: Any) -> tuple[Tensor, Tensor]:
    """What the generator makes of n draws of the latent, as the networks see data, and the draws."""
    z = draw_latent(gan, n, *y)
    return feed(gan.generator, z, *y), z


def implicit(gan: Any, x: Tensor | None, *y: Any) -> Tensor:
    """The program z ~ p(z | y), x = G(z, y), for each plate that is open."""
    prior = adapt(gan.prior(*y))
    z = sample("z", prior)
    value = feed(gan.generator, z, *y)
    if gan.levels is not None:
        value = ((value + 1) * ((gan.levels - 1) / 2)).round().clamp(0, gan.levels - 1)
    lead = z.dim() - len(prior.event_shape)
    return sample("x", Implicit(value, value.dim() - lead), obs=x)


def scores(output: Tensor) -> Tensor:
    """A discriminator's output as one score a row.

    Raises:
        ValueError: it has another shape than (N,) or (N, 1).
    """
    if output.dim() == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.dim() != 1:
        raise ValueError(
            f"The discriminator's output has shape {tuple(output.shape)}: one score a datum is expected, (N,) or "
            "(N, 1). Build it with an output of 1."
        )
    return output


def contest(loss: Any, critic: Callable[..., Tensor], real: Inputs, fake: Inputs) -> Turn:
    """The critic's loss, with its penalty, of what it sees of the data and of the draws."""
    real_scores, fake_scores = critic(*real), critic(*fake)
    value = loss.critic(real_scores, fake_scores) + loss.penalty(critic, real, fake)
    return value, verdict(loss, real_scores, fake_scores)


def verdict(loss: Any, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """What the scores say of the state of the game: the divergence as estimated, and the share of rows told right."""
    real, fake = real.detach(), fake.detach()
    zero = 0.0 if loss.has_zero else (real.mean() + fake.mean()) / 2
    accuracy = ((real > zero).float().mean() + (fake <= zero).float().mean()) / 2
    return {"critic_estimate": loss.estimate(real, fake), "discriminator_accuracy": accuracy}
