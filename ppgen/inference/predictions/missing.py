"""Incomplete and damaged data: what was not observed is integrated out, filled in, or cleaned by the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference.evaluation.likelihood import CELL_DATA, CELL_SAMPLES
from ppgen.inference.evaluation.psis import check_weights
from ppgen.inference.execution.batches import Rows, read_once
from ppgen.inference.predictions.predict import mean_of
from ppgen.inference.programs.masks import masked
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.refusals import check_weighable
from ppgen.inference.programs.seeds import derived_seed
from ppgen.inference.programs.structure import check_vectorized, measure
from ppgen.inference.programs.traces import device_batch, innermost, is_factor, log_prob, run, sites
from ppgen.inference.programs.weights import summed_out
from ppgen.numbers import positive_integer
from ppgen.pair import Pair, unadapted

__all__ = ["denoise", "impute"]


class _Draws(NamedTuple):
    """One cell of the proposal: joint log weights (S, N), and the observation's distribution over (S, N)."""

    log_weights: Tensor
    x: Any


def _draws(pair: Pair, batch: Any, num_samples: int, nesting: int, enumerated: bool) -> _Draws:
    """Draws of the latents with their weights; enumerated latents of x stand beside the samples, each value one more.

    Those that its distribution does not depend on are summed out: beside it they may have the axis of another one, as
    ``pyro.markov`` gives out the same axes again.
    """
    model_trace, guide_trace = run(
        pair.model, pair.guide, batch, num_particles=num_samples, nesting=nesting, enumerate_model=enumerated
    )
    n = check_weighable(model_trace, guide_trace, ())
    found = sites(model_trace)
    x = _site_of(batch[0], [site for site in found.values() if site["is_observed"] and not is_factor(site)])
    total, used = summed_out(model_trace, found, nesting, kept_of=x["name"]) if enumerated else (0.0, set())
    total = total + sum(log_prob(site) for name, site in found.items() if name not in used)
    total = torch.as_tensor(total - sum(log_prob(site) for site in sites(guide_trace).values()))
    lead = torch.broadcast_shapes(total.shape, (num_samples, n))
    return _Draws(total.expand(lead).reshape(-1, n), x["fn"].expand(torch.Size(lead)))


def _site_of(x: Tensor, observed: list[Any]) -> Any:
    """The site that observes the data themselves, or the only one that observes the same values."""
    for site in observed:
        if site["value"] is x:
            return site
    same = [s for s in observed if s["value"].shape == x.shape and torch.equal(s["value"].to(x.dtype), x)] or observed
    if len(same) != 1:
        raise ValueError(
            f"The model observes {[site['name'] for site in same]}, and which of these sites is of the first member of "
            "the batch is not to be told: give it that member as it is, obs=x."
        )
    return same[0]


def _average(
    pair: Pair, rows: Rows, num_samples: int, seed: int, mean: bool, fill: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    r"""The self-normalised importance-weighted average of what ``fill`` makes of p(x | z), or one draw by its weights.

    Weights and averages are updated cell by cell, so memory does not grow with the number of samples.
    """
    positive_integer("num_samples", num_samples)
    results = []
    with evaluating(pair):
        structure = measure(pair.model, pair.guide, *device_batch(pair, rows(slice(0, CELL_DATA))))
        check_vectorized(structure, "Imputation")
        if structure.nesting > 1:
            raise ValueError(
                f"The pair has {structure.nesting - 1} plates inside the data plate, and only observations that are "
                "one event a datum can be filled in: write them as .to_event()."
            )
        # Without anything random every draw of the latents would be the same.
        num_samples = num_samples if structure.random else 1
        for start in range(0, len(rows), CELL_DATA):
            block = device_batch(pair, rows(slice(start, start + CELL_DATA)))
            log_total: Tensor = torch.full((len(block[0]),), -math.inf, device=block[0].device)
            result: Tensor | None = None
            for cell in range(0, num_samples, CELL_SAMPLES):
                torch.manual_seed(derived_seed(seed, start // CELL_DATA, cell // CELL_SAMPLES))
                size = min(CELL_SAMPLES, num_samples - cell)
                log_w, x = _draws(pair, block, size, structure.nesting, structure.enumerated)
                check_weights(log_w, start)
                completed = fill(x, block[0]).reshape(len(log_w), len(block[0]), *x.event_shape)
                log_cell = log_w.logsumexp(0)
                log_new = torch.logaddexp(log_total, log_cell)
                # A cell of which no draw could have led to a datum has no share in it; another one may.
                possible = log_cell > -math.inf
                share = torch.where(possible, (log_cell - log_new).exp(), 0.0)  # of this cell among all so far
                if mean:
                    weights = torch.where(possible, (log_w - log_cell).exp(), 0.0)
                    value = torch.einsum("sn,sn...->n...", weights, completed.to(log_w.dtype))
                    mixed = value if result is None else result.lerp(value, _like(share, value))
                else:
                    index = torch.distributions.Categorical(logits=torch.where(possible, log_w, 0.0).T).sample()
                    value = completed[index, torch.arange(len(index), device=index.device)]
                    mixed = (
                        value
                        if result is None
                        else torch.where(_like(torch.rand_like(share) < share, value), value, result)
                    )
                result, log_total = mixed, log_new
            if (bad := log_total == -math.inf).any():
                row = start + int(bad.nonzero()[0])
                raise ValueError(f"All weights of datum {row} are zero: no draw of the guide's could have led to it.")
            assert result is not None
            results.append(result.cpu())
    return torch.cat(results)


def _like(per_datum: Tensor, value: Tensor) -> Tensor:
    return per_datum.reshape(-1, *[1] * (value.dim() - 1))


def _mean(distribution: Any) -> Tensor:
    if (mean := mean_of(distribution)) is None:
        raise ValueError(
            f"The model scores x under {type(innermost(distribution)).__name__}, which has no mean in closed form to "
            "average: impute(mean=False) draws; for levels in order decoders.Categorical has the mean."
        )
    return mean


def impute(pair: Pair, x: Any, *y: Any, mask: Any, num_samples: int = 1000, mean: bool = True, seed: int = 0) -> Tensor:
    r"""Incomplete data with what is missing filled in from p(missing | observed).

    .. math:: \mathbb{E}[x_m \mid x_o] \approx \sum_s w_s \, \mathbb{E}[x_m \mid x_o, z_s], \qquad
        w_s \propto \frac{p(z_s) \, p(x_o \mid z_s)}{q(z_s \mid x_o)}, \quad z_s \sim q(z \mid x_o)

    The weights correct what the guide makes of an incomplete object, so with many samples this is the model's own
    answer, whatever the guide.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019),
        https://arxiv.org/abs/1812.02633

    Args:
        pair: a pair that takes a mask.
        x: (N, \*event), of which the missing elements are ignored and may be NaN.
        y: the context of a conditional pair.
        mask: (N, \*event), True where x was observed.
        num_samples: S, draws of the latent per datum.
        mean: the conditional mean; otherwise one draw (sampling importance resampling), for multiple imputation with
            several seeds.
        seed: of the noise.

    Shape:
        (N, \*event), on the CPU; observed elements as they were.

    Raises:
        TypeError, ValueError: a pair that takes no mask or whose elements cannot be integrated out, a mask of another
            shape or type, a number of samples that is not a positive whole number, a decoder without the mean, or
            weights of a datum that are NaN or all zero.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> x = torch.bernoulli(torch.full((5, 64), 0.5))
        >>> observed = torch.arange(64) < 32
        >>> filled = impute(vae, x, mask=observed.expand(5, 64), num_samples=10)
        >>> bool((filled == x)[:, observed].all())
        True
    """
    if mask is None:
        raise TypeError("mask is None: impute needs one, True where x was observed, to know what is missing.")
    pair, batch = masked(pair, (x, *y), mask)

    def fill(distribution: Any, given: Tensor) -> Tensor:
        inner = unadapted(distribution)
        if not hasattr(inner, "complete"):
            raise ValueError(
                f"The model scores x under {type(inner).__name__}, whatever the mask: score it under "
                "ppgen.distributions.marginal(distribution, mask)."
            )
        if mean:
            _mean(distribution)
        return inner.complete(given, mean=mean)

    rows = read_once(batch, seed)
    filled = _average(pair, rows, num_samples, seed, mean, fill)
    x, observed = (member[:].cpu() for member in rows.members[:2])
    return torch.where(observed, x, filled)  # what was observed stays as it was, to the last bit


def denoise(pair: Pair, x: Any, *y: Any, mask: Any = None, num_samples: int = 1000, seed: int = 0) -> Tensor:
    r"""Damaged data as the model believes them to have been: the posterior mean of what the decoder would give.

    .. math:: \mathbb{E}\bigl[\mathbb{E}[x' \mid z] \bigm| x\bigr]
        \approx \sum_s w_s \, \mathbb{E}[x' \mid z_s], \qquad w_s \propto \frac{p(z_s) \, p(x \mid z_s)}{q(z_s \mid x)}

    Unlike :func:`reconstruct` it averages over the posterior, with weights that correct the guide, which was never
    trained on damaged data.

    Args:
        pair: any pair.
        x: (N, \*event).
        y: the context of a conditional pair.
        mask: True where x was observed, if not everywhere.
        num_samples: S, draws of the latent per datum.
        seed: of the noise.

    Shape:
        (N, \*event), on the CPU.

    Raises:
        TypeError, ValueError: bad data, a decoder without a mean, or weights that are NaN or all zero.
    """
    pair, batch = masked(pair, (x, *y), mask)
    rows = read_once(batch, seed)
    return _average(pair, rows, num_samples, seed, True, lambda distribution, given: _mean(distribution))
