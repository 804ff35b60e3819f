r"""The aggregate posterior, q(z) = 1/N Σ q(z | x_n): what it keeps of the data, and how far it is from the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.inference.execution.batches import read_once
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.repeated import Given
from ppgen.inference.programs.structure import Structure, measure, programs
from ppgen.inference.programs.traces import (
    delta_of,
    device_batch,
    is_point,
    log_prob,
    num_rows,
    per_datum,
    run,
    run_guide,
    sites,
)
from ppgen.pair import Pair

__all__ = ["energy_distance", "mutual_information", "mutual_information_and_kl"]

ROWS = 20_000  # that a program is given at once, where particles are rows


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
    return _scored_by_all(pair, batch, seed)[0]


def mutual_information_and_kl(pair: Pair, *batch: Any, seed: int = 0) -> tuple[float, float | None]:
    r"""I(x; z) and KL(q(z) ‖ p(z)), in nats; their sum is the mean KL divergence of the same draws.

    .. math:: \mathrm{KL}(q(z) ‖ p(z)) \approx \frac{1}{N} \sum_n \log \frac{1}{N} \sum_m q(z_n \mid x_m) - \log p(z_n),
        \qquad z_n \sim q(z \mid x_n)

    The second is None where it is not defined: a prior that depends on the datum (its contexts), or a model with
    latents that the guide does not draw.

    Args:
        pair: anything with ``.model`` and ``.guide``, whose guide can score latents that it has not drawn.
        batch: the data, N rows.
        seed: of the noise.

    Raises:
        ValueError: as :func:`mutual_information`.
    """
    information, log_q, drawn, given = _scored_by_all(pair, batch, seed)
    with evaluating(pair, seed, "log_prior"):
        log_p = _log_prior(pair, drawn, given)
        # A prior of the datum's own gives the same latents another density next to another datum.
        others = tuple(member.roll(1, 0) if isinstance(member, Tensor) and member.dim() else member for member in given)
        rolled = _log_prior(pair, drawn, others)
    if log_p is None or rolled is None or not torch.allclose(log_p, rolled, rtol=1e-4, atol=1e-4):
        return information, None
    return information, float((log_q - log_p).mean())


def energy_distance(pair: Pair, *batch: Any, seed: int = 0) -> dict[str, float]:
    r"""How far the aggregate posterior is from the prior, by latent, from one draw of each per datum.

    .. math:: 2\,\mathbb{E}\lVert z - z' \rVert - \mathbb{E}\lVert z_1 - z_2 \rVert
        - \mathbb{E}\lVert z'_1 - z'_2 \rVert, \qquad z \sim q(z), \quad z' \sim p(z)

    Zero only where the two are the same distribution. No density is needed: any prior and posterior can be drawn from.
    The averages are over draws of different data, without bias for the population that the data are from.

    References:
        Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013),
        https://doi.org/10.1016/j.jspi.2013.03.018

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: the data, N rows, at least two.
        seed: of the noise.

    Shape:
        A number for each latent site of real vectors (continuous ones, one-hot classes), in the latent's own units.

    Raises:
        ValueError: fewer than two data, or plates inside the data plate.
    """
    check_pair(pair)
    rows = read_once(batch, seed)
    if (n := len(rows)) < 2:
        raise ValueError(f"A distance between distributions needs at least two data, got {n}.")
    draws: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with evaluating(pair, seed, "energy_distance"):
        _checked(pair, device_batch(pair, rows(slice(0, 100))))
        for block in rows.batches(100):
            given = device_batch(pair, block)
            found = sites(run_guide(pair.guide, given))
            prior = sites(poutine.trace(pair.model).get_trace(*given)) if found else {}
            for name, site in found.items():
                z = site["value"]
                if name not in prior or prior[name]["is_observed"] or not z.is_floating_point():
                    continue
                both = (value.expand(num_rows(block), *z.shape[1:]) for value in (z, prior[name]["value"]))
                q, p = (value.reshape(num_rows(block), -1).double().cpu() for value in both)
                draws.setdefault(name, []).append((q, p))
    result = {}
    for name, blocks in draws.items():
        q, p = (torch.cat(part) for part in zip(*blocks, strict=True))
        result[name] = 2 * _mean_distance(q, p) - _mean_distance(q, q) - _mean_distance(p, p)
    return result


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """The mean of ‖a_i − b_j‖ over i ≠ j."""
    exact = "donot_use_mm_for_euclid_dist"
    total = math.fsum(float(torch.cdist(block, b, compute_mode=exact).sum()) for block in a.split(1000))
    return (total - float((a - b).norm(dim=1).sum())) / (len(a) * (len(a) - 1))


def _checked(pair: Pair, given: Any) -> Structure:
    structure = measure(pair.model, pair.guide, *given)
    if structure.nesting > 1:
        raise ValueError("The aggregate posterior is of latents that are one event a datum: write them as .to_event().")
    return structure


def _scored_by_all(pair: Pair, batch: Any, seed: int) -> tuple[float, Tensor, dict[str, Tensor], tuple[Any, ...]]:
    """I(x; z); log q(z_n) of one draw a datum, averaged over all data's posteriors; the draws; the data."""
    check_pair(pair)
    rows = read_once(batch, seed)
    n = len(rows)
    with evaluating(pair, seed, "aggregate"):
        given = device_batch(pair, rows(slice(None)))
        structure = _checked(pair, given)
        guide = programs(pair.model, pair.guide, structure)[1]
        block = 100 if structure.vectorized else max(ROWS // n, 1)
        proposed = sites(run(pair.model, pair.guide, given)[1])
        if not proposed:
            raise ValueError("The guide draws no latents, so they have no information about anything.")
        if handed_on := [n for n, site in proposed.items() if delta_of(site) is not None and not is_point(site)]:
            raise ValueError(
                f"The guide's sites {handed_on} take their value from auxiliary ones, so that the density of one "
                "datum's latents under another's is not known: sample them from a distribution of their own."
            )
        drawn = {name: site["value"] for name, site in proposed.items()}
        own, mixed = [], []
        for start in range(0, n, block):
            chosen = {name: z[start : start + block].unsqueeze(1) for name, z in drawn.items()}
            size = len(next(iter(chosen.values())))
            values = {name: z.expand(size, n, *z.shape[2:]) for name, z in chosen.items()}
            with Given(values, guide, size, n, structure.nesting):
                found = sites(run_guide(guide, given, num_particles=size, nesting=structure.nesting))
            log_q = torch.stack([per_datum(log_prob(found[name]), 1, size, n) for name in proposed]).sum(0).double()
            own.append(log_q[torch.arange(size), torch.arange(start, start + size)].cpu())
            mixed.append((log_q.logsumexp(1) - math.log(n)).cpu())
    log_q = torch.cat(mixed)
    return float((torch.cat(own) - log_q).sum()) / n, log_q, drawn, given


def _log_prior(pair: Pair, drawn: dict[str, Tensor], given: Any) -> Tensor | None:
    """Log p(z_n) of every datum's draw; None if the model draws more than that."""
    found = sites(poutine.trace(poutine.condition(pair.model, data=drawn)).get_trace(*given))
    latents = {name: site for name, site in found.items() if name in drawn}
    if any(not site["is_observed"] for name, site in found.items() if name not in drawn):
        return None
    n = len(next(iter(drawn.values())))
    return torch.stack([per_datum(log_prob(site), 1, 1, n)[0] for site in latents.values()]).sum(0).double().cpu()
