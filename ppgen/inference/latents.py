r"""What the latent does: how many nats it carries, and how many of its coordinates are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.inference.batches import checked_rows
from ppgen.inference.modes import evaluating
from ppgen.inference.weights import PARTICLES, device_batch, log_prob, measure, per_datum, programs, run, sites
from ppgen.nn.shapes import positive_integer
from ppgen.pair import Pair

__all__ = ["LatentReport", "latent_report", "mutual_information"]


@dataclass(frozen=True)
class LatentReport:
    """What the latents of a pair carry, by site.

    Attributes:
        kl: mean over the data of KL(q(z | x) ‖ p(z)), in nats.
        active_units: coordinates whose posterior mean varies over the data by more than 0.01.
    """

    kl: dict[str, float]
    active_units: dict[str, int]


def latent_report(pair: Pair, *batch: Any, num_samples: int = 32, seed: int = 0) -> LatentReport:
    r"""KL divergences and active units of a pair's latents, by Monte Carlo.

    .. math::
        \mathrm{KL} = \mathbb{E}_{q(z \mid x)}[\log q(z \mid x) - \log p(z)], \qquad
        A_u = \mathrm{Var}_x\bigl(\mathbb{E}_{q(u \mid x)}[u]\bigr) > 0.01

    The variance of the posterior mean is estimated without bias, as the covariance of the means of two independent
    halves of the draws.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: the data, N rows.
        num_samples: draws per datum, at least 2.
        seed: of the noise.

    Raises:
        ValueError: a bad number of samples, or data that is empty or not finite.
    """
    if positive_integer("num_samples", num_samples) < 2:
        raise ValueError(f"num_samples must be at least 2, to tell noise from signal, got {num_samples}.")
    rows = checked_rows(batch)
    divergence: dict[str, Tensor] = {}
    halves: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with evaluating(pair, seed):
        structure = measure(pair.model, pair.guide, *device_batch(pair, rows(slice(0, 100))))
        nesting, both = structure.nesting, programs(pair.model, pair.guide, structure)
        for block in rows.batches(100):
            given = device_batch(pair, block)
            model_trace, guide_trace = run(*both, given, num_particles=num_samples, nesting=nesting)
            prior = sites(model_trace)
            shape = (num_samples, len(block[0]))
            for name, q in sites(guide_trace).items():
                log_ratio = per_datum(log_prob(q), nesting, *shape)
                # What an autoguide draws for a site is an auxiliary site of its own, with the density of the draw.
                of = name.removesuffix("_unconstrained") if q["infer"].get("is_auxiliary") else name
                if name in prior:
                    log_ratio = log_ratio - per_datum(log_prob(prior[name]), nesting, *shape)
                divergence[of] = divergence.get(of, torch.zeros(())) + log_ratio.mean(0).sum().cpu()
                if name not in prior:
                    continue
                z = q["value"].double().flatten(nesting + 1) if q["value"].dim() > nesting + 1 else q["value"].double()
                first, second = z[: num_samples // 2].mean(0).cpu(), z[num_samples // 2 :].mean(0).cpu()
                halves.setdefault(name, []).append((first, second))
    active = {}
    for name, pairs in halves.items():
        first, second = (torch.cat(h) for h in zip(*pairs, strict=True))
        covariance = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
        active[name] = int((covariance > 0.01).sum())
    return LatentReport({name: float(kl) / len(rows) for name, kl in divergence.items()}, active)


def mutual_information(pair: Pair, *batch: Any, seed: int = 0) -> float:
    r"""How much the latents, all together, tell about which datum they belong to: at most log N nats.

    .. math:: I_q(x; z) \approx \frac{1}{N} \sum_{n} \log \frac{q(z_n \mid x_n)}{\frac{1}{N} \sum_m q(z_n \mid x_m)},
        \qquad z_n \sim q(z \mid x_n)

    The KL term of the ELBO is this and how far the data's latents together are from the prior. It is zero for a latent
    that is ignored, and near log N where every datum has a place of its own: more data are then needed to see more.

    References:
        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016),
        http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf

    Args:
        pair: anything with ``.model`` and ``.guide``, whose guide can score latents that it has not drawn.
        batch: the data, N rows.
        seed: of the noise.

    Raises:
        ValueError: a guide without latents, or plates inside the data plate, or data that is empty or not finite.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> 0 <= mutual_information(vae, torch.rand(50, 64).round()) <= math.log(50)
        True
    """
    rows = checked_rows(batch)
    n, block = len(rows), 100
    with evaluating(pair, seed):
        given = device_batch(pair, rows(slice(None)))
        if measure(pair.model, pair.guide, *given).nesting > 1:
            raise ValueError("mutual_information takes latents that are one event a datum: write them as .to_event().")
        drawn = {name: site["value"] for name, site in sites(poutine.trace(pair.guide).get_trace(*given)).items()}
        if not drawn:
            raise ValueError("The guide draws no latents, so they have no information about anything.")
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, n, block):
            chosen = {name: z[start : start + block].unsqueeze(1) for name, z in drawn.items()}
            size = len(next(iter(chosen.values())))
            values = {name: z.expand(size, n, *z.shape[2:]) for name, z in chosen.items()}
            with pyro.plate(PARTICLES, size, dim=-2):
                found = sites(poutine.trace(poutine.condition(pair.guide, data=values)).get_trace(*given))
            log_q = torch.stack([per_datum(log_prob(site), 1, size, n) for site in found.values()]).sum(0).double()
            own = log_q[torch.arange(size), torch.arange(start, start + size)]
            total = total + (own - log_q.logsumexp(1) + math.log(n)).sum().cpu()
    return float(total) / n
