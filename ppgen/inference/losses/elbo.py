r"""The evidence lower bound, of any pair: draws without a gradient, enumeration, free bits, closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppgen.inference.losses.loss import DataSize, Measured
from ppgen.inference.losses.schedules import Schedule
from ppgen.inference.programs.refusals import check_names
from ppgen.inference.programs.structure import Structure
from ppgen.inference.programs.traces import (
    Program,
    delta_of,
    device_of_batch,
    frame_of_data,
    log_prob,
    observing,
    per_datum,
    proposing,
    run,
    sites,
)
from ppgen.inference.programs.turns import in_turn
from ppgen.numbers import finite_number, positive_integer
from ppgen.pair import tracing, unadapted

__all__ = ["ELBO", "elbo"]


class ELBO(nn.Module):
    r"""The negative evidence lower bound.

    .. math::
        -\mathbb{E}_{q(z \mid x)}\bigl[\log p(x \mid z)
            - \beta \, (\log q(z \mid x) - \log p(z))\bigr]

    A plate's subsampling scale is kept and the sum divided by the data plate's full size, so a latent outside the
    plate (a global one) is weighed as it should be where a batch says of how many data it is:
    ``pyro.plate("data", N, subsample_size=len(x))``. Latents without a reparameterised sampler get the score-function
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
        ValueError: a negative ``beta`` or ``free_bits``, or a number of particles that is not a positive whole number;
            when called, free bits or closed forms for a pair with enumerated sites, or a ``beta`` other than 1 where
            they are summed out in the model.

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
            if min(beta.start, beta.end) < 0:
                raise ValueError(f"beta must not be negative, got a schedule from {beta.start} to {beta.end}.")
            self.beta = beta
        else:
            self.register_buffer("beta", torch.tensor([finite_number("beta", beta, least=0)]))
        free_bits = finite_number("free_bits", free_bits, least=0)
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
        beta = self.beta() if isinstance(self.beta, Schedule) else self.beta
        beta = beta.to(device=device_of_batch(batch)).squeeze(0)
        if structure.enumerated or structure.sequential:
            self._check_enumerated(structure)
            with DataSize(batch) as data:
                total = self._enumerated(model, guide, batch, beta, structure)
            return total / data.size
        with DataSize(batch) as data:
            if structure.vectorized and self.num_particles > 1:
                runs = [run(model, guide, batch, num_particles=self.num_particles, nesting=structure.nesting)]
            else:
                runs = [run(model, guide, batch, nesting=structure.nesting) for _ in range(self.num_particles)]
        drawn = [(sites(m), sites(g)) for m, g in runs]
        terms = [self._terms(*each, beta) for each in drawn]
        total = sum(_sum(term.others) for term in terms)
        free = self.free_bits * data.size * self.num_particles
        weights: dict[str, Tensor] = {}
        for name in terms[0].divergences:
            divergence = torch.stack([_sum(term.divergences[name]) for term in terms]).sum()
            weights[name] = beta * (divergence.detach() >= free) if free else beta  # none where it is for nothing
            total = total - beta * (divergence.clamp(min=free) if free else divergence)
        for each, term in zip(drawn, terms, strict=True):
            for surrogate in self._surrogates(*each, term, weights, structure):
                total = total + surrogate - surrogate.detach()
        return -total / (data.size * self.num_particles)

    def _terms(self, model_sites: dict[str, Any], guide_sites: dict[str, Any], beta: Tensor) -> _Terms:
        """What the objective is made of, from one run of both programs."""
        check_names(model_sites, guide_sites)
        closed = _closed_forms(model_sites, guide_sites) if self.analytic_kl else {}
        divergences: dict[str, list[_Term]] = {}
        others: list[_Term] = []
        for name, site in model_sites.items():
            if site["is_observed"]:
                others.append(_Term(site, log_prob(site, scaled=True)))
            elif name in closed:
                divergences[name] = [_Term(site, closed[name])]
            else:
                proposal = guide_sites[name]
                log_q, log_p = log_prob(proposal, scaled=True), log_prob(site, scaled=True)
                divergences[name] = [_Term(proposal, log_q), _Term(site, -log_p)]
        for name, site in guide_sites.items():
            if name not in model_sites:  # auxiliary: part of q's density
                others.append(_Term(site, -beta * log_prob(site, scaled=True)))
        return _Terms(others, divergences)

    def _surrogates(
        self,
        model_sites: dict[str, Any],
        guide_sites: dict[str, Any],
        terms: _Terms,
        weights: dict[str, Tensor],
        structure: Structure,
    ) -> Iterator[Tensor]:
        """What has the score-function gradient of each site that is drawn without a reparameterised sampler."""
        drawn = [site for site in guide_sites.values() if not (site["is_observed"] or site["fn"].has_rsample)]
        if not drawn:
            return
        data = _Data.of(model_sites)
        own, shared = self._signals(terms, weights, structure, data)
        for site in drawn:
            if data.holds(site):
                yield (per_datum(log_prob(site), structure.nesting, *own.shape) * own).sum()
            else:
                yield (_per_particle(log_prob(site), structure.nesting, len(shared)) * shared).sum()

    def _signals(self, terms: _Terms, weights: dict[str, Tensor], structure: Structure, data: _Data) -> list[Tensor]:
        """What scores are weighed by, over a baseline: all that may depend on a datum's own draws, and on shared ones.

        It is made of the terms that the loss is made of, so that both have one gradient: of a closed form (which the
        draws above it may move), and not of a divergence that is for nothing. Of shape (S, N) and (S, 1).
        """
        particles = self.num_particles if structure.vectorized else 1
        with torch.no_grad():
            weighed = terms.others + [
                _Term(term.site, -weights[name] * term.value)
                for name, found in terms.divergences.items()
                for term in found
            ]
            own, shared = (torch.zeros(particles, n, device=weighed[0].value.device) for n in (data.length, 1))
            for site, value in weighed:
                if data.holds(site):
                    own = own + per_datum(value, structure.nesting, particles, data.length)
                else:
                    shared = shared + _per_particle(value, structure.nesting, particles)
            signals = [own + shared, own.sum(1, keepdim=True) + shared]
            if particles > 1:  # leave-one-out: independent of the particle whose score it multiplies
                others = (signal.sum(0, keepdim=True) - signal for signal in signals)
                signals = [signal - other / (particles - 1) for signal, other in zip(signals, others, strict=True)]
            return signals

    def _check_enumerated(self, structure: Structure) -> None:
        """Refuses the settings that Pyro's objective of enumerated sites has no place for."""
        if self.free_bits:
            raise ValueError("free_bits cannot be combined with enumerated sites: leave it at 0.")
        if self.analytic_kl:
            raise ValueError(
                "analytic_kl=True cannot be combined with enumerated sites, of which the exact sum is taken as it is: "
                "leave it at False."
            )
        if self._weighted and structure.summed:
            beta = self.beta if isinstance(self.beta, Schedule) else f"{self.beta.item():g}"
            raise ValueError(
                f"beta={beta} weighs the KL term of latents that the guide draws, and the model's sites "
                f"{list(structure.summed)} are summed out in the model, so that they have none: leave beta at 1, or "
                "draw them in the guide, there marked infer={'enumerate': 'parallel'}."
            )

    @in_turn
    def _enumerated(self, model: Program, guide: Program, batch: Any, beta: Tensor, structure: Structure) -> Tensor:
        model, guide = observing(model), proposing(guide, structure.observed)
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


class _Term(NamedTuple):
    """A part of the objective, and a site in whose plates it stands."""

    site: Any
    value: Tensor


class _Terms(NamedTuple):
    """Of the objective: the divergence of each latent site, and all else."""

    others: list[_Term]
    divergences: dict[str, list[_Term]]


def _sum(terms: list[_Term]) -> Any:
    return sum(term.value.sum() for term in terms)


class _Data(NamedTuple):
    """The plate of the data."""

    name: str
    length: int
    plates: dict[str, str]  # of the model's sites on the axis: of some it is that of what the data share (components)

    @classmethod
    def of(cls, model_sites: dict[str, Any]) -> _Data:
        frames = {n: f for n, site in model_sites.items() if (f := frame_of_data(site)) is not None}
        seen = next((n for n in frames if model_sites[n]["is_observed"]), None)
        if seen is None:
            return cls("", 1, {n: f.name for n, f in frames.items()})
        size, name = frames[seen].size, frames[seen].name
        # A plate that was given no size has that of what stands in it.
        length = size if size > 0 else (1, *model_sites[seen]["fn"].batch_shape)[-1]
        return cls(name, length, {n: f.name for n, f in frames.items()})

    def holds(self, site: Any) -> bool:
        """Whether a site has a value for each datum."""
        frame = frame_of_data(site)
        if frame is None:
            return False
        if site["name"] in self.plates:  # whatever the guide calls its own
            return self.plates[site["name"]] == self.name
        return frame.name == self.name or (frame.size == self.length and frame.name not in self.plates.values())


def _per_particle(value: Tensor, nesting: int, num_particles: int) -> Tensor:
    """A site's log-probability summed over everything but particles: shape (S, 1)."""
    value = value.reshape((1,) * (nesting + 1 - value.dim()) + value.shape)
    return value.flatten(1).sum(1, keepdim=True).expand(num_particles, 1) if nesting else value.reshape(-1, 1)


def _closed_forms(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> dict[str, Tensor]:
    """KL(q ‖ p) of the sites for which torch has a closed form, scaled and masked as the model's site is.

    The divergence of a site holds given what was drawn before it, so all that the model's site may depend on must
    have been drawn by the guide before its own: a guide that draws in another order gets no closed form there. Nor does
    a point, whose sampled term is exact: Pyro's closed form leaves out the density of what it hands on; nor a site that
    model and guide scale or mask otherwise, whose two terms are no divergence.
    """
    found = {}
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    order = list(guide_sites)
    for i, name in enumerate(latents):
        q, p = guide_sites[name], model_sites[name]
        if not set(latents[:i]) <= set(order[: order.index(name)]) or delta_of(q) is not None:
            continue
        if (alike := _weighed_alike(q, p)) is False:
            continue
        # A replayed site is not expanded over particles, and torch's divergences do not all broadcast.
        shape = torch.broadcast_shapes(q["fn"].batch_shape, p["fn"].batch_shape)
        try:
            divergence = kl_divergence(*(unadapted(_expanded(site["fn"], shape)) for site in (q, p)))
        except NotImplementedError:
            continue
        found[name] = scale_and_mask(divergence, p["scale"], p["mask"])
        if isinstance(alike, Tensor):
            found[name] = torch.where(alike, found[name], log_prob(q, scaled=True) - log_prob(p, scaled=True))
    return found


def _weighed_alike(q: Any, p: Any) -> Any:
    """Whether two sites, whose masks are the same, have the same scale; where that is a tensor, of each element."""
    alike = q["scale"] is p["scale"] or q["scale"] == p["scale"]
    if isinstance(alike, Tensor) and not (tracing() or alike.is_cuda):  # mostly all are or none is, which is less to do
        return True if alike.all() else alike if alike.any() else False
    return alike


def _expanded(fn: Any, shape: torch.Size) -> Any:
    return fn if fn.batch_shape == shape else fn.expand(shape)


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
