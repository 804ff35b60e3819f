r"""Training objectives: ``loss(model, guide, *batch) -> scalar``, minimised, in nats per datum."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppgen.inference.programs import Program, frame_of_data, log_prob, per_datum, run, sites
from ppgen.inference.refusals import check_names
from ppgen.inference.schedules import Schedule
from ppgen.inference.structure import Structure, measure
from ppgen.inference.turns import in_turn
from ppgen.inference.weights import weigh
from ppgen.nn.shapes import positive_integer
from ppgen.pair import unadapted

__all__ = ["ELBO", "IWAE", "as_loss", "elbo", "iwae"]

Loss = Callable[..., Tensor]


class Measured:
    """The structure of a pair, from one first run: a loss sees two programs, and asks once for each."""

    def __init__(self) -> None:
        self.known: weakref.WeakKeyDictionary[Any, Structure] = weakref.WeakKeyDictionary()

    def __call__(self, model: Program, guide: Program, *batch: Any) -> Structure:
        owner = getattr(model, "__self__", model)  # bound methods are made anew at each access
        if owner not in self.known:
            self.known[owner] = measure(model, guide, *batch)
        return self.known[owner]

    def __deepcopy__(self, memo: Any) -> Measured:
        return Measured()


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
        size = structure.full_size or _length(batch)
        beta = (self.beta() if isinstance(self.beta, Schedule) else self.beta).to(_device(batch)).squeeze(0)
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
            return torch.as_tensor(elbo.loss(model, guide, *batch), device=_device(batch))
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


class IWAE(nn.Module):
    r"""The negative importance-weighted bound of k samples, per datum.

    .. math::
        -\log \frac{1}{k} \sum_{s=1}^{k} \frac{p(x, z_s)}{q(z_s \mid x)}, \qquad z_s \sim q(z \mid x)

    A plate's subsampling scale never enters the log-sum-exp; enumerated sites of the model are summed out inside it.
    Latents without a reparameterised sampler get the score-function gradient with VIMCO's leave-one-out signal.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), https://arxiv.org/abs/1602.06725

    Args:
        num_particles: k.

    Raises:
        ValueError: k is not a positive whole number.

    Example:
        >>> loss = iwae(50)
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__()
        self.num_particles = positive_integer("num_particles", num_particles)
        self._measured = Measured()

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"num_particles={self.num_particles}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, a scalar in nats per datum."""
        structure = self._measured(model, guide, *batch)
        k = self.num_particles
        log_w, score = weigh(model, guide, batch, k, structure)
        bound = log_w.logsumexp(0) - math.log(k)
        loss = -bound.mean()
        if score is not None:
            signal = bound.detach()
            if k > 1:  # the bound if this sample's weight were the geometric mean of the others
                w = log_w.detach()
                others = (w.sum(0, keepdim=True) - w) / (k - 1)
                held_out = w.repeat(k, 1, 1)
                index = torch.arange(k, device=w.device)
                held_out[index, index] = others
                signal = signal - (held_out.logsumexp(1) - math.log(k))
            surrogate = (score * signal).sum(0).mean()
            loss = loss - surrogate + surrogate.detach()
        return loss


elbo = ELBO
iwae = IWAE


def as_loss(loss: Any) -> Loss:
    """A loss per datum from one of ours, a function ``(model, guide, *batch) -> scalar``, or a Pyro ELBO.

    Raises:
        TypeError: the loss is neither, or a Pyro ELBO without ``differentiable_loss``.
    """
    if hasattr(loss, "loss_and_grads"):
        if not hasattr(loss, "differentiable_loss"):
            raise TypeError(
                f"{type(loss).__name__} has no differentiable_loss, so no torch optimiser can use it: take elbo() or "
                "iwae(k) from ppgen.inference, or pyro.infer.Trace_ELBO()."
            )
        return _PyroLoss(loss)
    if not callable(loss):
        raise TypeError(f"loss must be a function (model, guide, *batch) -> scalar or a Pyro ELBO, got {loss!r}.")
    return loss


class _PyroLoss:
    """A Pyro ELBO, which sums over the data plate's full size, as a loss per datum."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self._measured = Measured()

    @in_turn
    def __call__(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        size = self._measured(model, guide, *batch).full_size or _length(batch)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():  # without which TraceEnum_ELBO refuses to work, in validation, too
            loss = self.objective.differentiable_loss(model, guide, *batch) / size
        return loss if wanted else loss.detach()

    def __repr__(self) -> str:
        return f"{type(self.objective).__name__}()"


def _length(batch: Any) -> int:
    return next((len(member) for member in batch if isinstance(member, Tensor) and member.dim()), 1)


def _device(batch: Any) -> torch.device:
    return next((member.device for member in batch if isinstance(member, Tensor)), torch.device("cpu"))
