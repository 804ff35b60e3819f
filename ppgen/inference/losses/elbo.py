r"""The evidence lower bound, of any pair: draws without a gradient, enumeration, free bits, closed forms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppgen.inference.losses.loss import Measured, size_of_data
from ppgen.inference.losses.schedules import Schedule
from ppgen.inference.programs.refusals import check_names
from ppgen.inference.programs.structure import Structure
from ppgen.inference.programs.traces import (
    Program,
    device_of_batch,
    frame_of_data,
    log_prob,
    per_datum,
    run,
    sites,
)
from ppgen.inference.programs.turns import in_turn
from ppgen.nn.shapes import positive_integer
from ppgen.pair import unadapted

__all__ = ["ELBO", "elbo"]


class ELBO(nn.Module):
    r"""The negative evidence lower bound.

    .. math::
        -\mathbb{E}_{q(z \mid x)}\bigl[\log p(x \mid z)
            - \beta \, (\log q(z \mid x) - \log p(z))\bigr]

    A plate's subsampling scale is kept and the sum divided by the data plate's full size, so a latent outside the
    plate (a global one) is weighed as it should be. Latents without a reparameterised sampler get the score-function
    gradient; a pair with sites that are marked for enumeration goes through Pyro's ``TraceEnum_ELBO``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016: free bits),
        https://arxiv.org/abs/1606.04934

    Args:
        beta: the weight of the KL term, or a schedule of it such as :func:`warmup`.
        num_particles: draws of the latent per datum.
        free_bits: nats of KL, averaged over the batch, that each latent site has for nothing.
        analytic_kl: whether KL(q(z | x) ‖ p(z)) of a site is taken in closed form where torch knows one, given the
            latents drawn before it.

    Raises:
        ValueError: a negative ``beta`` or ``free_bits``, or a number of particles that is not a positive whole number.

    Example:
        >>> loss = elbo(beta=0.5)
    """

    beta: Tensor | Schedule

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        *,
        num_particles: int = 1,
        free_bits: float = 0.0,
        analytic_kl: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(beta, Schedule):
            self.beta = beta
        else:
            if not (math.isfinite(beta) and beta >= 0):
                raise ValueError(f"beta must be a finite number that is not negative, or a schedule, got {beta!r}.")
            self.register_buffer("beta", torch.tensor([float(beta)]))
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise ValueError(f"free_bits must be a finite number of nats that is not negative, got {free_bits!r}.")
        self._weighted = isinstance(beta, Schedule) or beta != 1
        self.num_particles = positive_integer("num_particles", num_particles)
        self.free_bits = free_bits
        self.analytic_kl = analytic_kl
        self._measured = Measured()

    def extra_repr(self) -> str:
        """The settings, for people."""
        beta = "" if isinstance(self.beta, Schedule) else f"beta={self.beta.item():g}, "
        kl = ", analytic_kl=True" if self.analytic_kl else ""
        return f"{beta}num_particles={self.num_particles}, free_bits={self.free_bits:g}{kl}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        size = size_of_data(structure, batch)
        beta = self.beta() if isinstance(self.beta, Schedule) else self.beta
        beta = beta.to(device=device_of_batch(batch)).squeeze(0)
        if structure.enumerated or structure.sequential:
            return self._enumerated(model, guide, batch, beta, structure) / size
        if structure.vectorized and self.num_particles > 1:
            runs = [run(model, guide, batch, num_particles=self.num_particles, nesting=structure.nesting)]
        else:
            runs = [run(model, guide, batch, nesting=structure.nesting) for _ in range(self.num_particles)]
        terms = [self._terms(sites(m), sites(g), structure, beta) for m, g in runs]
        total: Tensor | float = sum(term.others for term in terms)
        for name in terms[0].divergences:
            divergence = torch.stack([term.divergences[name] for term in terms]).sum()
            total = total - beta * self._freed(divergence, size)
        assert isinstance(total, Tensor)
        return -total / (size * self.num_particles)

    def _terms(
        self, model_sites: dict[str, Any], guide_sites: dict[str, Any], structure: Structure, beta: Tensor
    ) -> _Terms:
        """What the objective is made of, from one run of both programs."""
        check_names(model_sites, guide_sites)
        closed = _closed_forms(model_sites, guide_sites) if self.analytic_kl else {}
        divergences: dict[str, Tensor] = {}
        others: Tensor | float = 0.0
        for name, site in model_sites.items():
            if site["is_observed"]:
                others = others + log_prob(site, scaled=True).sum()
            elif name in closed:
                divergences[name] = closed[name]
            else:
                log_q = log_prob(guide_sites[name], scaled=True).sum()
                divergences[name] = log_q - log_prob(site, scaled=True).sum()
        for name, site in guide_sites.items():
            if name not in model_sites:  # auxiliary: part of q's density
                others = others - beta * log_prob(site, scaled=True).sum()
        drawn = [site for site in guide_sites.values() if not (site["is_observed"] or site["fn"].has_rsample)]
        if drawn:
            data = _Data.of(model_sites)
            own, shared = self._signals(model_sites, guide_sites, structure, beta, data)
            for site in drawn:
                if data.holds(site):
                    surrogate = (per_datum(log_prob(site), structure.nesting, *own.shape) * own).sum()
                else:
                    surrogate = (_per_particle(log_prob(site), structure.nesting, len(shared)) * shared).sum()
                others = others + surrogate - surrogate.detach()
        return _Terms(others, divergences)

    def _freed(self, divergence: Tensor, size: int) -> Tensor:
        return divergence.clamp(min=self.free_bits * size * self.num_particles) if self.free_bits else divergence

    def _signals(
        self, model_sites: dict[str, Any], guide_sites: dict[str, Any], structure: Structure, beta: Tensor, data: _Data
    ) -> list[Tensor]:
        """What scores are weighed by, over a baseline: all that may depend on a datum's own draws, and on shared ones.

        Of shape (S, N) and (S, 1).
        """
        particles = self.num_particles if structure.vectorized else 1
        with torch.no_grad():
            own, shared = (torch.zeros(particles, n, device=beta.device) for n in (data.length, 1))
            for found, sign in ((model_sites, 1), (guide_sites, -1)):
                for site in found.values():
                    weight = sign * (1.0 if sign > 0 and site["is_observed"] else beta)
                    value = weight * log_prob(site, scaled=True)
                    if data.holds(site):
                        own = own + per_datum(value, structure.nesting, particles, data.length)
                    else:
                        shared = shared + _per_particle(value, structure.nesting, particles)
            signals = [own + shared, own.sum(1, keepdim=True) + shared]
            if particles > 1:  # leave-one-out: independent of the particle whose score it multiplies
                others = (signal.sum(0, keepdim=True) - signal for signal in signals)
                signals = [signal - other / (particles - 1) for signal, other in zip(signals, others, strict=True)]
            return signals

    @in_turn
    def _enumerated(self, model: Program, guide: Program, batch: Any, beta: Tensor, structure: Structure) -> Tensor:
        if self.free_bits:
            raise ValueError("free_bits cannot be combined with enumerated sites: leave it at 0.")
        if self._weighted:
            model, guide = _latents_scaled(model, beta), _latents_scaled(guide, beta)
        elbo = TraceEnum_ELBO(
            num_particles=self.num_particles,
            vectorize_particles=self.num_particles > 1 and structure.vectorized,
            max_plate_nesting=structure.nesting,
        )
        if not torch.is_grad_enabled():  # then Pyro's differentiable loss refuses
            return torch.as_tensor(elbo.loss(model, guide, *batch), device=device_of_batch(batch))
        return elbo.differentiable_loss(model, guide, *batch)


class _Terms(NamedTuple):
    """Of the objective: the divergence of each latent site, and the sum of all else."""

    others: Any
    divergences: dict[str, Tensor]


class _Data(NamedTuple):
    """The plate of the data."""

    name: str
    length: int
    others: set[str]  # plates of the model on the same axis, of what the data share: a mixture's components, say

    @classmethod
    def of(cls, model_sites: dict[str, Any]) -> _Data:
        frames = {n: f for n, site in model_sites.items() if (f := frame_of_data(site)) is not None}
        seen = next((n for n in frames if model_sites[n]["is_observed"]), None)
        if seen is None:
            return cls("", 1, {f.name for f in frames.values()})
        size, name = frames[seen].size, frames[seen].name
        # A plate that was given no size has that of what stands in it.
        length = size if size > 0 else (1, *model_sites[seen]["fn"].batch_shape)[-1]
        return cls(name, length, {f.name for f in frames.values()} - {name})

    def holds(self, site: Any) -> bool:
        """Whether a site has a value for each datum."""
        frame = frame_of_data(site)
        return (
            frame is not None
            and frame.name not in self.others
            and (frame.name == self.name or frame.size == self.length)
        )


def _per_particle(value: Tensor, nesting: int, num_particles: int) -> Tensor:
    """A site's log-probability summed over everything but particles: shape (S, 1)."""
    value = value.reshape((1,) * (nesting + 1 - value.dim()) + value.shape)
    return value.flatten(1).sum(1, keepdim=True).expand(num_particles, 1) if nesting else value.reshape(-1, 1)


def _closed_forms(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> dict[str, Tensor]:
    """KL(q ‖ p) of the sites for which torch has a closed form, scaled and masked as the model's site is, and summed.

    The divergence of a site holds given what was drawn before it, so all that the model's site may depend on must
    have been drawn by the guide before its own: a guide that draws in another order gets no closed form there.
    """
    found = {}
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    order = list(guide_sites)
    for i, name in enumerate(latents):
        if not set(latents[:i]) <= set(order[: order.index(name)]):
            continue
        q, p = guide_sites[name], model_sites[name]
        try:
            divergence = kl_divergence(unadapted(q["fn"]), unadapted(p["fn"]))
        except NotImplementedError:
            continue
        found[name] = scale_and_mask(divergence, p["scale"], p["mask"]).sum()
    return found


class _LatentScale(poutine.messenger.Messenger):
    """Scales the log-probability of latent sites only."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale


def _latents_scaled(program: Program, scale: Tensor) -> Program:
    return _LatentScale(scale)(program)


elbo = ELBO
