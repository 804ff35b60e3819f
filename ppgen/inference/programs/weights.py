r"""Per-datum log importance weights of any pair: one estimator, of which everything else is a reading.

Their mean is the ELBO, their log-mean-exp the IWAE bound and the importance-sampled log-likelihood, their tail
gives k-hat, their spread the effective sample size and the standard error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from ppgen.inference.programs.hygiene import warn_of_train_mode
from ppgen.inference.programs.refusals import check_pair, check_weighable
from ppgen.inference.programs.structure import Structure, check_whole, measure, programs
from ppgen.inference.programs.traces import Program, log_prob, own_scale, per_datum, run, sites
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["log_weights"]


def _is_weighed(site: Any) -> bool:
    scale = own_scale(site)
    return isinstance(scale, Tensor) or scale != 1.0


def summed_out(
    trace: poutine.Trace, names: Collection[str], nesting: int, kept_of: str | None = None
) -> tuple[Tensor | float, set[str]]:
    """Log Σ over the enumerated sites, over particles and data, and the names of the sites that went into it.

    Plates inside the data plate are respected: a discrete site in such a plate is summed out before the product over
    the plate is taken. A mask hides what depends on a site that is summed out, and not its own density: where nothing
    is left to depend on it, that sums to one.

    Args:
        trace: of the model, under a plate of particles.
        names: the sites that take part.
        nesting: how many plate axes the pair itself uses.
        kept_of: a site of which the enumerated axes are kept, left of the particles; not with inner plates.
    """
    trace.symbolize_dims()
    found = {name: site for name, site in sites(trace).items() if name in names}
    sum_dims = {s["infer"]["_enumerate_symbol"] for s in found.values() if s["infer"].get("_enumerate_dim") is not None}
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    used: set[str] = set()
    kept: set[str] = set()
    sizes: dict[str, int] = {}
    for name, site in found.items():
        own = site["infer"].get("_enumerate_dim") is not None
        try:
            term = packed.pack(log_prob(site, masked=not own), site["infer"]["_dim_to_symbol"])
        except ValueError as error:
            raise ValueError(
                f"The site {name!r} has an axis that is neither a plate's nor that of an enumerated latent at hand: "
                "what depends on a latent of pyro.markov stands inside its loop, at most `history` steps later."
            ) from error
        if sum_dims.isdisjoint(term._pyro_dims):
            continue
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factors.setdefault(ordinal, []).append(term)
        sizes.update(zip(term._pyro_dims, term.shape, strict=True))
        used.add(name)
        if name == kept_of:
            kept = sum_dims.intersection(term._pyro_dims)
    if not factors:  # sums over a single value, whose axes are none
        return 0.0, used
    target = frozenset(s for s, dim in trace.symbol_to_dim.items() if s in sizes and dim in (-1, -1 - nesting))
    # What is kept is an axis like any other: as target_dims Pyro would leave out all that does not depend on it.
    total = contract_to_tensor(factors, sum_dims - kept, target_ordinal=target, ring=LogRing(dim_to_size=sizes))
    return packed.unpack(total, trace.symbol_to_dim), used


class Weighted(NamedTuple):
    """Log weights of shape (S, N), and the guide's log-density of what has no reparameterised sampler."""

    log_weights: Tensor
    score: Tensor | None


def weigh(
    model: Program,
    guide: Program,
    batch: Sequence[Any],
    num_samples: int,
    structure: Structure,
    from_prior: Sequence[str] = (),
    *,
    scaled: bool = False,
) -> Weighted:
    """The log weights of a pair whose structure is known, with gradients.

    An objective's are ``scaled``: ``poutine.scale`` weighs its terms. A likelihood's are made of densities.
    """
    model, guide = programs(model, guide, structure)
    if scaled:
        check_whole(structure, "an importance-weighted bound")
    # Without anything random every sample would be the same: one is computed, and stands for all.
    particles = num_samples if structure.random or from_prior else 1
    model_trace, guide_trace = run(
        model, guide, batch, num_particles=particles, nesting=structure.nesting, enumerate_model=structure.enumerated
    )
    log_w, score = combine(model_trace, guide_trace, structure.nesting, particles, from_prior, scaled=scaled)
    return Weighted(log_w.expand(num_samples, -1), score)


def combine(
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    nesting: int,
    num_particles: int,
    from_prior: Sequence[str] = (),
    *,
    scaled: bool = False,
) -> Weighted:
    """The log weights of two traces, site by site."""
    shape = (num_particles, check_weighable(model_trace, guide_trace, from_prior))
    total = log_joint(model_trace, sites(guide_trace), nesting, shape, from_prior, scaled=scaled)
    log_q, score = log_proposal(guide_trace, nesting, shape, scaled=scaled)
    return Weighted(total if log_q is None else total - log_q, score)


def log_joint(
    model_trace: poutine.Trace,
    proposed: Collection[str],
    nesting: int,
    shape: tuple[int, int],
    from_prior: Sequence[str] = (),
    *,
    scaled: bool = False,
) -> Tensor:
    """Log p(x, z) per particle and datum, without what the prior proposes; enumerated sites are summed out."""
    pending = {name: site for name, site in sites(model_trace).items() if name not in from_prior}
    total: Tensor | float = 0.0
    if any(site["infer"].get("_enumerate_dim") is not None for n, site in pending.items() if n not in proposed):
        of_sums, used = summed_out(model_trace, pending, nesting)
        total = per_datum(of_sums, nesting, *shape) if isinstance(of_sums, Tensor) else of_sums
        if scaled and (weighed := [n for n in used if _is_weighed(pending[n])]):
            raise ValueError(
                f"The sites {sorted(weighed)} are summed out inside the bound, and poutine.scale weighs them, which is "
                "not the same before and after the sum: leave the scale out, or take elbo(), which weighs the sum."
            )
        pending = {name: site for name, site in pending.items() if name not in used}
    for site in pending.values():
        total = total + per_datum(scale_and_mask(log_prob(site), own_scale(site) if scaled else 1.0), nesting, *shape)
    assert isinstance(total, Tensor)
    return total


def log_proposal(
    guide_trace: poutine.Trace, nesting: int, shape: tuple[int, int], *, scaled: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Log q(z | x) per particle and datum, and the part of it that has no reparameterised sampler; None for nothing."""
    total: Tensor | None = None
    score: Tensor | None = None
    for site in sites(guide_trace).values():
        density = log_prob(site)
        log_q = per_datum(scale_and_mask(density, own_scale(site) if scaled else 1.0), nesting, *shape)
        total = log_q if total is None else total + log_q
        if not site["is_observed"] and not site["fn"].has_rsample:  # whatever weighs its term
            drawn = per_datum(density, nesting, *shape)
            score = drawn if score is None else score + drawn
    return total, score


def log_weights(pair: Pair, *batch: Any, num_samples: int, from_prior: Sequence[str] = ()) -> Tensor:
    r"""Log importance weights of a pair, per sample and datum.

    .. math:: \log w_{sn} = \log p(x_n, z_{sn}) - \log q(z_{sn} \mid x_n), \qquad z_{sn} \sim q(z \mid x_n)

    Right for any pair: masks (``poutine.mask``) are applied; scales are not, a subsampled plate's or those of
    ``poutine.scale``, which weigh the terms of an objective and leave densities as they are; discrete sites of the
    model that are marked for enumeration are summed out exactly, inside whatever plates they stand in. Noise comes
    from torch's global generator and gradients flow: this is the raw material. For an estimate with errors see
    :func:`log_likelihood`.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519

    Args:
        pair: anything with ``.model`` and ``.guide``, each datum on axis −1 of one plate.
        batch: what the pair is called with; the data axis first.
        num_samples: S, the number of draws per datum.
        from_prior: latents of the model that the guide leaves to the prior.

    Shape:
        (S, N), in nats.

    Raises:
        ValueError: a latent that nobody proposes, a site of the guide that the model lacks, no per-datum axis, a model
            without an observation, or a number of samples that is not a positive whole number.

    Example:
        >>> import ppgen
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> log_weights(vae, torch.zeros(5, 64), num_samples=7).shape
        torch.Size([7, 5])
    """
    check_pair(pair)
    positive_integer("num_samples", num_samples)
    if not torch.is_grad_enabled():
        warn_of_train_mode(pair)
    structure = measure(pair.model, pair.guide, *batch)
    check_whole(structure, "a weight")
    return weigh(pair.model, pair.guide, batch, num_samples, structure, from_prior).log_weights
