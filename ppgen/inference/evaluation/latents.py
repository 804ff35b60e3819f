r"""What the latent does: how many nats it carries, and how many of its coordinates are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from ppgen.inference.evaluation.aggregate import energy_distance, mutual_information_and_kl
from ppgen.inference.execution.batches import read_once
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.structure import measure, programs
from ppgen.inference.programs.traces import coordinates, device_batch, log_prob, num_rows, per_datum, run, sites
from ppgen.inference.programs.weights import log_joint
from ppgen.numbers import natural_number, positive_integer
from ppgen.pair import Pair, unadapted

__all__ = ["LatentReport", "latent_report"]


@dataclass(frozen=True)
class LatentReport:
    """What the latents of a pair carry, by site.

    Attributes:
        kl: mean over the data of KL(q(z | x) ‖ p(z)), in nats; latents that are enumerated are summed out of p(z).
        active_units: coordinates whose posterior mean varies over the data by more than 0.01.
        kl_per_dimension: ``kl`` by coordinate, in nats, of the latent's shape (other plates first); its sum is ``kl``.
            None where q or p does not factorise over coordinates: flows, mixtures, full covariances, enumeration.
        mutual_information: I(x; z) of all latents together, in nats, at most log N; None if not asked for.
        aggregate_kl: KL(q(z) ‖ p(z)) of all latents together, in nats; None if not asked for, or if it is not defined:
            the prior depends on the datum, or the model draws latents that the guide does not.
        energy_distance: between the aggregate posterior and the prior, by site of real vectors, in the latent's own
            units, without bias (so that it can be slightly negative); None if not asked for.
    """

    kl: dict[str, float]
    active_units: dict[str, int]
    kl_per_dimension: dict[str, Tensor | None] = field(default_factory=dict)
    mutual_information: float | None = None
    aggregate_kl: float | None = None
    energy_distance: dict[str, float] | None = None


def latent_report(
    pair: Pair, *batch: Any, num_samples: int = 32, num_aggregate: int = 0, seed: int = 0
) -> LatentReport:
    r"""KL divergences and active units of a pair's latents, and how far they are from the prior, by Monte Carlo.

    .. math::
        \mathrm{KL} = \mathbb{E}_{q(z \mid x)}[\log q(z \mid x) - \log p(z)], \qquad
        A_u = \mathrm{Var}_x\bigl(\mathbb{E}_{q(u \mid x)}[u]\bigr) > 0.01

    The variance of the posterior mean is estimated without bias, as the covariance of the means of two independent
    halves of the draws. The mean KL divergence is what the latents tell about the datum, and how far all data's
    latents together, the aggregate posterior :math:`q(z) = \frac{1}{N} \sum_n q(z \mid x_n)`, are from the prior:

    .. math::
        \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) ‖ p(z)) = I_q(x; z) + \mathrm{KL}(q(z) ‖ p(z))

    Both are unbiased for these N data, each from the same one draw a datum. As estimates for all data that there could
    be, the first is too small and the second too large, by the same amount, much where the first nears log N.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519

        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016),
        http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: the data, N rows.
        num_samples: draws per datum, at least 2.
        num_aggregate: how many data, the first, make the aggregate posterior, at least 2: the guide scores each one's
            draw under each one's posterior, the square of this many. 0 leaves out what needs it.
        seed: of the noise.

    Raises:
        ValueError: a bad number of samples, or data that is empty or not finite; with ``num_aggregate``, a guide
            without latents, or that cannot score latents that it has not drawn, or plates inside the data plate.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> q = posteriors.DiagNormal(nn.MLP(64, 6))
        >>> vae = models.VAE(priors.StandardNormal(3), decoders.Bernoulli(nn.MLP(3, 64)), q)
        >>> latent_report(vae, torch.rand(50, 64).round()).kl_per_dimension["z"].shape
        torch.Size([3])
    """
    if natural_number("num_aggregate", num_aggregate) == 1:
        raise ValueError("num_aggregate must be 0, or at least 2: one datum's posterior is no aggregate; got 1.")
    if positive_integer("num_samples", num_samples) < 2:
        raise ValueError(f"num_samples must be at least 2, to tell noise from signal, got {num_samples}.")
    check_pair(pair)
    rows = read_once(batch, seed)
    divergence: dict[str, Tensor] = {}
    dimensions: dict[str, Tensor | None] = {}
    halves: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with evaluating(pair, seed, "latent_report"):
        structure = measure(pair.model, pair.guide, *device_batch(pair, rows(slice(0, 100))))
        nesting, both = structure.nesting, programs(pair.model, pair.guide, structure)
        settings: dict[str, Any] = {"nesting": nesting, "enumerate_model": structure.enumerated}
        for block in rows.batches(100):
            given = device_batch(pair, block)
            model_trace, guide_trace = run(*both, given, num_particles=num_samples, **settings)
            prior = sites(model_trace)
            shape = (num_samples, num_rows(block))
            log_prior = _log_priors(model_trace, [n for n in prior if n in guide_trace.nodes], nesting, shape)
            for name, q in sites(guide_trace).items():
                log_ratio = per_datum(log_prob(q), nesting, *shape)
                # What an autoguide draws for a site is an auxiliary site of its own, with the density of the draw.
                of = name.removesuffix("_unconstrained") if q["infer"].get("is_auxiliary") else name
                if name in prior:
                    log_ratio = log_ratio - log_prior[name]
                divergence[of] = divergence.get(of, torch.zeros(())) + log_ratio.mean(0).sum().cpu()
                part = _per_dimension(q, prior.get(name), nesting, num_rows(block))
                dimensions[of] = _sum(dimensions[of], part) if of in dimensions else part
                if name not in prior:
                    continue
                z = coordinates(q, nesting, *shape).double()
                first, second = z[: num_samples // 2].mean(0).cpu(), z[num_samples // 2 :].mean(0).cpu()
                halves.setdefault(name, []).append((first, second))
    active = {}
    for name, pairs in halves.items():
        first, second = (torch.cat(h) for h in zip(*pairs, strict=True))
        covariance = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
        active[name] = int((covariance > 0.01).sum())
    information = distance = distances = None
    if num_aggregate:
        first_rows = rows(slice(0, num_aggregate))
        information, distance = mutual_information_and_kl(pair, *first_rows, seed=seed)
        distances = energy_distance(pair, *first_rows, seed=seed)
    return LatentReport(
        kl={name: float(kl) / len(rows) for name, kl in divergence.items()},
        active_units=active,
        kl_per_dimension={name: None if kl is None else kl / len(rows) for name, kl in dimensions.items()},
        mutual_information=information,
        aggregate_kl=distance,
        energy_distance=distances,
    )


def _log_priors(
    model_trace: poutine.Trace, names: Sequence[str], nesting: int, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Log p(z | the latents before it), (S, N), of each named site, sites that are enumerated summed out."""
    found = sites(model_trace)
    enumerated = [name for name, site in found.items() if site["infer"].get("_enumerate_dim") is not None]
    if not enumerated:
        return {name: per_datum(log_prob(found[name]), nesting, *shape) for name in names}
    log_priors, before = {}, torch.zeros(())
    for i, name in enumerate(names):
        others = [n for n in found if n not in enumerated and n not in names[: i + 1]]
        joint = log_joint(model_trace, names, nesting, shape, others)
        log_priors[name], before = joint - before, joint
    return log_priors


def _per_dimension(q: Any, p: Any, nesting: int, num_data: int) -> Tensor | None:
    """E[log q − log p] by coordinate, summed over the data; None if one of the two does not factorise."""
    log_q, log_p = _elementwise(q), torch.zeros(()) if p is None else _elementwise(p)
    if log_q is None or log_p is None:
        return None
    ratio = (log_q - log_p.to(log_q.device)).double()
    if ratio.dim() > nesting + 1 + len(q["fn"].event_shape):  # the prior is a sum over what is enumerated
        return None
    ratio = ratio.reshape((1,) * (nesting + 1 + len(q["fn"].event_shape) - ratio.dim()) + ratio.shape)
    ratio = ratio.expand(*ratio.shape[:nesting], num_data, *ratio.shape[nesting + 1 :])
    return ratio.sum(nesting).mean(0).cpu()


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None or first.shape != second.shape else first + second


def _elementwise(site: Any) -> Tensor | None:
    """The log-probability of each coordinate, if it has one of its own."""
    fn = unadapted(site["fn"])
    while isinstance(fn, Independent):
        fn = unadapted(fn.base_dist)
    if "scored" in site or fn.event_shape:
        return None
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * len(site["fn"].event_shape))
    value: Tensor = scale_and_mask(fn.log_prob(site["value"]), 1.0, mask)
    return value
