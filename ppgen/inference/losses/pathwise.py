r"""Objectives with gradients of less variance than those of the ELBO and IWAE.

The score of the guide, :math:`\nabla_\phi \log q_\phi(z \mid x)` at fixed z, has mean zero and only adds noise to a
reparameterised gradient. Here it is left out: the guide is run once more on what it drew, with its parameters held. Of
a mixture, each component is drawn from in its turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.distributions import Mixture
from ppgen.inference.losses.loss import Measured
from ppgen.inference.programs.identity import ByIdentity
from ppgen.inference.programs.modes import unmoved
from ppgen.inference.programs.networks import modules_of
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.structure import Structure, check_vectorized
from ppgen.inference.programs.traces import (
    PARTICLES,
    Program,
    delta_of,
    device_of_batch,
    log_prob,
    run_guide,
    sites,
)
from ppgen.inference.programs.weights import combine
from ppgen.numbers import positive_integer
from ppgen.pair import tracing, unadapted

__all__ = ["DReG", "StickingTheLanding", "Stratified", "dreg", "sticking_the_landing", "stratified"]


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by weights that are known only after the forward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: list[Tensor]) -> Tensor:
        ctx.weights = weights
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not ctx.weights:
            return gradient, None
        (weights,) = ctx.weights  # (S, N), aligned with the particle and the data axis from the left
        missing = gradient.dim() - weights.dim()
        return gradient * weights.reshape(weights.shape + (1,) * missing), None


class _Holding(poutine.messenger.Messenger):
    """Holds parameters: those that it is given, and what ``param`` sites inside show, which no network may have."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []

    def hold(self, parameter: Tensor) -> None:
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            self.held.append(parameter)

    def _pyro_post_param(self, msg: Any) -> None:
        value, msg["value"] = msg["value"], msg["value"].detach()
        if hasattr(value, "unconstrained"):
            msg["value"].unconstrained = value.unconstrained  # Pyro's convention, of which plates make use
            self.hold(value.unconstrained())  # what pyro.module shows is used by its network, not from here


@contextmanager
def _held(guide: Program) -> Iterator[None]:
    """The parameters of the guide without gradients: of its owner's networks, and of its ``param`` sites."""
    owner, holding = getattr(guide, "__self__", guide), _Holding()
    for module in modules_of(owner):
        for own in module.parameters():
            holding.hold(own)
    try:
        with holding:
            yield
    finally:
        for parameter in holding.held:
            parameter.requires_grad_(True)
    if not holding.held:
        raise ValueError(
            "This objective holds the guide's parameters while it scores, and finds none: call it with the .model and "
            ".guide of a pair that owns its networks (models.Custom makes one of two functions), or show them by "
            "pyro.module and pyro.param."
        )


class _Scored(Measured):
    """The structure of a pair, whose guide gives what it drew the same density in a second run."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: ByIdentity[list[list[bool]]] = ByIdentity(list)  # the last in which the density was compared

    def __call__(self, model: Program, guide: Program, *batch: Any) -> Structure:
        structure = super().__call__(model, guide, *batch)
        owner = getattr(guide, "__self__", guide)
        modes = [part.training for module in modules_of(owner) for part in module.modules()]
        if not tracing() and self.modes[owner] != [modes]:
            _check_density(guide, batch, structure.observed)
            self.modes[owner][:] = [modes]
        return structure

    def __deepcopy__(self, memo: Any) -> _Scored:
        return _Scored()


def _check_density(guide: Program, batch: Sequence[Any], observed: Sequence[str]) -> None:
    with seeded(None, device_of_batch(batch)), unmoved(getattr(guide, "__self__", guide)):
        with torch.no_grad():
            drawn = run_guide(guide, batch)
        with torch.enable_grad():  # to the parameters past the draws, which have none
            runs = [sites(run_guide(poutine.replay(guide, trace=drawn), batch, observed=observed)) for _ in range(2)]
        for name, site in runs[0].items():
            # The score of what is drawn has mean zero; the gradient of a term that is no density of a draw has not.
            if (site["is_observed"] or delta_of(site) is not None) and log_prob(site).requires_grad:
                raise ValueError(
                    f"The guide's site {name!r} has no density of its own but a term that its parameters move, as the "
                    "log_density of a Delta(T(eps), log_density=-log|T'|) or a factor. This objective scores draws "
                    "with the parameters held, eps in place of T(eps), so that their gradient would lack this term: "
                    "use elbo or iwae, or draw T(eps) itself, from a TransformedDistribution(base, [T])."
                )
            if not torch.allclose(log_prob(site), log_prob(runs[1][name]), 1e-3, 1e-3, equal_nan=True):
                raise ValueError(
                    f"The guide gives the same draw of {name!r} another density in each run, so something in it is "
                    "random beyond its sample sites, such as dropout in train mode. This objective scores draws in a "
                    "second run: use elbo or iwae, or a guide without dropout."
                )


def _held_weights(
    model: Program, guide: Program, batch: Sequence[Any], num_particles: int, structure: Structure
) -> tuple[Tensor, list[Tensor]]:
    """Log weights (S, N) without the guide's score, and where to put weights for the gradient of the latents."""
    if structure.nesting != 1 or structure.enumerated:
        raise ValueError(
            "This objective takes pairs whose only plate is the data's and that enumerate nothing: use elbo or iwae."
        )
    check_vectorized(structure, "This objective")
    plate = pyro.plate(PARTICLES, num_particles, dim=-2)
    weights: list[Tensor] = []
    with plate:
        drawn = run_guide(guide, batch, observed=structure.observed)
    for name, site in sites(drawn).items():
        if site["is_observed"]:
            continue
        if not site["fn"].has_rsample:
            raise ValueError(
                f"The guide's site {name!r} ({type(site['fn']).__name__}) has no reparameterised sampler, which this "
                "objective needs: use elbo or iwae, which have the score-function gradient."
            )
        site["value"] = _ScaledGradient.apply(site["value"], weights)
    with plate:
        model_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)
    with _held(guide):  # the plate within, so that guides that run the model meet the same sites as before
        guide_trace = run_guide(poutine.replay(plate(guide), trace=drawn), batch, observed=structure.observed)
        for site in sites(guide_trace).values():
            site["scored"] = log_prob(site)  # now, while the parameters are held
    return combine(model_trace, guide_trace, 1, num_particles, scaled=True).log_weights, weights


class StickingTheLanding(nn.Module):
    r"""The negative ELBO with the gradient along the path only.

    .. math::
        \nabla_\phi \bigl[\log p(x, z_\phi) - \log q_{\bar\phi}(z_\phi \mid x)\bigr], \qquad \bar\phi = \phi
        \text{ held}

    Its variance vanishes as the guide becomes exact. A guide that scores foreign values slowly (an IAF) is slow here.

    References:
        Sticking the Landing (Roeder, Wu & Duvenaud, 2017), https://arxiv.org/abs/1703.09194

    Args:
        num_particles: draws of the latent per datum.

    Raises:
        ValueError: a number of particles that is not a positive whole number; when called, a guide that is not
            reparameterised, has dropout in train mode or, beside densities of its draws, terms that its parameters move
            (a Delta's ``log_density``, a factor), plates inside the data plate, enumerated sites, or programs that do
            not run under a plate of particles.

    Example:
        >>> loss = sticking_the_landing()
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = positive_integer("num_particles", num_particles)
        self._measured = _Scored()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"num_particles={self.num_particles}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        log_w, _ = _held_weights(model, guide, batch, self.num_particles, structure)
        return -log_w.mean()


class DReG(nn.Module):
    r"""The negative importance-weighted bound of k samples with doubly reparameterised gradients.

    .. math::
        \nabla_\phi: \ \sum_s \tilde w_s^2 \, \frac{\partial \log w_s}{\partial z_s} \frac{\partial z_s}{\partial \phi},
        \qquad \nabla_\theta: \ \sum_s \tilde w_s \nabla_\theta \log w_s, \qquad \tilde w_s = w_s / \textstyle\sum_r w_r

    Unbiased for the IWAE bound, with a signal that does not fade as k grows.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2018),
        https://arxiv.org/abs/1810.04152

    Args:
        num_particles: k.

    Raises:
        ValueError: as for :class:`StickingTheLanding`.

    Example:
        >>> loss = dreg(50)
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__()
        self.num_particles = positive_integer("num_particles", num_particles)
        self._measured = _Scored()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"num_particles={self.num_particles}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        log_w, weights = _held_weights(model, guide, batch, self.num_particles, structure)
        normalised = log_w.detach().softmax(0)
        weights.append(normalised)
        bound = log_w.detach().logsumexp(0) - math.log(self.num_particles)
        surrogate = (normalised * log_w).sum(0)
        return -(bound + surrogate - surrogate.detach()).mean()


class _Stratify(poutine.messenger.Messenger):
    """Draws the k-th particle of a mixture's site from its k-th component."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weights: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        mixture = unadapted(msg["fn"])
        if msg["is_observed"] or not isinstance(mixture, Mixture):
            return
        if self.log_weights is not None:
            raise ValueError(
                "stratified takes a guide of one mixture, and this one draws from a second: use elbo or iwae."
            )
        shape = (*msg["fn"].batch_shape, mixture.logits.shape[-1])  # (N, K), also of parameters that rows share
        strata = mixture.components.expand(shape).rsample()  # (N, K, *event)
        msg["value"], msg["done"] = strata.movedim(len(shape) - 1, 0), True
        self.log_weights = mixture.logits.log_softmax(-1).expand(shape).movedim(-1, 0)  # (K, N)


class Stratified(nn.Module):
    r"""The negative bound of a mixture posterior, with a draw from each of its components in place of K from the whole.

    .. math::
        -\sum_{k=1}^{K} \pi_k(x) \log \frac{p(x, z_k)}{q(z_k \mid x)} \qquad \text{or, importance weighted,} \qquad
        -\log \sum_{k=1}^{K} \pi_k(x) \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q_k(z \mid x)

    Unbiased for the ELBO, and a bound of log p(x) in the second form; the gradient of the mixture's weights is exact
    given the draws. The decoder runs once for each component.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al., 2021),
        https://arxiv.org/abs/2003.01687

    Args:
        importance_weighted: whether the weights are averaged inside the logarithm.

    Raises:
        ValueError: (when called) a guide that does not draw its one latent from a mixture such as
            ``posteriors.MixtureOfGaussians``, plates inside the data plate, enumerated sites, or programs that do not
            run under a plate of particles.

    Example:
        >>> loss = stratified()
    """

    def __init__(self, *, importance_weighted: bool = False) -> None:
        super().__init__()
        self.importance_weighted = importance_weighted
        self._measured = Measured()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"importance_weighted={self.importance_weighted}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        if structure.nesting != 1 or structure.enumerated:
            raise ValueError("stratified takes pairs whose only plate is the data's and that enumerate nothing.")
        check_vectorized(structure, "stratified")
        with _Stratify() as strata:
            drawn = run_guide(guide, batch, observed=structure.observed)
        if strata.log_weights is None or len([s for s in sites(drawn).values() if not s["is_observed"]]) != 1:
            raise ValueError(
                "stratified takes a guide that draws its one latent from a mixture, such as "
                "posteriors.MixtureOfGaussians: use elbo or iwae with others."
            )
        num_components = len(strata.log_weights)
        plate = pyro.plate(PARTICLES, num_components, dim=-2)
        with plate:
            model_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)
        log_w = combine(model_trace, drawn, 1, num_components, scaled=True).log_weights
        if self.importance_weighted:
            return -(strata.log_weights + log_w).logsumexp(0).mean()
        return -(strata.log_weights.exp() * log_w).sum(0).mean()


sticking_the_landing = StickingTheLanding
stratified = Stratified
dreg = DReG
