r"""What the latent does: how many nats it carries, and how many of its coordinates are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.batches import checked_rows
from ppgen.inference.modes import evaluating
from ppgen.inference.weights import device_batch, log_prob, measure, per_datum, run, sites
from ppgen.nn.shapes import positive_integer
from ppgen.pair import Pair

__all__ = ["LatentReport", "latent_report"]


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
        for block in rows.batches(100):
            given = device_batch(pair, block)
            nesting = structure.nesting
            model_trace, guide_trace = run(pair.model, pair.guide, given, num_particles=num_samples, nesting=nesting)
            prior = sites(model_trace)
            for name, q in sites(guide_trace).items():
                if name not in prior:
                    continue
                shape = (num_samples, len(block[0]))
                log_ratio = per_datum(log_prob(q), nesting, *shape) - per_datum(log_prob(prior[name]), nesting, *shape)
                divergence[name] = divergence.get(name, torch.zeros(())) + log_ratio.mean(0).sum().cpu()
                z = q["value"].double().flatten(nesting + 1) if q["value"].dim() > nesting + 1 else q["value"].double()
                first, second = z[: num_samples // 2].mean(0).cpu(), z[num_samples // 2 :].mean(0).cpu()
                halves.setdefault(name, []).append((first, second))
    active = {}
    for name, pairs in halves.items():
        first, second = (torch.cat(h) for h in zip(*pairs, strict=True))
        covariance = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
        active[name] = int((covariance > 0.01).sum())
    return LatentReport({name: float(kl) / len(rows) for name, kl in divergence.items()}, active)
